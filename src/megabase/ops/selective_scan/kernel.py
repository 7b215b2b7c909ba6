"""The selective scan by ``megabase-kernels``: CPU tensors of float32 or float64.

Shape suffixes: B batch, L positions, E channels, N states per channel.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from megabase.ops import kernels
from megabase.ops.registry import SINGLE_OR_DOUBLE, Saved, operator
from megabase.ops.selective_scan.blocked import ScanInputs, scan_flops

STEPS = 64
"""Positions between the states that are kept for the backward pass. At 16 states these take a
quarter of the memory of one input."""

_SINGLE_THREAD = 1 << 16
"""Products of batch, length, channels and states below which threads do not pay."""

_CHECKS: dict[str, Any] = {
    "rules": {"T": lambda sizes, _: -(-sizes["L"] // STEPS)}, "least": {"L": 1}, "alike": True,
    "dtypes": SINGLE_OR_DOUBLE, "device_types": "cpu",
}  # fmt: skip
"""What holds for the operator and for its gradient."""


def _call(
    which: str, x: ScanInputs, softplus: bool, reverse: bool, further: list[Tensor | None]
) -> None:
    """Call a function of the kernels, which read rows side by side, or arrays without gaps."""
    native = getattr(kernels.native_package().native, which)
    states = x.A.shape[1]
    threads = 1 if x.u.numel() * states < _SINGLE_THREAD else torch.get_num_threads()
    kinds = (kernels.beside if t is not None and t.dim() == 3 else kernels.dense for t in x[:-1])
    inputs = [kind(t) for kind, t in zip(kinds, x[:-1], strict=True)]
    native(
        x.u.dtype == torch.float64, (*x.u.shape, states, STEPS, softplus, reverse),
        *(kernels.array(t) for t in (*inputs, kernels.dense(x.initial), *further)), threads,
    )  # fmt: skip


@operator("selective_scan", lambda x, *_: scan_flops(x.u, x.A), kept=1, **_CHECKS)
def scan_kernel(
    x: ScanInputs, softplus: bool, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the output, the final state and, with `keep`, the states between steps."""
    y, final, kept = found = _outputs(x, softplus, reverse, keep)
    _call("scan_forward", x, softplus, reverse, [y, final, kept if keep else None])
    return found


@scan_kernel.register_fake
def _outputs(
    x: ScanInputs, _softplus: bool, _reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    options: Any = {"dtype": x.u.dtype, "device": x.u.device}
    batch, length, channels = x.u.shape
    kept = (batch, -(-length // STEPS), x.A.shape[1], channels) if keep else (0,)
    return (
        torch.empty(x.u.shape, **options),
        torch.empty((batch, *x.A.shape), **options),
        torch.empty(kept, **options),
    )


@operator(
    "selective_scan_backward",
    lambda dy, dfinal, kept, x, *_: 2 * scan_flops(x.u, x.A),
    **_CHECKS,
)
def _backward(
    dy: Annotated[Tensor, "B L E"],
    dfinal: Annotated[Tensor | None, "B E N"],
    kept: Annotated[Tensor, "B T N E"],
    x: ScanInputs,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    grads = _room(dy, dfinal, kept, x, softplus, reverse)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (
        None if t is None else grad for grad, t in zip(grads, x, strict=True)
    )
    # These two are sums that the kernels always make.
    dD = torch.empty(x.A.shape[:1], dtype=dy.dtype, device=dy.device) if dD is None else dD
    dbias = torch.empty_like(dD) if dbias is None else dbias
    given = [kernels.beside(dy), kernels.dense(dfinal), kernels.dense(kept)]
    found = [du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial]
    _call("scan_backward", x, softplus, reverse, [*given, *found])
    return grads


@_backward.register_fake
def _room(
    dy: Tensor, _dfinal: Any, _kept: Tensor, x: ScanInputs, _softplus: bool, _reverse: bool
) -> list[Tensor]:
    return [
        torch.empty((0,) if t is None else t.shape, dtype=dy.dtype, device=dy.device) for t in x
    ]


@scan_kernel.register_gradients
def _(saved: Saved, dy: Tensor | None, dfinal: Tensor | None) -> list[Tensor]:
    x, softplus, reverse, _ = saved.inputs
    dy = torch.zeros_like(x.u) if dy is None else dy
    return _backward(dy, dfinal, *saved.kept, x, softplus, reverse)

"""The selective scan by ``megabase-kernels``, as torch operators.

``megabase::selective_scan`` and its gradient ``megabase::selective_scan_backward`` are ordinary
operators to autograd, to activation checkpointing and to torch.compile. CPU tensors of float32 or
float64 only.

Shape suffixes: B batch, L positions, E channels, N states per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from megabase.ops import kernels
from megabase.ops.registry import SINGLE_OR_DOUBLE, Operator
from megabase.ops.selective_scan.blocked import OPERATOR

STEPS = 64
"""Positions between the states that are kept for the backward pass. At 16 states these take a
quarter of the memory of one input."""

_SINGLE_THREAD = 1 << 16
"""Products of batch, length, channels and states below which threads do not pay."""

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, "
    "Tensor? initial, bool softplus, bool reverse"
)


_SHAPES = {
    "u": "B L E", "delta": "B L E", "A": "E N", "B": "B L N", "C": "B L N", "D": "E", "z": "B L E",
    "bias": "E", "initial": "B E N",
}  # fmt: skip
_CHECKS: dict[str, Any] = {
    "rules": {"T": lambda sizes, _: -(-sizes["L"] // STEPS)}, "least": {"L": 1}, "alike": True,
    "dtypes": SINGLE_OR_DOUBLE, "device_types": "cpu",
}  # fmt: skip


def _sizes(u: Tensor, A: Tensor, softplus: bool, reverse: bool) -> tuple[Any, ...]:
    return (*u.shape, A.shape[1], STEPS, softplus, reverse)


def _threads(u: Tensor, A: Tensor) -> int:
    return 1 if u.numel() * A.shape[1] < _SINGLE_THREAD else torch.get_num_threads()


def _kept_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    return (u.shape[0], -(-u.shape[1] // STEPS), A.shape[1], u.shape[2])


def _arrays(*given: Tensor | None) -> list[Any]:
    """Give the inputs as the kernels read them: rows side by side, or without gaps."""
    kinds = (kernels.beside if t is not None and t.dim() == 3 else kernels.dense for t in given)
    return [kernels.array(kind(t)) for kind, t in zip(kinds, given, strict=True)]


@Operator(
    "selective_scan",
    f"({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)",
    _SHAPES,
    **_CHECKS,
).implementation
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(u, delta, A, B, C, D, z, bias, initial, softplus, reverse, keep)


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _scan_outputs(u, A, keep)
    y, final, kept = outputs
    inputs = _arrays(u, delta, A, B, C, D, z, bias, kernels.dense(initial))
    kernels.native_package().native.scan_forward(
        u.dtype == torch.float64, _sizes(u, A, softplus, reverse), *inputs,
        *(kernels.array(t) for t in (y, final, kept if keep else None)), _threads(u, A),
    )  # fmt: skip
    return outputs


def _scan_outputs(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    options: Any = {"dtype": u.dtype, "device": u.device}
    return (
        torch.empty(u.shape, **options),
        torch.empty((u.shape[0], *A.shape), **options),
        torch.empty(_kept_shape(u, A) if keep else (0,), **options),
    )


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _scan_outputs(u, A, arguments[-1])


@Operator(
    "selective_scan_backward",
    f"(Tensor dy, Tensor? dfinal, Tensor kept, {_ARGUMENTS}) -> Tensor[]",
    {"dy": "B L E", "dfinal": "B E N", "kept": "B T N E", **_SHAPES},
    **_CHECKS,
).implementation
def _scan_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    given = (u, delta, A, B, C, D, z, bias, initial)
    found = _gradients(dy, dfinal, kept, *given, softplus, reverse)
    return [u.new_empty((0,)) if grad is None else grad for grad in found]


def _gradients(
    dy: Tensor,
    dfinal: Tensor | None,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    native = kernels.native_package().native
    double, threads = u.dtype == torch.float64, _threads(u, A)
    batch, length, channels = u.shape
    states = A.shape[1]
    inputs = _arrays(u, delta, A, B, C, D, z, bias, kernels.dense(initial))
    dy, dfinal, kept = kernels.beside(dy), kernels.dense(dfinal), kernels.dense(kept)
    options: Any = {"dtype": u.dtype, "device": u.device}
    du, ddelta = torch.empty(u.shape, **options), torch.empty(u.shape, **options)
    dz = None if z is None else torch.empty(u.shape, **options)
    dinitial = None if initial is None else torch.empty(initial.shape, **options)
    dA = torch.empty((channels, states), **options)
    dD, dbias = (torch.empty((channels,), **options) for _ in range(2))
    dB, dC = (torch.empty((batch, length, states), **options) for _ in range(2))
    native.scan_backward(
        double, _sizes(u, A, softplus, reverse), *inputs,
        *(kernels.array(t) for t in (dy, dfinal, kept, du, ddelta, dA, dB, dC, dD, dz, dbias)),
        kernels.array(dinitial), threads,
    )  # fmt: skip
    return (
        du, ddelta, dA, dB, dC, None if D is None else dD, dz, None if bias is None else dbias,
        dinitial,
    )  # fmt: skip


@_scan_backward.register_fake
def _(dy: Tensor, dfinal: Tensor | None, kept: Tensor, *arguments: Any) -> list[Tensor]:
    return [
        torch.empty((0,) if t is None else t.shape, dtype=dy.dtype, device=dy.device)
        for t in arguments[:9]
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.given = [t is not None for t in tensors]
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Any) -> tuple[Any, ...]:
    found = _backward_by(_scan_backward, ctx, dy, dfinal)
    grads = (grad if given else None for grad, given in zip(found, ctx.given, strict=True))
    return (*grads, None, None, None)


def _backward_by(
    function: Callable[..., Sequence[Tensor | None]],
    ctx: Any,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> Sequence[Tensor | None]:
    *tensors, kept = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    return function(dy, dfinal, kept, *tensors, ctx.softplus, ctx.reverse)


_scan.register_gradients(_backward, _setup_context)


class _Direct(torch.autograd.Function):
    """The operator without its dispatch, which takes 0.1 ms of a forward and backward pass.

    Over 1,024 positions of 256 channels that is a twentieth of the pass.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _forward
        output = run(*inputs, True)
        _setup_context(ctx, (*inputs, True), output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor | None, dfinal: Tensor | None
    ) -> tuple[Any, ...]:
        return (*_backward_by(_gradients, ctx, dy, dfinal), None, None)


def _watched(tensors: list[Tensor | None]) -> bool:
    """Whether something must see the operator: a compiler, a mode, a transformation, a subclass."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or any(t is not None and type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
    )


def selective_scan_kernel(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    D_E: Tensor | None = None,
    z_BLE: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state_BEN: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scan in C++; see :func:`megabase.ops.selective_scan.selective_scan`.

    ``reverse`` reads from the last position to the first.
    """
    dtype = torch.promote_types(u_BLE.dtype, torch.float32)
    given = (
        u_BLE, delta_BLE, A_EN, B_BLN, C_BLN, D_E, z_BLE, delta_bias_E, initial_state_BEN
    )  # fmt: skip
    OPERATOR.check(*given, delta_softplus)
    tensors = [t if t is None or t.dtype == dtype else t.to(dtype) for t in given]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    options = (delta_softplus, reverse)
    if _watched(tensors):
        y_BLE, state_BEN, _ = _scan(*tensors, *options, keep)
    elif keep:
        y_BLE, state_BEN = _Direct.apply(*tensors, *options)
    else:
        run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _forward
        y_BLE, state_BEN, _ = run(*tensors, *options, False)
    return (y_BLE if y_BLE.dtype == u_BLE.dtype else y_BLE.to(u_BLE.dtype)), state_BEN

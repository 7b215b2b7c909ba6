"""The causal convolution with SiLU by ``megabase-kernels``, as torch operators.

``megabase::causal_conv`` and its gradient; CPU tensors only.

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1 positions before the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import kernels
from megabase.ops.registry import Operator

_SINGLE_THREAD = 1 << 15
"""Elements below which threads do not pay."""

_ARGUMENTS = "Tensor x, Tensor taps, Tensor? bias, Tensor? past, bool reverse"


_SHAPES = {"x": "B L E", "taps": "E K", "bias": "E", "past": "B P E"}
_CHECKS: dict[str, Any] = {
    "rules": {"P": lambda sizes, _: sizes["K"] - 1}, "least": {"K": 1}, "device_types": "cpu",
}  # fmt: skip


def fits(taps_EK: Tensor) -> bool:
    """Whether the kernel takes this many taps."""
    return taps_EK.shape[1] <= kernels.package().MAX_TAPS


def _sizes(x: Tensor, taps: Tensor, reverse: bool) -> tuple[Any, ...]:
    if taps.shape[1] > kernels.native_package().MAX_TAPS:
        raise OperatorError(
            f"causal_conv: expected at most {kernels.package().MAX_TAPS} taps, found "
            f"{taps.shape[1]}; megabase.ops.causal_conv takes any number"
        )
    return (*x.shape, taps.shape[1], reverse)


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < _SINGLE_THREAD else torch.get_num_threads()


def _wide(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Give all tensors in float32, or float64 if that is the dtype of `x`; rows side by side."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return tuple(None if t is None else kernels.beside(t.to(dtype)) for t in (x, *others))


@Operator("causal_conv", f"({_ARGUMENTS}) -> Tensor", _SHAPES, **_CHECKS).implementation
def _conv(
    x: Tensor, taps: Tensor, bias: Tensor | None, past: Tensor | None, reverse: bool
) -> Tensor:
    sizes, dtype = _sizes(x, taps, reverse), x.dtype
    x, taps, bias, past = _wide(x, taps.contiguous(), bias, past)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kernels.package().native.conv_forward(
        x.dtype == torch.float64, sizes, *(kernels.array(t) for t in (x, past, taps, bias, y)),
        _threads(x),
    )  # fmt: skip
    return y.to(dtype)


@_conv.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@Operator(
    "causal_conv_backward",
    f"(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    {"dy": "B L E", **_SHAPES},
    **_CHECKS,
).implementation
def _conv_backward(
    dy: Tensor, x: Tensor, taps: Tensor, bias: Tensor | None, past: Tensor | None, reverse: bool
) -> tuple[Tensor, ...]:
    sizes, given = _sizes(x, taps, reverse), (x, taps, bias, past)
    x, taps, bias, past, dy = _wide(x, taps.contiguous(), bias, past, dy)
    native = kernels.package().native
    channels, count = taps.shape
    tasks = native.conv_tasks(x.shape[0], x.shape[1])
    options: Any = {"dtype": x.dtype, "device": x.device}
    dx = torch.empty(x.shape, **options)
    # Zero, because an empty sequence gives nobody the task of writing it.
    dpast = torch.zeros((0,) if past is None else past.shape, **options)
    # Sums over positions, one for each task.
    dtaps = torch.empty((tasks, count, channels), **options)
    dbias = torch.empty((tasks, channels), **options)
    native.conv_backward(
        x.dtype == torch.float64, sizes,
        *(kernels.array(t) for t in (x, past, taps, bias, dy, dx)),
        *(kernels.array(t) for t in (None if past is None else dpast, dtaps, dbias)),
        _threads(x),
    )  # fmt: skip
    found = (dx, dtaps.sum(0).t().contiguous(), dbias.sum(0), dpast)
    return tuple(
        x.new_empty((0,)) if t is None else grad.to(t.dtype)
        for grad, t in zip(found, given, strict=True)
    )


@_conv_backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return tuple(
        x.new_empty((0,), dtype=wide)
        if t is None
        else torch.empty(t.shape, dtype=t.dtype, device=x.device)
        for t in (x, *others[:3])
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    found = _conv_backward(dy, *given, ctx.reverse)
    return (*(g if t is not None else None for g, t in zip(found, given, strict=True)), None)


_conv.register_gradients(_backward, _setup_context)
OPERATOR = _conv


def causal_conv_kernel(
    x_BLE: Tensor,
    taps_EK: Tensor,
    bias_E: Tensor | None = None,
    past_BPE: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Convolve in C++, in float32 at least; see :func:`megabase.ops.causal_conv.causal_conv`."""
    return _conv(x_BLE, taps_EK, bias_E, past_BPE, reverse)

"""The causal convolution with SiLU by ``megabase-kernels``, as torch operators.

``megabase::causal_conv`` and its gradient; CPU tensors of float32 or float64 only.

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1 positions before the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megabase.ops import kernels

__all__ = ["causal_conv_kernel", "fits"]

_SINGLE_THREAD = 1 << 15
"""Elements below which threads do not pay."""

_ARGUMENTS = "Tensor x, Tensor taps, Tensor? bias, Tensor? past, bool reverse"


def fits(taps_EK: Tensor) -> bool:
    """Whether the kernel takes this many taps."""
    return taps_EK.shape[1] <= kernels.package().MAX_TAPS


def _sizes(x: Tensor, taps: Tensor, reverse: bool) -> tuple[Any, ...]:
    return (*x.shape, taps.shape[1], reverse)


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < _SINGLE_THREAD else torch.get_num_threads()


@torch.library.custom_op(
    "megabase::causal_conv",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_ARGUMENTS}) -> Tensor",
)
def _conv(
    x: Tensor, taps: Tensor, bias: Tensor | None, past: Tensor | None, reverse: bool
) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, past = kernels.beside(x), kernels.beside(past)
    taps, bias = taps.contiguous(), None if bias is None else bias.contiguous()
    kernels.package().native.conv_forward(
        x.dtype == torch.float64, _sizes(x, taps, reverse), kernels.rows(x), kernels.rows(past),
        taps.data_ptr(), kernels.address(bias), kernels.rows(y), _threads(x),
    )  # fmt: skip
    return y


@_conv.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op(
    "megabase::causal_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _conv_backward(
    dy: Tensor, x: Tensor, taps: Tensor, bias: Tensor | None, past: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    native = kernels.package().native
    x, dy, past = kernels.beside(x), kernels.beside(dy), kernels.beside(past)
    taps, bias = taps.contiguous(), None if bias is None else bias.contiguous()
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
        x.dtype == torch.float64, _sizes(x, taps, reverse), kernels.rows(x), kernels.rows(past),
        taps.data_ptr(), kernels.address(bias), kernels.rows(dy), kernels.rows(dx),
        None if past is None else kernels.rows(dpast), dtaps.data_ptr(), dbias.data_ptr(),
        _threads(x),
    )  # fmt: skip
    none = torch.empty((0,), **options)
    return dx, dtaps.sum(0).t().contiguous(), none if bias is None else dbias.sum(0), dpast


@_conv_backward.register_fake
def _(
    dy: Tensor, x: Tensor, taps: Tensor, bias: Tensor | None, past: Tensor | None, _: bool
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty((0,) if t is None else t.shape, dtype=x.dtype, device=x.device)
        for t in (x, taps, bias, past)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    found = _conv_backward(dy, *given, ctx.reverse)
    return (*(g if t is not None else None for g, t in zip(found, given, strict=True)), None)


torch.library.register_autograd("megabase::causal_conv", _backward, setup_context=_setup_context)


def causal_conv_kernel(
    x_BLE: Tensor,
    taps_EK: Tensor,
    bias_E: Tensor | None = None,
    past_BPE: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Convolve in C++, in float32 at least; see :func:`megabase.ops.causal_conv.causal_conv`."""
    dtype = torch.promote_types(x_BLE.dtype, torch.float32)
    given = (x_BLE, taps_EK, bias_E, past_BPE)
    return _conv(*(None if t is None else t.to(dtype) for t in given), reverse).to(x_BLE.dtype)

"""The short convolution as a few shifted multiply-adds, with a backward pass that keeps x and w.

On CPUs this is two to three times as fast as the grouped convolution of the library, and nearly
as fast as copying the input.

Shape suffixes: B batch, C channels, L positions, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megabase.ops.registry import Operator

BLOCK_SAMPLES = 1 << 19
"""Samples per block, so that a block stays in the cache over its taps."""


def taps_behind(w_CK: Tensor, centred: bool) -> int:
    """Give the number of taps that meet positions behind the one whose output they give."""
    return (w_CK.shape[-1] - 1) // 2 if centred and w_CK.dim() else 0


def _shifts(taps: int, after: int, length: int) -> list[tuple[int, int, slice, slice]]:
    """List (tap, shift, output slice, input slice), the tap without shift first."""
    found = []
    for tap in range(taps):
        shift = taps - 1 - after - tap
        if abs(shift) < length:
            to = slice(max(0, shift), length + min(0, shift))
            at = slice(max(0, -shift), length - max(0, shift))
            found.append((tap, shift, to, at))
    return sorted(found, key=lambda row: row[1] != 0)


def apply_taps(x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None, after: int, out: Tensor) -> Tensor:
    """Write the convolution of `x_BCL` into `out`; `after` taps lie behind the position."""
    for tap, shift, to, at in _shifts(w_CK.shape[-1], after, x_BCL.shape[-1]):
        if shift == 0:
            torch.mul(x_BCL, w_CK[:, tap, None], out=out)
            if b_C is not None:
                out.add_(b_C[:, None])
        else:
            out[..., to].addcmul_(x_BCL[..., at], w_CK[:, tap, None])
    return out


def transpose_taps(dy_BCL: Tensor, w_CK: Tensor, after: int, out: Tensor) -> Tensor:
    """Write the gradient of the convolution's input into `out`."""
    for tap, shift, to, at in _shifts(w_CK.shape[-1], after, dy_BCL.shape[-1]):
        if shift == 0:
            torch.mul(dy_BCL, w_CK[:, tap, None], out=out)
        else:
            out[..., at].addcmul_(dy_BCL[..., to], w_CK[:, tap, None])
    return out


def correlate_taps(
    x_BCL: Tensor, dy_BCL: Tensor, after: int, dw_CK: Tensor, db_C: Tensor | None
) -> None:
    """Add the gradients of the taps and the bias to `dw_CK` and `db_C`."""
    for tap, _, to, at in _shifts(dw_CK.shape[-1], after, x_BCL.shape[-1]):
        dw_CK[:, tap] += (dy_BCL[..., to] * x_BCL[..., at]).sum(dim=(0, 2), dtype=dw_CK.dtype)
    if db_C is not None:
        db_C += dy_BCL.sum(dim=(0, 2), dtype=db_C.dtype)


def _rows(x_BCL: Tensor) -> list[slice]:
    step = max(1, BLOCK_SAMPLES // max(1, x_BCL.shape[1] * x_BCL.shape[2]))
    return [slice(i, i + step) for i in range(0, x_BCL.shape[0], step)]


@Operator(
    "short_conv",
    "(Tensor x, Tensor w, Tensor? b, int after) -> Tensor",
    {"x": "B C L", "w": "C K", "b": "C"},
    least={"K": 1},
    below={"after": "K"},
).implementation
def _forward(x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None, after: int) -> Tensor:
    y_BCL = torch.empty(x_BCL.shape, dtype=x_BCL.dtype, device=x_BCL.device)
    w_CK = w_CK.to(x_BCL.dtype)
    b_C = None if b_C is None else b_C.to(x_BCL.dtype)
    for rows in _rows(x_BCL):
        apply_taps(x_BCL[rows], w_CK, b_C, after, y_BCL[rows])
    return y_BCL


@Operator(
    "short_conv_backward",
    "(Tensor dy, Tensor x, Tensor w, int after, bool needs_x, bool needs_taps) "
    "-> (Tensor, Tensor, Tensor)",
    {"dy": "B C L", "x": "B C L", "w": "C K"},
    least={"K": 1},
    below={"after": "K"},
    same={"dy": "x"},
).implementation
def _backward(
    dy_BCL: Tensor, x_BCL: Tensor, w_CK: Tensor, after: int, needs_x: bool, needs_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx_BCL, dw_CK, db_C = _backward_shapes(x_BCL, w_CK, needs_x)
    dw_CK.zero_()
    db_C.zero_()
    w_CK = w_CK.to(x_BCL.dtype)
    for rows in _rows(x_BCL):
        if needs_x:
            transpose_taps(dy_BCL[rows], w_CK, after, dx_BCL[rows])
        if needs_taps:
            correlate_taps(x_BCL[rows], dy_BCL[rows], after, dw_CK, db_C)
    return dx_BCL, dw_CK, db_C


def _backward_shapes(x_BCL: Tensor, w_CK: Tensor, needs_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    # Sums over batch and length are kept in float32 at least.
    wide = torch.promote_types(w_CK.dtype, torch.float32)
    return (
        x_BCL.new_empty(x_BCL.shape if needs_x else (0,)),
        w_CK.new_empty(w_CK.shape, dtype=wide),
        w_CK.new_empty(w_CK.shape[:1], dtype=wide),
    )


@_forward.register_fake
def _(x_BCL: Tensor, *_: Any) -> Tensor:
    return x_BCL.new_empty(x_BCL.shape)


@_backward.register_fake
def _(
    dy_BCL: Tensor, x_BCL: Tensor, w_CK: Tensor, after: int, needs_x: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_shapes(x_BCL, w_CK, needs_x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_BCL, w_CK, b_C, ctx.after = inputs
    ctx.save_for_backward(x_BCL, w_CK)
    ctx.bias_dtype = None if b_C is None else b_C.dtype


def _gradients(ctx: Any, dy_BCL: Tensor) -> tuple[Tensor | None, ...]:
    x_BCL, w_CK = ctx.saved_tensors
    needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
    dx_BCL, dw_CK, db_C = _backward(dy_BCL, x_BCL, w_CK, ctx.after, needs_x, needs_w or needs_b)
    return (
        dx_BCL if needs_x else None,
        dw_CK.to(w_CK.dtype) if needs_w else None,
        db_C.to(ctx.bias_dtype) if needs_b else None,
        None,
    )


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def short_conv_shifted(
    x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None = None, *, centred: bool = False
) -> Tensor:
    """Convolve by shifted adds; see :func:`megabase.ops.short_conv.short_conv`."""
    return _forward(x_BCL, w_CK, b_C, taps_behind(w_CK, centred))

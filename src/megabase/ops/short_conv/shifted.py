"""The short convolution as a few shifted multiply-adds, with a backward pass that keeps x and w.

On CPUs this is two to three times as fast as the grouped convolution of the library, and nearly
as fast as copying the input.

Shape suffixes: B batch, C channels, L positions, K taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["short_conv_shifted"]

BLOCK_SAMPLES = 1 << 19
"""Samples per block, so that a block stays in the cache over its taps."""


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Slices (output, input) with input position = output position - shift."""
    if shift >= 0:
        return slice(shift, length), slice(0, max(0, length - shift))
    return slice(0, max(0, length + shift)), slice(-shift, length)


def _rows(x_BCL: Tensor) -> list[slice]:
    step = max(1, BLOCK_SAMPLES // max(1, x_BCL.shape[1] * x_BCL.shape[2]))
    return [slice(i, i + step) for i in range(0, x_BCL.shape[0], step)]


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None, after: int) -> Tensor:
        ctx.save_for_backward(x_BCL, w_CK)
        ctx.after = after
        ctx.bias_dtype = None if b_C is None else b_C.dtype
        length, taps = x_BCL.shape[-1], w_CK.shape[-1]
        w_CK = w_CK.to(x_BCL.dtype)
        y_BCL = torch.empty(x_BCL.shape, dtype=x_BCL.dtype, device=x_BCL.device)
        for rows in _rows(x_BCL):
            x, y = x_BCL[rows], y_BCL[rows]
            torch.mul(x, w_CK[:, taps - 1 - after, None], out=y)
            if b_C is not None:
                y.add_(b_C.to(y.dtype)[:, None])
            for tap in range(taps):
                shift = taps - 1 - after - tap
                if shift != 0 and abs(shift) < length:
                    to, at = _overlap(shift, length)
                    y[..., to].addcmul_(x[..., at], w_CK[:, tap, None])
        return y_BCL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_BCL,) = grads
        x_BCL, w_CK = ctx.saved_tensors
        needs_x, needs_w, needs_b, _ = ctx.needs_input_grad
        length, taps = x_BCL.shape[-1], w_CK.shape[-1]
        # Sums over batch and length are kept in float32 at least.
        dtype = torch.promote_types(w_CK.dtype, torch.float32)
        dx_BCL = torch.empty_like(x_BCL) if needs_x else None
        dw_CK = torch.zeros(w_CK.shape, dtype=dtype, device=w_CK.device)
        db_C = torch.zeros(w_CK.shape[:1], dtype=dtype, device=w_CK.device)
        w_x_CK = w_CK.to(x_BCL.dtype)
        for rows in _rows(x_BCL):
            x, dy = x_BCL[rows], dy_BCL[rows]
            if dx_BCL is not None:
                dx = dx_BCL[rows]
                torch.mul(dy, w_x_CK[:, taps - 1 - ctx.after, None], out=dx)
            for tap in range(taps):
                shift = taps - 1 - ctx.after - tap
                if abs(shift) >= length:
                    continue
                to, at = _overlap(shift, length)
                if needs_w:
                    dw_CK[:, tap] += (dy[..., to] * x[..., at]).sum(dim=(0, 2), dtype=dtype)
                if dx_BCL is not None and shift != 0:
                    dx[..., at].addcmul_(dy[..., to], w_x_CK[:, tap, None])
            if needs_b:
                db_C += dy.sum(dim=(0, 2), dtype=dtype)
        return (
            dx_BCL,
            dw_CK.to(w_CK.dtype) if needs_w else None,
            db_C.to(ctx.bias_dtype) if needs_b and ctx.bias_dtype is not None else None,
            None,
        )


@torch.compiler.disable
def short_conv_shifted(
    x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None = None, *, centred: bool = False
) -> Tensor:
    """Convolve by shifted adds; see :func:`megabase.ops.short_conv.short_conv`."""
    after = (w_CK.shape[-1] - 1) // 2 if centred else 0
    with torch.autocast(device_type=x_BCL.device.type, enabled=False):
        return _ShortConv.apply(x_BCL, w_CK, b_C, after)  # pyright: ignore[reportReturnType]

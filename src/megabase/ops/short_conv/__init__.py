"""The short convolution: a few taps per channel, causal or centred."""

from __future__ import annotations

from torch import Tensor

from megabase.errors import MegabaseError
from megabase.ops import backend
from megabase.ops.short_conv.reference import short_conv_reference
from megabase.ops.short_conv.shifted import short_conv_shifted

__all__ = ["ShortConvShapeError", "short_conv", "short_conv_reference", "short_conv_shifted"]


class ShortConvShapeError(MegabaseError):
    """Input, taps and bias of a short convolution do not fit together."""


def short_conv(
    x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None = None, *, centred: bool = False
) -> Tensor:
    """Convolve each channel of `x_BCL` with its own few taps along the last axis.

    Causal: ``y[t] = b + sum_j w[j] x[t - (K-1) + j]``, positions before the start being zero.
    Centred: the same with K // 2 positions before and (K-1) // 2 after.

    Parameters
    ----------
    x_BCL
        Input, shape (batch, channels, length).
    w_CK
        Taps, shape (channels, taps); the last one meets the current position when causal.
    b_C
        Bias, shape (channels,), or None.
    centred
        Whether the taps lie around the position instead of before it.

    Returns
    -------
    Tensor
        Shape and dtype of `x_BCL`.

    Raises
    ------
    ShortConvShapeError
        When the shapes do not fit.
    """
    fits = x_BCL.dim() == 3 and w_CK.dim() == 2 and w_CK.shape[0] == x_BCL.shape[1]
    if not fits or w_CK.shape[1] < 1 or (b_C is not None and b_C.shape != w_CK.shape[:1]):
        raise ShortConvShapeError(
            "expected x (batch, channels, length), w (channels, taps >= 1), b (channels,); found "
            f"x {tuple(x_BCL.shape)}, w {tuple(w_CK.shape)}, "
            f"b {None if b_C is None else tuple(b_C.shape)}"
        )
    run = short_conv_reference if backend.active() == "reference" else short_conv_shifted
    return run(x_BCL, w_CK, b_C, centred=centred)

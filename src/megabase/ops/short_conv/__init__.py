"""The short convolution: a few taps per channel, causal or centred."""

from __future__ import annotations

from torch import Tensor

from megabase.ops import backend
from megabase.ops.short_conv.reference import short_conv_reference
from megabase.ops.short_conv.shifted import OPERATOR, short_conv_shifted

__all__ = ["short_conv", "short_conv_reference", "short_conv_shifted"]


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
    OperatorError
        When shapes, dtypes or devices do not fit.
    """
    if backend.active() == "reference":
        OPERATOR.check(x_BCL, w_CK, b_C)
        return short_conv_reference(x_BCL, w_CK, b_C, centred=centred)
    return short_conv_shifted(x_BCL, w_CK, b_C, centred=centred)

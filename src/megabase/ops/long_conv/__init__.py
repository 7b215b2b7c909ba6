"""The long convolution: every position with every other, by FFT."""

from __future__ import annotations

from torch import Tensor

from megabase.ops import backend
from megabase.ops.fft_lengths import fft_length
from megabase.ops.long_conv.fft import OPERATOR, long_conv_fft
from megabase.ops.long_conv.reference import long_conv_reference

__all__ = ["fft_length", "long_conv", "long_conv_fft", "long_conv_reference"]


def long_conv(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve each channel of `u_BDL` with its own filter along the last axis.

    One-sided (causal): ``y[t] = sum_{j=0..t} k[j] u[t-j] + skip u[t]``. Two-sided:
    ``y[t] = sum_s k[t-s+L-1] u[s] + skip u[t]``, the filter holding lags -(L-1) to L-1.

    Parameters
    ----------
    u_BDL
        Input, shape (batch, channels, length).
    k_DM
        Filter, shape (channels, length), or (channels, 2 * length - 1) when `two_sided`.
    skip_D
        Weight of the unconvolved input, shape (channels,); left out when None.
    two_sided
        Whether the filter also has negative lags, which reach later positions.

    Returns
    -------
    Tensor
        Shape and dtype of `u_BDL`. Sums are formed in float32 at least.

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.

    Notes
    -----
    Equation (4) of the HyenaDNA paper (arXiv 2306.15794). The fast path saves only its inputs for
    the backward pass, and has no second derivative.
    """
    if backend.active() == "reference":
        OPERATOR.check(u_BDL, k_DM, skip_D, two_sided)
        return long_conv_reference(u_BDL, k_DM, skip_D, two_sided=two_sided)
    return long_conv_fft(u_BDL, k_DM, skip_D, two_sided=two_sided)

"""A short causal convolution of every channel with its own taps, then SiLU."""

from __future__ import annotations

from torch import Tensor

from megabase.ops import backend
from megabase.ops.causal_conv.kernel import OPERATOR, causal_conv_kernel, fits
from megabase.ops.causal_conv.reference import causal_conv_reference
from megabase.ops.causal_conv.shifted import causal_conv_shifted

__all__ = [
    "causal_conv",
    "causal_conv_kernel",
    "causal_conv_reference",
    "causal_conv_shifted",
]


def causal_conv(
    x_BLE: Tensor,
    taps_EK: Tensor,
    bias_E: Tensor | None = None,
    past_BPE: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Convolve each channel with its taps, and apply SiLU.

    ``y_t = silu(bias + sum over k of taps[k] x_{t - (K - 1) + k})``.

    Parameters
    ----------
    x_BLE
        Input, shape (batch, length, channels).
    taps_EK
        Taps, that of the position itself last, shape (channels, taps).
    bias_E
        Shape (channels,); left out when None.
    past_BPE
        The inputs before the first position, shape (batch, taps - 1, channels); zeros when None.
    reverse
        Whether the convolution reads from the last position to the first: every sequence is turned
        around before it, and the output back again.

    Returns
    -------
    Tensor
        Shape and dtype of `x_BLE`.

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.
    """
    given = (x_BLE, taps_EK, bias_E, past_BPE)
    OPERATOR.check(*given)
    if backend.use_kernels(*given) and fits(taps_EK):
        return causal_conv_kernel(*given, reverse)
    dtype = x_BLE.dtype
    taps_EK = taps_EK.to(dtype)
    others = (None if t is None else t.to(dtype) for t in (bias_E, past_BPE))
    run = causal_conv_reference if backend.use_reference() else causal_conv_shifted
    if reverse:
        return run(x_BLE.flip(1), taps_EK, *others).flip(1)
    return run(x_BLE, taps_EK, *others)

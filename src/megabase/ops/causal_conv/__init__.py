"""A short causal convolution of every channel with its own taps, then SiLU."""

from __future__ import annotations

from torch import Tensor

from megabase.errors import MegabaseError
from megabase.ops import backend
from megabase.ops.causal_conv.kernel import causal_conv_kernel, fits
from megabase.ops.causal_conv.reference import causal_conv_reference
from megabase.ops.causal_conv.shifted import causal_conv_shifted

__all__ = [
    "CausalConvShapeError",
    "causal_conv",
    "causal_conv_kernel",
    "causal_conv_reference",
    "causal_conv_shifted",
]


class CausalConvShapeError(MegabaseError):
    """Inputs of a causal convolution do not fit together."""


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
    CausalConvShapeError
        When the shapes do not fit; the message lists every one.
    """
    if x_BLE.dim() != 3 or taps_EK.dim() != 2 or taps_EK.shape[1] < 1:
        raise CausalConvShapeError(
            "causal convolution: expected x of shape (batch, length, channels) and taps of shape "
            f"(channels, taps >= 1), found {tuple(x_BLE.shape)} and {tuple(taps_EK.shape)}"
        )
    channels, taps = taps_EK.shape
    wanted = {
        "x": (x_BLE, (*x_BLE.shape[:2], channels)),
        "bias": (bias_E, (channels,)),
        "past": (past_BPE, (x_BLE.shape[0], taps - 1, channels)),
    }
    problems = [
        f"{name} must have shape {shape}, found {tuple(tensor.shape)}"
        for name, (tensor, shape) in wanted.items()
        if tensor is not None and tuple(tensor.shape) != shape
    ]
    if problems:
        raise CausalConvShapeError("causal convolution: " + "; ".join(problems))
    if backend.use_kernels(x_BLE, taps_EK) and fits(taps_EK):
        return causal_conv_kernel(x_BLE, taps_EK, bias_E, past_BPE, reverse)
    taps_EK = taps_EK.to(x_BLE.dtype)
    bias_E = None if bias_E is None else bias_E.to(x_BLE.dtype)
    past_BPE = None if past_BPE is None else past_BPE.to(x_BLE.dtype)
    run = causal_conv_reference if backend.use_reference() else causal_conv_shifted
    if reverse:
        return run(x_BLE.flip(1), taps_EK, bias_E, past_BPE).flip(1)
    return run(x_BLE, taps_EK, bias_E, past_BPE)

"""Everything a Hyena operator of order 2 does between its two projections, in one pass."""

from __future__ import annotations

from torch import Tensor

from megabase.errors import MegabaseError
from megabase.ops import backend
from megabase.ops.gated_conv.blocked import gated_conv_blocked
from megabase.ops.gated_conv.reference import gated_conv_reference

__all__ = ["GatedConvShapeError", "gated_conv", "gated_conv_blocked", "gated_conv_reference"]


class GatedConvShapeError(MegabaseError):
    """Inputs of a gated convolution do not fit together."""


def gated_conv(
    p_BPL: Tensor,
    w_PK: Tensor,
    b_P: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None = None,
    *,
    centred: bool = False,
    two_sided: bool = False,
) -> Tensor:
    """Convolve shortly, gate, convolve over the whole length, gate again.

    With ``x0, x1, v`` the three blocks of the short convolution of `p_BPL`:
    ``y = x0 * (k conv (x1 * v) + skip * (x1 * v))``.

    Parameters
    ----------
    p_BPL
        Projected channels, shape (batch, 3 * channels, length): output gate, input gate, value.
    w_PK, b_P
        Taps and bias of the short convolution, shapes (3 * channels, taps) and (3 * channels,).
    k_DM
        Filter, shape (channels, length), or (channels, 2 * length - 1) when `two_sided`.
    skip_D
        Skip term, shape (channels,), or None.
    centred
        Whether the short taps lie around the position instead of before it.
    two_sided
        Whether the filter also has negative lags.

    Returns
    -------
    Tensor
        Shape (batch, channels, length), dtype of `p_BPL`.

    Raises
    ------
    GatedConvShapeError
        When the shapes do not fit.

    Notes
    -----
    Equals :func:`~megabase.ops.short_conv.short_conv` and
    :func:`~megabase.ops.long_conv.long_conv` with products between them; the fast path does all of
    it to one block of channels at a time and keeps only its inputs for the backward pass.
    """
    channels, length = k_DM.shape[0], p_BPL.shape[-1]
    wanted = {
        "p": (p_BPL.shape[0], 3 * channels, length),
        "w": (3 * channels, w_PK.shape[-1]),
        "b": (3 * channels,),
        "k": (channels, 2 * length - 1 if two_sided else length),
        "skip": (channels,),
    }
    given = {"p": p_BPL, "w": w_PK, "b": b_P, "k": k_DM, "skip": skip_D}
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != wanted[name]:
            raise GatedConvShapeError(
                f"expected {name} of shape {wanted[name]}, found {tuple(tensor.shape)}"
            )
    run = gated_conv_reference if backend.active() == "reference" else gated_conv_blocked
    return run(p_BPL, w_PK, b_P, k_DM, skip_D, centred=centred, two_sided=two_sided)

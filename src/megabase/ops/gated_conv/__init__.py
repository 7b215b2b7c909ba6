"""Everything a Hyena operator of order 2 does between its two projections, in one pass."""

from __future__ import annotations

from torch import Tensor

from megabase.ops import backend
from megabase.ops.gated_conv.blocked import OPERATOR, gated_conv_blocked
from megabase.ops.gated_conv.reference import gated_conv_reference

__all__ = ["gated_conv", "gated_conv_blocked", "gated_conv_reference"]


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
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.

    Notes
    -----
    Equals :func:`~megabase.ops.short_conv.short_conv` and
    :func:`~megabase.ops.long_conv.long_conv` with products between them; the fast path does all of
    it to one block of channels at a time and keeps only its inputs for the backward pass.
    """
    if backend.active() == "reference":
        OPERATOR.check(p_BPL, w_PK, b_P, k_DM, skip_D, 0, two_sided)
        run = gated_conv_reference
    else:
        run = gated_conv_blocked
    return run(p_BPL, w_PK, b_P, k_DM, skip_D, centred=centred, two_sided=two_sided)

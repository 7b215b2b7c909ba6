"""Filter taps as a function of the lag."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from megabase.ops import backend
from megabase.ops.implicit_filter.blocked import OPERATOR, implicit_filter_blocked
from megabase.ops.implicit_filter.reference import implicit_filter_reference

__all__ = ["implicit_filter", "implicit_filter_blocked", "implicit_filter_reference"]


def implicit_filter(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    """Compute the taps of every lag.

    Parameters
    ----------
    z_ME
        Positional features, shape (lags, features).
    t_M
        Normalised times, shape (lags,); no gradient flows to them.
    freq_W
        Frequencies of the sines, shape (1, width) or (width,).
    weights, biases
        Of the hidden layers: (width, features), then (width, width); (width,).
    last_CW
        Output map, shape (channels, width).
    rate_C
        Decay rates of the window, shape (channels,), without gradient; None for no window.
    shift
        Constant added to the window.

    Returns
    -------
    Tensor
        Shape (channels, lags).

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.
    """
    given = (z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, shift)
    if backend.active() == "reference":
        OPERATOR.check(*given)
        return implicit_filter_reference(*given)
    return implicit_filter_blocked(*given)

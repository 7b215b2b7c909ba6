"""What is read off the measured times: growth, ratios, and where one model overtakes another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Overtaking", "PowerLaw", "compare", "fit_power_law", "overtaking"]

_FEWEST = 3
_TAIL = 4


@dataclass(frozen=True)
class PowerLaw:
    """seconds = scale * length ** exponent, fitted to the longest measured lengths."""

    scale: float
    exponent: float
    fitted_lengths: tuple[int, ...]
    """Lengths that the fit saw; anything beyond them is extrapolation."""

    def at(self, length: float) -> float:
        """Give the seconds of a length."""
        return self.scale * length**self.exponent


def fit_power_law(seconds: Mapping[int, float]) -> PowerLaw | None:
    """Fit a straight line to the logarithms of the last four points.

    Short lengths are left out when there are more: there the fixed costs of a pass dominate.

    Parameters
    ----------
    seconds
        Measured time of each length.

    Returns
    -------
    PowerLaw or None
        None for fewer than three points.
    """
    lengths = sorted(seconds)[-_TAIL:]
    if len(lengths) < _FEWEST:
        return None
    exponent, offset = np.polyfit(np.log(lengths), np.log([seconds[n] for n in lengths]), 1)
    return PowerLaw(float(np.exp(offset)), float(exponent), tuple(lengths))


@dataclass(frozen=True)
class Overtaking:
    """Where one model becomes faster than another, for good."""

    length: float | None
    """Tokens; None when it never does."""
    how: str
    """"measured" (between two measured lengths), "from the start" (at the first common length
    already), "extrapolated" (where the two fits cross), or "never"."""


def overtaking(first: Mapping[int, float], second: Mapping[int, float]) -> Overtaking:
    """Find the length from which the first model stays faster than the second.

    Parameters
    ----------
    first, second
        Measured seconds of each length.

    Returns
    -------
    Overtaking
        Between two measured lengths the crossing is interpolated in the logarithms.
    """
    common = sorted(set(first) & set(second))
    if not common:
        return Overtaking(None, "never")
    gaps = [math.log(first[n] / second[n]) for n in common]  # below 0: the first is faster
    slower = [index for index, gap in enumerate(gaps) if gap >= 0]
    if not slower:
        return Overtaking(float(common[0]), "from the start")
    last = slower[-1]
    if last + 1 < len(common):
        share = gaps[last] / (gaps[last] - gaps[last + 1])
        low, high = math.log(common[last]), math.log(common[last + 1])
        return Overtaking(math.exp(low + share * (high - low)), "measured")
    one, other = fit_power_law(first), fit_power_law(second)
    if one is None or other is None or one.exponent >= other.exponent:
        return Overtaking(None, "never")
    crossing = math.exp(math.log(one.scale / other.scale) / (other.exponent - one.exponent))
    # Fits that cross among lengths where the first was measured to be slower tell nothing.
    if crossing <= common[-1]:
        return Overtaking(None, "never")
    return Overtaking(crossing, "extrapolated")


def compare(reference: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Compare the times of a model with those of the reference.

    Parameters
    ----------
    reference, other
        Measured seconds of each length.

    Returns
    -------
    dict
        ``ratios``: other / reference at every length measured for both; ``longest_common`` and
        ``ratio_at_longest_common``; ``reference_overtakes``: see :class:`Overtaking`.
    """
    common = sorted(set(reference) & set(other))
    ratios = {n: other[n] / reference[n] for n in common}
    return {
        "ratios": ratios,
        "longest_common": common[-1] if common else None,
        "ratio_at_longest_common": ratios[common[-1]] if common else None,
        "reference_overtakes": asdict(overtaking(reference, other)),
    }

"""Sequence logos and heat maps of substitutions as picture files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.errors import MissingDependencyError, ReportError
from megabase.report import style
from megabase.report.style import Axes

LETTER_COLORS = {"A": "#2f9e44", "C": "#1a56c4", "G": "#d9820b", "T": "#c92a2a"}
"""The usual colors of logos: A green, C blue, G orange, T red."""
_MOST = {
    "a logo": (400, "choose a shorter part"),
    "a heat map": (300, "choose a shorter region, or draw up to 2,000 in a page with megabase "
                   "report --ism"),
}  # fmt: skip
"""Picture -> most positions, and what to do with more: letters are thinner than a pixel beyond, and
a heat map is wider than 36 inches."""


_Floats = npt.NDArray[np.floating[Any]]


def check_logo(path: Path, count: int, overwrite: bool = False, what: str = "a logo") -> None:
    """Refuse a logo, or "a heat map", that cannot be drawn, before any work is done.

    A :class:`ReportError` for another ending or too many positions; a
    :class:`MissingDependencyError` without matplotlib or logomaker.
    """
    most, otherwise = _MOST[what]
    style.check_picture(path, what, overwrite)
    MissingDependencyError.load("logomaker", "plots", "drawing sequence logos")
    if not 0 < count <= most:
        found = f"{count:,}; {otherwise}"
        raise ReportError(f"{path}: {what} shows 1 to {most} positions, found {found}")


def _own_heights(bases: str, values: _Floats) -> _Floats:
    """Give each position's number (length,) to the base that stands there, if any: (length, 4)."""
    own = np.array(list(bases), dtype="U1")[:, None] == np.array(list("ACGT"))
    return np.where(own, np.asarray(values, dtype=float)[:, None], 0.0)


def _draw_letters(axes: Axes, letters: _Floats, first: int, ylabel: str) -> None:
    """Draw letters (length, 4) on axes that show exactly their positions; NaN has no letter."""
    import logomaker
    import pandas as pd

    heights = np.nan_to_num(np.asarray(letters, dtype=float), posinf=0.0, neginf=0.0)
    last = first + len(heights) - 1
    if heights.any():
        frame = pd.DataFrame(heights, index=list(range(first, last + 1)), columns=list("ACGT"))
        logomaker.Logo(frame, ax=axes, color_scheme=LETTER_COLORS, font_name="DejaVu Sans")
    else:
        axes.set_ylim(-1, 1)
        axes.text(0.5, 0.75, "all heights are zero or unknown", transform=axes.transAxes,
                  ha="center", va="center")  # fmt: skip
    # logomaker takes the limits of an empty axis (0 to 1) into its own.
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_ylabel(ylabel)
    axes.axhline(0, color=style.LIGHT.muted, linewidth=0.8)
    # A factor such as 1e-9 for all ticks would stand in the title.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    style.position_ticks(axes, last, 60 * axes.figure.bbox.width / axes.figure.dpi)


def _draw_names(axes: Axes, spans: Sequence[tuple[int, int, str]]) -> None:
    """Draw a bar and a name above intervals (0-based half-open), in rows so that none touch."""
    low, high = axes.get_ylim()
    first, last = axes.get_xlim()
    step = 0.17 * (high - low)
    # Positions under a letter of a name, whose mean width is less than eight points.
    points = 72 * axes.get_position().width * axes.figure.bbox.width / axes.figure.dpi
    wide = 8 * (last - first) / points
    reached: list[float] = []  # by the names of each row
    for start, end, name in sorted(spans):
        left, right = max(start + 0.5, first), min(end + 0.5, last)
        if left < right:
            shown = style.shown_name(name)
            half = wide * len(shown) / 2
            middle = max(first + half, min((left + right) / 2, last - half))
            free = [k for k, x in enumerate(reached) if x < min(left, middle - half)]
            row = free[0] if free else len(reached)
            reached[row : row + 1] = [max(right, middle + half)]
            height = high + (row + 0.3) * step
            axes.plot([left, right], [height, height], color=style.LIGHT.model, linewidth=2)
            axes.text(middle, height + 0.15 * step, shown, ha="center", size=style.WIDE.text - 3)
    axes.set_ylim(low, high + (len(reached) + 0.4) * step)


def save_logo(
    path: Path, values: _Floats, bases: str | None = None, *, title: str, ylabel: str,
    first: int = 1, overwrite: bool = False, spans: Sequence[tuple[int, int, str]] = (),
) -> None:  # fmt: skip
    """Draw letters as high as their numbers, negative ones downwards.

    `values` are (length, 4) for A, C, G, T, or (length,) for the `bases` that stand there. `path`
    ends in ``.svg``, ``.png`` or ``.pdf``; `first` is the number of the first position. `spans`,
    start and end (0-based half-open) and a name, are drawn above their letters. Errors are those of
    :func:`check_logo`.
    """
    check_logo(path, len(values), overwrite)
    width = min(24.0, max(6.0, 0.16 * len(values)))
    with style.picture(path, width, 2.6, overwrite) as figure:
        axes = figure.add_subplot()
        letters = values if bases is None else _own_heights(bases, values)
        _draw_letters(axes, letters, first, ylabel)
        if spans:
            _draw_names(axes, spans)
        axes.set_title(style.shortened(title, 62 * width, style.WIDE.text), loc="left")


def save_heat_map(
    path: Path, ref: str, scores: _Floats, *, title: str, label: str, first: int,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Draw a logo of the bases, as high as the mean loss of their substitutions, and a heat map.

    `scores` are float (length, 4) for A, C, G, T: 0 at the base of `ref` itself, NaN without a
    score (drawn gray). `first` is the 1-based position of the first base; `label` says what the
    numbers are. Errors are those of :func:`check_logo`.
    """
    check_logo(path, len(ref), overwrite, "a heat map")
    from matplotlib import colormaps

    matrix = np.ma.masked_invalid(np.asarray(scores, dtype=float))
    limit = float(np.ma.filled(np.abs(matrix).max(), 0.0))
    width = min(36.0, max(6.0, 0.14 * len(ref)))
    with style.picture(path, width, 4.0, overwrite) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        colors = colormaps["RdBu"].with_extremes(bad="#d0d0d0")
        image = bottom.imshow(
            matrix.T, aspect="auto", cmap=colors, vmin=-limit or -1,
            vmax=limit or 1, interpolation="nearest",
            extent=(first - 0.5, first + len(ref) - 0.5, 3.5, -0.5),
        )  # fmt: skip
        bottom.grid(visible=False)
        bottom.set_yticks(range(4), list("ACGT"))
        if matrix.mask.all():
            bottom.text(0.5, 0.5, "no base has a score", transform=bottom.transAxes, ha="center",
                        va="center")  # fmt: skip
        _draw_letters(top, _own_heights(ref, -matrix.filled(np.nan).sum(1) / 3), first, "mean loss")
        top.set_title(style.shortened(title, 55 * width, style.WIDE.text), loc="left")
        figure.colorbar(image, ax=[top, bottom], label=label, shrink=0.8, pad=0.01)

"""Sequence logos as picture files: letters as high as their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megabase.errors import MissingDependencyError, ReportError
from megabase.report.drawing import check_picture, position_ticks, save_picture, shortened
from megabase.report.theme import LIGHT, WIDE, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LETTER_COLOURS", "check_letters", "check_logo", "draw_letters", "own_heights",
           "save_logo"]  # fmt: skip

LETTER_COLOURS = {"A": "#2f9e44", "C": "#1a56c4", "G": "#d9820b", "T": "#c92a2a"}
_MOST = 400


def check_letters(path: Path, count: int, most: int, what: str, overwrite: bool) -> None:
    """Refuse a picture of letters that cannot be drawn; `what` names it, `most` are its letters.

    Raises
    ------
    ReportError, MissingDependencyError
        As for :func:`check_logo`.
    """
    check_picture(path, what, overwrite)
    try:
        import logomaker  # noqa: F401
    except ImportError:
        raise MissingDependencyError("logomaker", "plots", "drawing sequence logos") from None
    if not 0 < count <= most:
        raise ReportError(
            f"{what} shows 1 to {most} positions, found {count:,}; choose a shorter part"
        )


def check_logo(path: Path, bases: int, overwrite: bool = False) -> None:
    """Refuse a logo that cannot be drawn, before any work is done.

    Raises
    ------
    ReportError
        For another ending, too many positions, or a file that exists.
    MissingDependencyError
        When matplotlib or logomaker is not installed.
    """
    check_letters(path, bases, _MOST, "a logo", overwrite)


def own_heights(bases: str, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Give each position's number (length,) to the base that stands there: (length, 4).

    A position that is not A, C, G or T has no letter.
    """
    heights = np.zeros((len(bases), 4))
    for row, base in enumerate(bases):
        if base in "ACGT":
            heights[row, "ACGT".index(base)] = values[row]
    return heights


def draw_letters(
    axes: Axes, letters: npt.NDArray[np.floating[Any]], first: int, ylabel: str
) -> None:
    """Draw letters (length, 4) on axes that show exactly their positions; NaN has no letter."""
    import logomaker
    import pandas as pd

    heights = np.nan_to_num(np.asarray(letters, dtype=float), posinf=0.0, neginf=0.0)
    last = first + len(heights) - 1
    if heights.any():
        frame = pd.DataFrame(heights, index=list(range(first, last + 1)), columns=list("ACGT"))
        logomaker.Logo(frame, ax=axes, color_scheme=LETTER_COLOURS, font_name="DejaVu Sans")
    else:
        axes.set_ylim(-1, 1)
        axes.text(0.5, 0.75, "all heights are zero or unknown", transform=axes.transAxes,
                  ha="center", va="center")  # fmt: skip
    # logomaker takes the limits of an empty axis (0 to 1) into its own.
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_ylabel(ylabel)
    axes.axhline(0, color=LIGHT.muted, linewidth=0.8)
    # A factor such as 1e-9 for all ticks would stand in the title.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    position_ticks(axes, last, 60 * axes.figure.bbox.width / axes.figure.dpi)


def save_logo(
    path: Path,
    letters: npt.NDArray[np.floating[Any]],
    *,
    title: str,
    ylabel: str,
    first: int = 1,
    overwrite: bool = False,
) -> None:
    """Draw letters as high as their numbers.

    Parameters
    ----------
    path
        ``.svg``, ``.png`` or ``.pdf``.
    letters
        float (length, 4): A, C, G, T; negative ones hang below the line.
    title, ylabel
        Plain text.
    first
        Number of the first position on the axis.
    overwrite
        Replace a file that exists.

    Raises
    ------
    ReportError, MissingDependencyError
        As for :func:`check_logo`.
    """
    check_logo(path, len(letters), overwrite)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: Any = {**settings(LIGHT, WIDE), "figure.facecolor": LIGHT.background}
    with mpl.rc_context(chosen):
        width = min(24.0, max(6.0, 0.16 * len(letters)))
        figure = Figure(figsize=(width, 2.6), dpi=144, layout="constrained")
        axes = figure.add_subplot()
        draw_letters(axes, letters, first, ylabel)
        axes.set_title(shortened(title, 62 * width, WIDE.text), loc="left")
        save_picture(figure, path, overwrite)

"""A sequence logo of numbers by letter, as a picture file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.errors import MissingDependencyError
from megabase.report.drawing import SUFFIXES, require_matplotlib
from megabase.report.run_record import ReportError
from megabase.report.theme import LIGHT, WIDE, settings

__all__ = ["LETTER_COLOURS", "check_letters", "check_logo", "save_logo"]

LETTER_COLOURS = {"A": "#2f9e44", "C": "#1a56c4", "G": "#d9820b", "T": "#c92a2a"}
_MOST = 400


def check_letters(path: Path, count: int, most: int, what: str, overwrite: bool) -> None:
    """Refuse a picture of letters that cannot be drawn; `what` names it, `most` are its letters.

    Raises
    ------
    ReportError, MissingDependencyError
        As for :func:`check_logo`.
    """
    require_matplotlib()
    try:
        import logomaker  # noqa: F401
    except ImportError:
        raise MissingDependencyError("logomaker", "plots", "drawing sequence logos") from None
    if path.suffix not in SUFFIXES:
        raise ReportError(f"{path}: {what} is drawn as {', '.join(SUFFIXES)}")
    if path.exists() and not overwrite:
        raise ReportError(f"{path} exists; give another name, or --overwrite to replace it")
    if not 0 < count <= most:
        raise ReportError(f"{what} shows 1 to {most} positions, found {count:,}; choose a stretch")


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
    import logomaker
    import matplotlib as mpl
    import pandas as pd
    from matplotlib.figure import Figure

    places = range(first, first + len(letters))
    frame = pd.DataFrame(np.asarray(letters, dtype=float), index=list(places), columns=list("ACGT"))
    chosen: Any = {**settings(LIGHT, WIDE), "figure.facecolor": LIGHT.background}
    with mpl.rc_context(chosen):
        width = min(24.0, max(6.0, 0.16 * len(letters)))
        figure = Figure(figsize=(width, 2.6), dpi=144, layout="constrained")
        axes = figure.add_subplot()
        logomaker.Logo(frame, ax=axes, color_scheme=LETTER_COLOURS, font_name="DejaVu Sans")
        axes.set_title(title, loc="left")
        axes.set_ylabel(ylabel)
        axes.axhline(0, color=LIGHT.muted, linewidth=0.8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.savefig(path, facecolor=LIGHT.background)

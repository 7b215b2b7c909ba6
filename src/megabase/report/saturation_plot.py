"""Every substitution of a stretch as a heat map, under a logo of what the model objects to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.errors import ReportError
from megabase.report.drawing import save_picture, shortened
from megabase.report.logo_plot import check_letters, draw_letters, own_heights
from megabase.report.theme import LIGHT, WIDE, settings

__all__ = ["MOST_BASES", "check_saturation_plot", "save_saturation_plot"]

MOST_BASES = 300


def check_saturation_plot(path: Path, bases: int, overwrite: bool = False) -> None:
    """Refuse a picture that cannot be drawn, before any work is done.

    Raises
    ------
    ReportError
        For another ending, too many bases, or a file that exists.
    MissingDependencyError
        When matplotlib or logomaker is not installed.
    """
    if bases > MOST_BASES:
        raise ReportError(
            f"{path}: a heat map shows up to {MOST_BASES} bases, found {bases:,}; choose a shorter "
            "region, or draw up to 2,000 in a page with megabase report --saturate"
        )
    check_letters(path, bases, MOST_BASES, "a heat map", overwrite)


def save_saturation_plot(
    path: Path,
    ref: str,
    scores: npt.NDArray[np.floating[Any]],
    *,
    title: str,
    label: str,
    first: int,
    overwrite: bool = False,
) -> None:
    """Draw a logo of the bases, as high as the mean loss of their substitutions, and a heat map.

    Parameters
    ----------
    path
        ``.svg``, ``.png`` or ``.pdf``.
    ref
        Bases of the stretch.
    scores
        float (length, 4): A, C, G, T; 0 at the base itself, NaN without a score (drawn grey).
    title, label
        Plain text; the label says what the numbers are.
    first
        1-based position of the first base.
    overwrite
        Replace a file that exists.

    Raises
    ------
    ReportError, MissingDependencyError
        As for :func:`check_saturation_plot`.
    """
    check_saturation_plot(path, len(ref), overwrite)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    matrix = np.asarray(scores, dtype=float)
    matrix = np.where(np.isfinite(matrix), matrix, np.nan)
    limit = float(np.nanmax(np.abs(matrix))) if np.isfinite(matrix).any() else 0.0
    chosen: Any = {**settings(LIGHT, WIDE), "figure.facecolor": LIGHT.background}
    with mpl.rc_context(chosen):
        width = min(36.0, max(6.0, 0.14 * len(ref)))
        figure = Figure(figsize=(width, 4.0), dpi=144, layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        colours = mpl.colormaps["RdBu"].with_extremes(bad="#d0d0d0")
        image = bottom.imshow(
            np.ma.masked_invalid(matrix.T), aspect="auto", cmap=colours, vmin=-limit or -1,
            vmax=limit or 1, interpolation="nearest",
            extent=(first - 0.5, first + len(ref) - 0.5, 3.5, -0.5),
        )  # fmt: skip
        bottom.grid(visible=False)
        bottom.set_yticks(range(4), list("ACGT"))
        if not np.isfinite(matrix).any():
            bottom.text(0.5, 0.5, "no base has a score", transform=bottom.transAxes, ha="center",
                        va="center")  # fmt: skip
        draw_letters(top, own_heights(ref, -matrix.sum(1) / 3), first, "mean loss")
        top.set_title(shortened(title, 55 * width, WIDE.text), loc="left")
        figure.colorbar(image, ax=[top, bottom], label=label, shrink=0.8, pad=0.01)
        save_picture(figure, path, overwrite)

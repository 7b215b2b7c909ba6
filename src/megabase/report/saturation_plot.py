"""Every substitution of a stretch as a heat map, under a logo of what the model objects to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.report.logo_plot import LETTER_COLOURS, check_letters
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
    import logomaker
    import matplotlib as mpl
    import pandas as pd
    from matplotlib.figure import Figure

    matrix = np.asarray(scores, dtype=float)
    places = list(range(first, first + len(ref)))
    heights = np.zeros((len(ref), 4))
    for row, base in enumerate(ref):
        if base in "ACGT":
            heights[row, "ACGT".index(base)] = np.nan_to_num(-matrix[row].sum() / 3)
    frame = pd.DataFrame(heights, index=places, columns=list("ACGT"))
    limit = float(np.nanmax(np.abs(matrix))) if np.isfinite(matrix).any() else 1.0
    chosen: Any = {**settings(LIGHT, WIDE), "figure.facecolor": LIGHT.background}
    with mpl.rc_context(chosen):
        width = min(36.0, max(6.0, 0.14 * len(ref)))
        figure = Figure(figsize=(width, 4.0), dpi=144, layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        logomaker.Logo(frame, ax=top, color_scheme=LETTER_COLOURS, font_name="DejaVu Sans")
        top.set_title(title, loc="left")
        top.set_ylabel("mean loss")
        top.axhline(0, color=LIGHT.muted, linewidth=0.8)
        colours = mpl.colormaps["RdBu"].with_extremes(bad="#d0d0d0")
        image = bottom.imshow(
            np.ma.masked_invalid(matrix.T), aspect="auto", cmap=colours, vmin=-limit or -1,
            vmax=limit or 1, interpolation="nearest",
            extent=(first - 0.5, first + len(ref) - 0.5, 3.5, -0.5),
        )  # fmt: skip
        bottom.grid(visible=False)
        bottom.set_yticks(range(4), list("ACGT"))
        bottom.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.colorbar(image, ax=[top, bottom], label=label, shrink=0.8, pad=0.01)
        figure.savefig(path, facecolor=LIGHT.background)

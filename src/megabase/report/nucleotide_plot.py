"""Probabilities along a region of a genome, with the true classes under them.

Takes ``predictions.parquet`` of a fine-tuning run: columns contig, position (0-based), label and
one ``p_CLASS`` for each class, the background first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megabase.errors import ReportError
from megabase.genome.interval import Interval
from megabase.report.style import LIGHT, check_picture, picture, position_ticks

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#1a56c4", "#b4530a", "#2f7d4f", "#8a3ea8", "#8a6d00", "#5c6773")
"""One for each class; more classes begin again."""
_MOST_POINTS = 4000  # points of a line: about four in each pixel of the picture
_BAR = 0.09  # height of a bar of true classes, in units of probability
_PREFIX = "p_"  # beginning of the columns with a class's probability


def _read_predictions(path: Path, place: str) -> pl.DataFrame:
    """Read the predicted bases of a contig or region (``chr1:1,001-2,000``), sorted by position."""
    import polars as pl

    if not path.is_file():
        raise ReportError(f"there is no file {path}; a run writes it with predictions=True")
    table = pl.scan_parquet(path)
    where = Interval.parse(place) if ":" in place else None
    chosen = table.filter(pl.col("contig") == (where.contig if where else place))
    if where:
        inside = pl.col("position").is_between(where.start, where.end, closed="left")
        chosen = chosen.filter(inside)
    chosen = chosen.collect()
    if chosen.is_empty():
        contigs = table.select("contig").unique().collect()["contig"].sort()
        found = ", ".join(contigs[:5])
        raise ReportError(f"{path} has no base of {place}; it has bases of {found}")
    return chosen.sort("position")


def _draw_nucleotides(table: pl.DataFrame, figure: Figure) -> None:
    """Draw probabilities as lines, and the true classes as bars under them.

    Of more bases than the picture has room for, means of equally many neighbors are drawn.
    """
    # The first class is the background: what is left when the others are drawn.
    classes = [name[len(_PREFIX) :] for name in table.columns if name.startswith(_PREFIX)]
    shown = list(enumerate(classes))[1:]
    place = table["position"].to_numpy()
    label = table["label"].to_numpy()
    axes = figure.subplots()
    for number, name in shown:
        color = _COLORS[(number - 1) % len(_COLORS)]
        _line(axes, place, table[f"{_PREFIX}{name}"].to_numpy(), color, f"probability of {name}")
        # A bar over every run of adjacent bases of the class.
        at = place[label == name]
        runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []
        axes.broken_barh(
            [(int(run[0]) + 0.5, len(run)) for run in runs], (-_BAR * (1.4 * number), _BAR),
            facecolors=color, alpha=0.55, label=f"{name}: annotated", linewidth=0,
        )  # fmt: skip
    axes.set(ylim=(-_BAR * (1.4 * len(shown) + 0.4), 1.02), yticks=[0, 0.5, 1])
    axes.axhline(0.5, color=LIGHT.faint, linewidth=1, zorder=0)
    axes.axhline(0, color=LIGHT.muted, linewidth=0.6, zorder=0)
    first, last = int(place[0]), int(place[-1]) + 1
    axes.set_xlim(first + 0.5, last + 0.5)
    position_ticks(axes, last, 0.9 * 72 * figure.get_figwidth())
    where = Interval(table["contig"][0], first, last)
    axes.set_xlabel(f"position on {where.contig}")
    axes.set_title(str(where), loc="left")
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def _line(axes: Axes, place: np.ndarray, values: np.ndarray, color: str, name: str) -> None:
    """Draw a line that breaks where positions are missing, of means where there are too many."""
    step = -(-len(place) // _MOST_POINTS)
    gaps = np.flatnonzero(np.diff(place) > 1) + 1
    for i, part in enumerate(np.split(np.arange(len(place)), gaps)):
        edges = np.arange(0, len(part), step)
        counts = np.diff(np.append(edges, len(part)))
        height = np.add.reduceat(values[part].astype(np.float64), edges) / counts
        label = name if i == 0 else None
        axes.plot(place[part][edges] + 1, height, color=color, label=label, linewidth=1.2)


def save_nucleotide_plot(
    predictions: Path, place: str, output: Path, *, overwrite: bool = False
) -> None:
    """Draw a region from ``predictions.parquet`` of a run, as ``.png``, ``.svg`` or ``.pdf``.

    A :class:`ReportError` when there is nothing to draw, or the file cannot be written.
    """
    check_picture(output, "a region", overwrite)
    table = _read_predictions(predictions, place)
    with picture(output, 13.3, 4.2, overwrite) as figure:
        _draw_nucleotides(table, figure)

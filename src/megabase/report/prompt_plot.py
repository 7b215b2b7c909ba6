"""A figure against the length of a soft prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.genome.files import write_whole
from megabase.report.drawing import add_axes, as_svg, shown_name
from megabase.report.theme import LIGHT, WIDE, Size, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_prompt_lengths", "save_prompt_lengths"]

Series = Mapping[str, Sequence[tuple[int, float]]]


def draw_prompt_lengths(
    series: Series,
    metric: str = "accuracy",
    reference: tuple[str, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = WIDE,
) -> str:
    """Draw a figure against the number of vectors, a line for each way of answering.

    Parameters
    ----------
    series
        Name of a line -> (vectors, figure) of its prompts.
    metric
        Name of the figure.
    reference
        Name and figure of something to compare with, such as full fine-tuning: a dashed line.
    theme, size
        For which page.

    Returns
    -------
    str
        SVG.
    """
    return as_svg(lambda figure: _draw(figure, series, metric, reference, size, theme), theme, size)


def _draw(
    figure: Figure,
    series: Series,
    metric: str,
    reference: tuple[str, float] | None,
    size: Size,
    theme: Theme,
) -> None:
    axes = add_axes(figure, size, right=10, y_label=metric)
    styles = ["-", "--", "-.", ":"]
    for number, (name, points) in enumerate(series.items()):
        known = sorted(points)
        axes.plot(
            [length for length, _ in known],
            [value for _, value in known],
            f"o{styles[number % 4]}",
            color=theme.model,
            markersize=5,
            label=shown_name(name),
        )
    if reference is not None:
        axes.axhline(
            reference[1], color=theme.floor, linestyle="--", label=shown_name(reference[0])
        )
    # Zero vectors stand on the axis too: linear up to 1, logarithmic from there.
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.minorticks_off()
    lengths = sorted({length for points in series.values() for length, _ in points})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("learnable vectors")
    axes.legend(frameon=False, loc="best", fontsize=size.text - 2)


def save_prompt_lengths(
    path: Path,
    series: Series,
    metric: str = "accuracy",
    reference: tuple[str, float] | None = None,
) -> None:
    """Write the picture as SVG; an earlier one is replaced.

    Raises
    ------
    MissingDependencyError
        When matplotlib is not installed.
    """
    text = draw_prompt_lengths(series, metric, reference)
    write_whole(path, text)

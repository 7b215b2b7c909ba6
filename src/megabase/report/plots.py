"""Plots of a run and of an evaluation, as SVG text or files.

They take the records of ``metrics.jsonl`` and the dictionary of an evaluation's JSON. matplotlib is
an extra (``plots``); it draws without a display and its global state is left alone.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megabase.errors import MissingDependencyError
from megabase.report.theme import LIGHT, WIDE, Size, Theme, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "best_floor",
    "draw_context_curve",
    "draw_floors",
    "draw_learning_curve",
    "require_matplotlib",
    "save_plots",
]

Record = dict[str, Any]
Label = tuple[float, str, str]  # height in data, text, colour

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def require_matplotlib() -> None:
    """Raise a clear error when matplotlib is not installed.

    Raises
    ------
    MissingDependencyError
        Naming the extra that brings it.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependencyError("matplotlib", "plots", "drawing plots") from None


def draw_learning_curve(metrics: Sequence[Record], theme: Theme = LIGHT, size: Size = WIDE) -> str:
    """Draw perplexity against tokens seen, with the stages of the length warm-up as bands.

    Parameters
    ----------
    metrics
        Records of ``metrics.jsonl`` of kinds train and validation.
    theme, size
        For which page.

    Returns
    -------
    str
        SVG.
    """
    return _svg(lambda figure: _learning_curve(figure, metrics, theme, size), theme, size)


def draw_context_curve(evaluation: Record, theme: Theme = LIGHT, size: Size = WIDE) -> str:
    """Draw perplexity over A, C, G, T against context length, the best floor beside it.

    Parameters
    ----------
    evaluation
        JSON record of an evaluation with a context curve.
    theme, size
        For which page.

    Returns
    -------
    str
        SVG.
    """
    return _svg(lambda figure: _context_curve(figure, evaluation, theme, size), theme, size)


def draw_floors(evaluation: Record, theme: Theme = LIGHT, size: Size = WIDE) -> str:
    """Draw perplexity over A, C, G, T of the Markov models against their order, and the model's.

    Parameters
    ----------
    evaluation
        JSON record of an evaluation with floors.
    theme, size
        For which page.

    Returns
    -------
    str
        SVG.
    """
    return _svg(lambda figure: _floors(figure, evaluation, theme, size), theme, size)


def save_plots(evaluation: Record, folder: Path, stem: str = "evaluation") -> list[Path]:
    """Write the plots of an evaluation as SVG files on a white background.

    Parameters
    ----------
    evaluation
        JSON record of an evaluation.
    folder
        Existing folder; files of the same names are replaced.
    stem
        Start of the file names.

    Returns
    -------
    list of Path
        ``STEM-context.svg`` (with a context curve) and ``STEM-floors.svg`` (with Markov floors).
    """
    written: list[Path] = []
    for name, wanted, draw in (
        ("context", bool(evaluation["context"]), draw_context_curve),
        ("floors", len(evaluation["floors"]) > 1, draw_floors),
    ):
        if wanted:
            path = folder / f"{stem}-{name}.svg"
            backed = rf'\1<rect width="100%" height="100%" fill="{LIGHT.background}"/>'
            text = re.sub(r"(<svg[^>]*>)", backed, draw(evaluation), count=1)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(text)
            os.replace(temporary, path)
            written.append(path)
    return written


def best_floor(evaluation: Record, key: str = "measure") -> Record | None:
    """Give the floor with the lowest perplexity over A, C, G, T.

    Parameters
    ----------
    evaluation
        JSON record of an evaluation.
    key
        "measure" for its targets, "context_measure" for those of the context curve.

    Returns
    -------
    dict or None
        None when there is no floor.
    """
    floors = [floor for floor in evaluation["floors"] if floor[key] is not None]
    return min(floors, key=lambda floor: floor[key]["nats_acgt"], default=None)


def _svg(draw: Callable[[Figure], None], theme: Theme, size: Size) -> str:
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: Any = settings(theme, size)
    with mpl.rc_context(chosen):
        # 72 dots per inch: one point of text and of size is one CSS pixel.
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue().replace("'DejaVu Sans'", _FONTS).replace("DejaVu Sans", _FONTS)
    # The prologue names a DTD on another host, which a page that asks nobody must not do.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text, count=2)


def _axes(figure: Figure, size: Size, right: float, y_label: str, top: float = 26) -> Axes:
    """Give axes with fixed margins in pixels, a light grid, and the y label lying on top."""
    left, bottom = 3.6 * size.text, 3.8 * size.text
    axes = figure.add_axes(
        (
            left / size.width,
            bottom / size.height,
            1 - (left + right) / size.width,
            1 - (bottom + top) / size.height,
        )
    )
    axes.grid(axis="y")
    across, along = size.width - left - right, size.height - bottom - top
    axes.text(
        0.005 - left / across,
        1 + (top - 16) / along,
        y_label,
        transform=axes.transAxes,
        va="bottom",
        ha="left",
        color=axes.xaxis.label.get_color(),
    )
    return axes


def _limits(values: Sequence[float], least: float = 0.02) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), least)
    return low - room, high + room


def _beside(axes: Axes, labels: Sequence[Label], size: Size) -> None:
    """Write labels to the right of the axes at their heights, moved apart where they would meet."""
    low, high = axes.get_ylim()
    pixels = size.height * axes.get_position().height
    gap = 1.35 * size.text
    wanted = sorted(
        (pixels * (height - low) / (high - low), text, colour) for height, text, colour in labels
    )
    placed: list[float] = []
    below = -math.inf
    for place, text, _ in wanted:
        half = 0.5 * gap * (text.count("\n") + 1)
        placed.append(max(place, below + half))
        below = placed[-1] + half
    excess = max(0.0, below - pixels - gap) if placed else 0.0
    placed = [place - excess for place in placed]
    for place, (_, text, colour) in zip(placed, wanted, strict=True):
        axes.annotate(
            text, (1.0, place / pixels), xycoords="axes fraction", xytext=(8, 0),
            textcoords="offset points", va="center", ha="left", color=colour, linespacing=1.2,
        )  # fmt: skip


def _short(number: float) -> str:
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:g}{letter}"
    return f"{number:g}"


def _learning_curve(figure: Figure, metrics: Sequence[Record], theme: Theme, size: Size) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    train = [r for r in metrics if r["kind"] == "train" and r["loss"] is not None]
    validation = [r for r in metrics if r["kind"] == "validation" and r["loss"] is not None]
    tokens = np.array([r["tokens"] for r in train], float)
    steps = np.array([r["step"] for r in train], float)
    losses = np.exp([r["loss"] for r in train])
    axes = _axes(figure, size, 92 if size is WIDE else 80, "perplexity", top=48)
    axes.set_xscale("log")
    axes.plot(tokens, losses, color=theme.muted, linewidth=1.2, alpha=0.75)
    labels: list[Label] = [(float(losses[-1]), "training", theme.muted)]
    shown = [float(np.median(losses[-max(1, len(losses) // 10) :]))]
    if validation:
        at = np.interp([r["step"] for r in validation], steps, tokens)
        held_out = np.exp([r["loss"] for r in validation])
        axes.plot(at, held_out, color=theme.model, marker="o", markersize=4.5)
        labels.append((float(held_out[-1]), "validation", theme.model))
        shown += held_out.tolist()
    low = min(*shown, float(losses.min()))
    high = max(min(float(losses.max()), 4.6), max(shown) + 0.1, low + 0.3)
    axes.set_ylim(low - 0.08, high)
    # The first steps fall from far above; the axis begins where the curve comes into sight.
    visible = tokens[losses < high]
    axes.set_xlim((visible[0] if visible.size else tokens[0]) * 0.9, tokens[-1] * 1.02)
    _bands(axes, train, theme, size)
    axes.set_xlabel("tokens seen")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if size is WIDE else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())  # labels of minor ticks would run into each other
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    _beside(axes, labels, size)


def _bands(axes: Axes, train: Sequence[Record], theme: Theme, size: Size) -> None:
    """Shade every second stage and write its length above it."""
    first, last = axes.get_xlim()
    start, pixels = first, size.width * axes.get_position().width
    stages = [r["stage"] for r in train]
    for number, stage in enumerate(dict.fromkeys(stages)):
        rows = [r for r in train if r["stage"] == stage]
        end = min(rows[-1]["tokens"], last)
        if end <= first:
            continue
        if number % 2 == 1:
            axes.axvspan(start, end, color=theme.faint, alpha=0.55, linewidth=0)
        share = math.log(end / start) / math.log(last / first) if end > start else 0.0
        text = f"{rows[0]['length']:,}"
        if share * pixels > 0.75 * size.text * len(text):
            axes.annotate(
                text, (math.sqrt(start * end), 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
                color=theme.muted, fontsize=size.text - 1,
            )  # fmt: skip
        start = end
    axes.annotate(
        "length of the sequences", (1.0, 1.0), xycoords="axes fraction", xytext=(0, 22),
        textcoords="offset points", ha="right", va="bottom", color=theme.muted,
        fontsize=size.text - 1,
    )  # fmt: skip


def _context_curve(figure: Figure, evaluation: Record, theme: Theme, size: Size) -> None:
    points = evaluation["context"]
    context = [point["context"] for point in points]
    found = [point["measure"]["perplexity_acgt"] for point in points]
    errors = [point["measure"]["perplexity_acgt_se"] or 0.0 for point in points]
    axes = _axes(figure, size, 140 if size is WIDE else 84, "perplexity over A, C, G, T")
    axes.set_xscale("log", base=2)
    axes.errorbar(
        context, found, yerr=errors, color=theme.model, marker="o", markersize=5, capsize=0,
        elinewidth=1.2,
    )  # fmt: skip
    heights = [*(v - e for v, e in zip(found, errors, strict=True)),
               *(v + e for v, e in zip(found, errors, strict=True))]  # fmt: skip
    labels: list[Label] = [(found[-1], _model_label(found[-1], size), theme.model)]
    floor = best_floor(evaluation, "context_measure")
    if floor is not None:
        value = floor["context_measure"]["perplexity_acgt"]
        axes.axhline(value, color=theme.floor, linewidth=1.4, linestyle=(0, (4, 3)))
        labels.append((value, _floor_label(floor["name"], value, size), theme.floor))
        heights.append(value)
    axes.set_ylim(*_limits(heights))
    axes.set_xlim(context[0] / 1.15, context[-1] * 1.15)
    step = 1 if len(context) <= (10 if size is WIDE else 5) else 2
    axes.set_xticks(context[::-step][::-1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{int(value):,}")
    axes.set_xlabel("context before the base (bases)")
    _beside(axes, labels, size)


def _floor_label(name: str, value: float, size: Size) -> str:
    name = name.replace(", fitted", ",\nfitted")
    if size is WIDE:
        return f"{name} {value:.3f}" if "\n" in name else f"{name}\n{value:.3f}"
    return f"{name.replace('order ', '')}\n{value:.3f}"


def _model_label(value: float, size: Size) -> str:
    return f"model {value:.3f}" if size is WIDE else f"model\n{value:.3f}"


def _floors(figure: Figure, evaluation: Record, theme: Theme, size: Size) -> None:
    model = evaluation["overall"]["perplexity_acgt"]
    axes = _axes(figure, size, 140 if size is WIDE else 84, "perplexity over A, C, G, T")
    axes.axhline(4.0, color=theme.muted, linewidth=1.0, linestyle=(0, (1, 3)))
    axes.axhline(model, color=theme.model)
    labels: list[Label] = [
        (4.0, "uniform 4", theme.muted),
        (model, _model_label(model, size), theme.model),
    ]
    shown = [4.0, model]
    orders: list[int] = []
    for fitted in (False, True):
        floors = [
            f for f in evaluation["floors"] if f["order"] is not None and f["fitted"] is fitted
        ]
        if not floors:
            continue
        orders = [floor["order"] for floor in floors]
        values = [floor["measure"]["perplexity_acgt"] for floor in floors]
        style: dict[str, Any] = (
            {"marker": "D", "markerfacecolor": theme.background, "linewidth": 1.2}
            if fitted
            else {"marker": "o"}
        )
        axes.plot(orders, values, color=theme.floor, markersize=4.5, **style)
        kind = "fitted rates" if fitted else "fixed rate"
        labels.append((values[-1], f"Markov, {kind}" if size is WIDE else kind, theme.floor))
        shown += [min(values), max(values)]
    # High orders that overfit may go far up; what is to be compared stays readable.
    best, highest = min(shown), max(4.0, model)
    low, high = _limits([best, min(max(shown), highest + 0.3 * (highest - best))])
    axes.set_ylim(low, high)
    labels = [(min(height, high), text, colour) for height, text, colour in labels]
    axes.set_xticks([order for order in orders if order % 2 == 0])
    axes.set_xlabel("order of the Markov model (bases of context)")
    _beside(axes, labels, size)

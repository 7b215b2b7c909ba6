"""The page of a benchmark: tables and plots in one self-contained HTML file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.errors import ReportError
from megabase.evaluate.metrics import confusion
from megabase.genome.files import write_whole
from megabase.report.plots import draw_lengths
from megabase.report.style import (
    LINE_STYLES,
    Figure,
    Size,
    Theme,
    as_svg,
    document,
    figure,
    padded,
    require_matplotlib,
    section,
    shortened,
    shown_name,
    table,
)

Record = Mapping[str, Any]
_Values = npt.NDArray[np.floating[Any]]
Describe = Callable[[str, str], tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]]
"""From (suite, task) to head, rows and notes of its table."""
_MOST_CLASSES = 12
"""Classes of a confusion matrix whose counts can still be read in the narrow picture."""


def write_benchmark_page(output: Path, lines: Sequence[Record], describe: Describe) -> Path:
    """Write ``results.html`` of a sweep; replaces an earlier one.

    `lines` are those of its summary, one for each model and task; `describe` gives head, rows and
    notes of the table of (suite, task). Where tasks differ by the length of their sequences,
    ``lengths.svg`` is written too. A :class:`ReportError` when there is no finished run.
    """
    require_matplotlib()
    if not lines:
        raise ReportError(f"{output} holds no finished run of a benchmark")
    protocols = ", ".join(dict.fromkeys(str(line["protocol"]) for line in lines))
    parts = [
        '<p class="kicker">megabase benchmark</p>',
        f"<h1>{', '.join(dict.fromkeys(str(line['suite']) for line in lines))}</h1>",
        f"<p class='note'>Protocol {protocols}. Bars are means over runs, lines across them the "
        "spread (standard deviation; half the range for cv5); diamonds are published results.</p>",
    ]
    measured = [line for line in lines if line["length"] is not None]
    if len({line["length"] for line in measured}) > 1:
        series: dict[str, list[tuple[int, float, float | None]]] = {}
        for line in measured:
            point = (line["length"], line["mean"], line["spread"])
            series.setdefault(str(line["model"]), []).append(point)
        axis = ("bases of a sequence", str(measured[0]["metric"]))
        draw = partial(draw_lengths, series, axis)
        write_whole(output / "lengths.svg", as_svg(draw))
        what = "; ".join(f"{i['model']} at {i['length']:,}: {i['mean']:.3f}" for i in measured)
        text = "The metric against the length of the sequences; lines across points are the spread."
        parts.append(section("Against length", [figure(draw, what, text)]))
    for suite, task in dict.fromkeys((line["suite"], line["task"]) for line in lines):
        mine = [line for line in lines if (line["suite"], line["task"]) == (suite, task)]
        parts.append(section(f"{suite}: {task}", _task_parts(mine, describe)))
    path = output / "results.html"
    write_whole(path, document("megabase benchmark", parts))
    return path


def _task_parts(lines: Sequence[Record], describe: Describe) -> list[str]:
    said = "; ".join(f"{line['model']} {line['mean']:.3f}" for line in lines)
    text = f"{lines[0]['metric']} of every model on the test rows."
    parts = [figure(partial(_draw_bars, lines), said, text)]
    head, rows, notes = describe(str(lines[0]["suite"]), str(lines[0]["task"]))
    parts.append(table(head, rows))
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    held = [(line, _outputs(Path(line["folders"][0]))) for line in lines]
    known = [(line, *found) for line, found in held if found is not None]
    two = [
        (str(line["model"]), outputs[:, 1] - outputs[:, 0], labels)
        for line, outputs, labels, classes in known
        if len(classes) == 2 and labels.ndim == 1
    ]
    if two:
        what = "ROC and precision-recall curves"
        text = f"{what} on the test rows, first run of each model."
        parts.append(figure(partial(_draw_curves, two), what, text))
    best = max(known, key=lambda item: item[0]["mean"], default=None)
    if best is not None and best[2].ndim == 1 and 2 <= len(best[3]) <= _MOST_CLASSES:
        line, outputs, labels, classes = best
        counts = confusion(outputs, labels)
        what = f"Confusion matrix of {line['model']}"
        text = f"{what}, first run: truth down, answer across."
        parts.append(figure(partial(_draw_confusion, counts, classes), what, text))
    return parts


def _outputs(folder: Path) -> tuple[Any, Any, list[str]] | None:
    file, record = folder / "outputs.npz", folder / "record.json"
    if not file.is_file() or not record.is_file():
        return None
    with np.load(file) as kept:
        outputs, labels = kept["test"], kept["test_labels"]
    return outputs, labels, list(json.loads(record.read_text())["classes"])


def _draw_bars(lines: Sequence[Record], figure: Figure, theme: Theme, size: Size) -> None:
    """Draw mean and spread of the models of a task (``summary.parquet``), and the published."""
    shown = [line for line in lines if not math.isnan(line["mean"])][::-1]
    widest = max((len(line["model"]) for line in shown), default=1)
    left = min(0.64 * size.text * widest + 16, 0.45 * size.width)
    axes = size.axes(figure, left, 3.6 * size.text, 4.5 * size.text, 8.0)
    for place, line in enumerate(shown):
        color = theme.baseline if str(line["model"]).startswith("kmer") else theme.model
        axes.barh(place, line["mean"], height=0.6, color=color, alpha=0.85)
        if line["spread"] is not None:
            axes.errorbar(line["mean"], place, xerr=line["spread"], color=theme.ink, capsize=3,
                          linewidth=1.2)  # fmt: skip
        if line["published"] is not None:
            axes.plot(line["published"], place, marker="D", color=theme.ink, markersize=5,
                      fillstyle="none")  # fmt: skip
        # At the foot of the bar, where neither error nor published mark can lie.
        axes.annotate(
            f"{line['mean']:.3f}", (0.0, place), xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0), textcoords="offset points", va="center", color=theme.background,
        )  # fmt: skip
    names = [shortened(str(line["model"]), left - 12, size.text) for line in shown]
    axes.set_yticks(range(len(shown)), names)
    if not shown:
        axes.text(0.5, 0.5, "no model has a result", transform=axes.transAxes, ha="center")
    values = [line[key] for line in shown for key in ("mean", "published") if line[key] is not None]
    low, _ = padded(values, 0.1) if values else (0.0, 1.0)
    # Bars start at zero unless all of them are far above it.
    axes.set_xlim(max(0.0, math.floor(low * 10 - 1) / 10) if low > 0.5 else min(0.0, low), None)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(str(lines[0]["metric"]))


def _binary_curves(scores: _Values, labels: npt.NDArray[Any]) -> dict[str, tuple[_Values, _Values]]:
    """Give (x, y) of the ROC and precision-recall curves, one point for each distinct score."""
    _, place = np.unique(-scores, return_inverse=True)
    sides = ((labels == 1) == side for side in (False, True))
    false, true = (np.cumsum(np.bincount(place.reshape(-1), weights=own)) for own in sides)
    recall = true / max(true[-1], 1.0)
    return {
        "roc": (np.append(0.0, false / max(false[-1], 1.0)), np.append(0.0, recall)),
        "pr": (recall, true / (true + false)),
    }


def _draw_curves(
    series: Sequence[tuple[str, _Values, npt.NDArray[Any]]], figure: Figure, theme: Theme,
    size: Size,
) -> None:  # fmt: skip
    """Draw ROC and precision-recall curves of (model, scores (n,), labels (n,)), side by side."""
    side_by_side = size.width > size.height * 1.5
    grid = figure.subplots(1, 2) if side_by_side else figure.subplots(2, 1)
    left = 0.09 if side_by_side else 0.16
    figure.subplots_adjust(left=left, right=0.97, bottom=0.16, top=0.95, wspace=0.25, hspace=0.6)
    names = {"roc": ("false positive rate", "true positive rate"), "pr": ("recall", "precision")}
    for axes, kind in zip(np.ravel(grid), ("roc", "pr"), strict=True):
        for number, (model, scores, labels) in enumerate(series):
            x, y = _binary_curves(scores, labels)[kind]
            color = theme.baseline if model.startswith("kmer") else theme.model
            axes.plot(
                x, y, LINE_STYLES[number % 4], label=shown_name(model), color=color, linewidth=1.5,
                alpha=1.0 - 0.12 * (number % 5),
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=names[kind][0], ylabel=names[kind][1])
        axes.grid()
    np.ravel(grid)[0].legend(frameon=False, loc="lower right", fontsize=size.text - 3)


def _draw_confusion(
    table: npt.NDArray[np.int64], classes: Sequence[str], figure: Figure, theme: Theme, size: Size
) -> None:
    """Draw a confusion matrix (C, C), truth down, prediction across: shares of each true class."""
    from matplotlib.colors import LinearSegmentedColormap

    # Words that all names begin with (a genus) say nothing here.
    first = {name.split(" ")[0] for name in classes}
    short_names = [name.split(" ", 1)[-1] if len(first) == 1 else name for name in classes]
    names = [name if len(name) <= 16 else f"{name[:15]}." for name in short_names]
    left = 0.62 * size.text * max(map(len, names)) + 2.2 * size.text
    several = len(names) > 3
    bottom = (0.36 * max(map(len, names)) + 3.2 if several else 3.6) * size.text
    side = min(size.width - left - 10, size.height - bottom - 0.6 * size.text)
    right, top = size.width - left - side, size.height - bottom - side
    axes = size.axes(figure, left, bottom, right, top)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    colors = LinearSegmentedColormap.from_list("share", [theme.faint, theme.model])
    axes.imshow(shares, cmap=colors, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        ink = theme.background if shares[row, column] > 0.5 else theme.ink
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=ink,
                  fontsize=size.text - (1 if len(names) < 6 else 4))  # fmt: skip
    turn: dict[str, Any] = {"rotation": 30, "ha": "right"} if several else {}
    axes.set_xticks(range(len(names)), names, **turn)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="answer", ylabel="truth")

"""The page of a benchmark: tables and plots in one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from megabase.errors import ReportError
from megabase.genome.files import write_whole
from megabase.report import benchmark_plots as plots
from megabase.report.page import document, figure, section, table
from megabase.report.plots import draw_lengths
from megabase.report.style import Draw, as_svg, require_matplotlib

Record = Mapping[str, Any]
Describe = Callable[[str, str], tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]]
"""From (suite, task) to head, rows and notes of its table."""
_MOST_CLASSES = 12
"""Classes of a confusion matrix whose counts can still be read in the narrow picture."""


def write_benchmark_page(output: Path, describe: Describe | None = None) -> Path:
    """Write ``results.html`` of a sweep from the files in its folder; replaces an earlier one.

    Where tasks differ by the length of their sequences, ``lengths.svg`` is written too. `describe`
    gives head, rows and notes of the table of (suite, task); None leaves tables out. A
    :class:`ReportError` when there is no finished run.
    """
    require_matplotlib()
    lines = _lines(output)
    protocols = ", ".join(dict.fromkeys(str(line["protocol"]) for line in lines))
    parts = [
        '<p class="kicker">megabase benchmark</p>',
        f"<h1>{', '.join(dict.fromkeys(str(line['suite']) for line in lines))}</h1>",
        f"<p class='note'>Protocol {protocols}. Bars are means over runs, lines across them the "
        "spread (standard deviation; half the range for cv5); diamonds are published results.</p>",
    ]
    measured = [line for line in lines if line["length"] is not None]
    if len({line["length"] for line in measured}) > 1:
        draw = _lengths(measured)
        write_whole(output / "lengths.svg", as_svg(draw))
        what = "; ".join(f"{i['model']} at {i['length']:,}: {i['mean']:.3f}" for i in measured)
        text = "The metric against the length of the sequences; lines across points are the spread."
        parts.append(section("Against length", [figure(draw, what, text)]))
    for suite, task in dict.fromkeys((line["suite"], line["task"]) for line in lines):
        mine = [line for line in lines if (line["suite"], line["task"]) == (suite, task)]
        parts.append(section(f"{suite}: {task}", _task_parts(output, mine, describe)))
    path = output / "results.html"
    write_whole(path, document("megabase benchmark", parts))
    return path


def _lines(output: Path) -> Sequence[Record]:
    """Read the rows of the table."""
    import polars as pl

    file = output / "summary.parquet"
    lines: Sequence[Record] = pl.read_parquet(file).to_dicts() if file.is_file() else []
    if not lines:
        raise ReportError(f"{output} holds no finished run of a benchmark")
    return lines


def _lengths(lines: Sequence[Record]) -> Draw:
    series: dict[str, list[tuple[int, float, float | None]]] = {}
    for line in lines:
        point = (line["length"], line["mean"], line["spread"])
        series.setdefault(str(line["model"]), []).append(point)
    return partial(draw_lengths, series, ("bases of a sequence", str(lines[0]["metric"])), None)


def _task_parts(output: Path, lines: Sequence[Record], describe: Describe | None) -> list[str]:
    parts = [
        figure(
            partial(plots.draw_bars, lines),
            "; ".join(f"{line['model']} {line['mean']:.3f}" for line in lines),
            f"{lines[0]['metric']} of every model on the test rows.",
        )
    ]
    if describe is not None:
        head, rows, notes = describe(str(lines[0]["suite"]), str(lines[0]["task"]))
        parts.append(table(head, rows))
        parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    held = [(line, _outputs(output / line["folders"][0])) for line in lines]
    known = [(line, *found) for line, found in held if found is not None]
    two = [
        (str(line["model"]), outputs[:, 1] - outputs[:, 0], labels)
        for line, outputs, labels, classes in known
        if len(classes) == 2 and labels.ndim == 1
    ]
    if two:
        what = "ROC and precision-recall curves"
        text = f"{what} on the test rows, first run of each model."
        parts.append(figure(partial(plots.draw_curves, two), what, text))
    best = max(known, key=lambda item: item[0]["mean"], default=None)
    if best is not None and best[2].ndim == 1 and 2 <= len(best[3]) <= _MOST_CLASSES:
        line, outputs, labels, classes = best
        count = len(classes)
        pairs = labels * count + outputs.argmax(axis=1)
        counts = np.bincount(pairs, minlength=count * count).reshape(count, count)
        what = f"Confusion matrix of {line['model']}"
        text = f"{what}, first run: truth down, answer across."
        parts.append(figure(partial(plots.draw_confusion, counts, classes), what, text))
    picture = output / "pictures" / f"{lines[0]['suite']}.{lines[0]['task']}.json"
    record = json.loads(picture.read_text()) if picture.is_file() else {"items": []}
    parts += [
        figure(
            partial(plots.draw_points, item),
            f"Picture of the embedding of {item['model']}",
            f"Embedding of {item['model']} in two dimensions ({record['method']}), one point a "
            "test sequence, colored by class.",
        )
        for item in record["items"]
    ]
    return parts


def _outputs(folder: Path) -> tuple[Any, Any, list[str]] | None:
    file, record = folder / "outputs.npz", folder / "record.json"
    if not file.is_file() or not record.is_file():
        return None
    with np.load(file) as kept:
        outputs, labels = kept["test"], kept["test_labels"]
    return outputs, labels, list(json.loads(record.read_text())["classes"])

"""From the records of a sweep to its tables: tidy rows, one line for each model, Markdown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megabase.benchmarking.rows import PROTOCOLS, describe_leaks
from megabase.evaluate.metrics import bootstrap_interval
from megabase.genome.files import atomic_file, write_whole
from megabase.tasks.run import markdown_table, spread

_FAMILY_NAMES = {
    "hyenadna": "HyenaDNA", "gpt": "GPT", "mamba": "Mamba", "cnn": "CNN", "dnabert": "DNABERT",
    "deepsea": "DeepSEA", "bigbird": "BigBird",
}  # fmt: skip
"""Family -> its name in the tables of papers."""
_METRIC_NAMES = {"mcc": "MCC", "f1": "F1", "auroc": "AUROC", "auprc": "AUPRC"}
"""Metrics that are written in capitals."""


@dataclass(frozen=True)
class _Line:
    """One model on one task: all its runs."""

    suite: str
    task: str
    model: str
    protocol: str
    metric: str
    mean: float
    """Mean over runs."""
    spread: float | None
    """Standard deviation over runs (cv5: half their range); None for one run."""
    low: float | None
    """Lower end of the 95 % interval of the mean, by resampling test rows."""
    high: float | None
    runs: int
    parameters: int
    minutes: float
    """Of one run, on average."""
    total_minutes: float
    """Of all runs and the tuning."""
    published: float | None
    """Figure of the same model in a paper."""
    published_source: str | None
    difference: float | None
    """Mean minus published figure."""
    length: int | None
    folders: tuple[str, ...]
    """Folders of the runs."""


def read_records(output: Path) -> list[dict[str, Any]]:
    """Read the records of all finished runs of a sweep; ``path`` is the folder of each."""
    records: list[dict[str, Any]] = []
    for file in sorted((output / "runs").glob("*/*/record.json")):
        records.append({**json.loads(file.read_text()), "path": str(file.parent)})
    return records


def lines(
    records: Sequence[Mapping[str, Any]], order: Sequence[str] = (), resamples: int = 500
) -> list[_Line]:
    """Summarize runs: one line for each task, model, protocol and setting.

    Models are in the given order, others follow; `resamples` are behind the intervals, 0 gives
    none.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        key = (record["suite"], record["task"], record["protocol"], record["model"], record["key"])
        groups.setdefault(key, []).append(record)
    names: dict[tuple[str, ...], set[str]] = {}
    for suite, task, protocol, model, key in groups:
        names.setdefault((suite, task, protocol, model), set()).add(key)
    place = {name: number for number, name in enumerate(order)}

    def rank(item: tuple[str, ...]) -> tuple[Any, ...]:
        suite, task, protocol, model, key = item
        length = groups[item][0]["length"] or 0
        return suite, length, task, protocol, place.get(model, len(place)), model, key

    found: list[_Line] = []
    for key in sorted(groups, key=rank):
        runs = sorted(groups[key], key=lambda r: (r["seed"], r["fold"] or 0))
        several = len(names[key[:4]]) > 1
        name = f"{key[3]} #{key[4][:4]}" if several else key[3]
        found.append(_line(runs, name, resamples))
    return found


def _line(runs: Sequence[Mapping[str, Any]], name: str, resamples: int) -> _Line:
    first = runs[0]
    metric = first["metric"]
    values = [math.nan if r["test"].get(metric) is None else r["test"][metric] for r in runs]
    mean, deviation = spread(values)
    if first["protocol"] == "cv5" and len(values) > 1:
        deviation = (max(values) - min(values)) / 2
    low, high = None, None
    if resamples and not math.isnan(mean):
        key = tuple((r["path"], r["test_rows"]) for r in runs)
        low, high = bootstrap_interval(key, first["kind"], metric, resamples)
    said = _published(first)
    seconds = sum(r["seconds"] for r in runs)
    return _Line(
        **{name: first[name] for name in ("suite", "task", "protocol", "parameters", "length")},
        model=name, metric=metric, mean=mean, spread=deviation, low=low, high=high,
        runs=len(runs), minutes=seconds / len(runs) / 60,
        total_minutes=(seconds + first["tuning_seconds"]) / 60,
        published=None if said is None else said["value"],
        published_source=None if said is None else f"{said['model']}, {said['source']}",
        difference=None if said is None else mean - said["value"],
        folders=tuple(str(r["path"]) for r in runs),
    )  # fmt: skip


def _model_name(record: Mapping[str, Any]) -> str | None:
    """Name the published model that a run is to be compared with."""
    if record["compare"] is not None:
        return record["compare"]
    family, overrides = record["family"], record["overrides"] or {}
    if family == "caduceus":
        return "Caduceus-PS" if overrides.get("rcps") else "Caduceus-Ph"
    name = _FAMILY_NAMES.get(family)
    fresh = record["start"].endswith("scratch") or record["start"] == family
    return f"{name} from scratch" if fresh and family in ("hyenadna", "gpt") else name


def _published(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    name = _model_name(record)
    items = [p for p in record["published"] if p["metric"] == record["metric"]]
    for wanted in (name, name and name.removesuffix(" from scratch")):
        fitting = [p for p in items if p["model"] == wanted]
        same = [p for p in fitting if p["protocol"] == record["protocol"]]
        if fitting:
            return (same or fitting)[0]
    return None


def _cell(value: float | None, digits: int = 3, sign: bool = False) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def markdown(found: Sequence[_Line], records: Sequence[Mapping[str, Any]]) -> str:
    """Write the tables of a sweep, task by task, with protocol, leaks and published figures."""
    parts = ["# Benchmark"]
    for protocol in dict.fromkeys(line.protocol for line in found):
        parts.append(f"Protocol **{protocol}**: {PROTOCOLS[protocol]}.")
    parts.append(
        "The interval is the 95 % bootstrap over test rows of the mean. Minutes are wall-clock on "
        "this machine; a model that was tuned spent the rest of its minutes on that."
    )
    tasks = dict.fromkeys((line.suite, line.task) for line in found)
    for suite, task in tasks:
        mine = [line for line in found if (line.suite, line.task) == (suite, task)]
        own = [r for r in records if (r["suite"], r["task"]) == (suite, task)]
        parts.append(f"## {suite}: {task}")
        parts.append(markdown_table(*_table_cells(mine, own)))
        parts += [f"- {note}" for note in _task_notes(own)]
    return "\n\n".join(_joined(parts)) + "\n"


def _joined(parts: Iterable[str]) -> list[str]:
    """Keep the items of a list together."""
    blocks: list[str] = []
    for part in parts:
        if part.startswith("- ") and blocks and blocks[-1].startswith("- "):
            blocks[-1] += f"\n{part}"
        else:
            blocks.append(part)
    return blocks


def _table_cells(
    found: Sequence[_Line], records: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Give the head and the rows of a task's table as text."""
    metric = found[0].metric
    groups = list(records[0]["groups"])
    apart = _metrics_apart(records)
    head = [
        "model", "protocol", _METRIC_NAMES.get(metric, metric), "+-", "95 % interval", "runs",
        *(f"{_METRIC_NAMES.get(name, name)} apart" for name in apart),
        *(f"median AUROC {group}" for group in groups),
        "parameters", "minutes a run", "minutes in all", "published", "difference", "published as",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for line in found:
        interval_text = "" if line.low is None else f"{_cell(line.low)} to {_cell(line.high)}"
        own = [record for record in records if record["path"] in line.folders]
        further = [_mean(record.get("test_apart", {}).get(name) for record in own)
                   for name in apart]  # fmt: skip
        further += [_mean(record["test"].get(f"median_auroc_{group}") for record in own)
                    for group in groups]  # fmt: skip
        rows.append(
            [
                line.model, line.protocol, _cell(line.mean), _cell(line.spread), interval_text,
                f"{line.runs}", *map(_cell, further), f"{line.parameters:,}", f"{line.minutes:.1f}",
                f"{line.total_minutes:.1f}", _cell(line.published),
                _cell(line.difference, sign=True), line.published_source or "",
            ]
        )  # fmt: skip
    return head, rows


def _metrics_apart(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Choose the metrics shown for the test rows that are in no other split; none without such."""
    metric = records[0]["metric"]
    if not any("test_apart" in record for record in records):
        return []
    # Accuracy says little where the rows that are left are mostly of one class.
    return [metric, "mcc"] if metric == "accuracy" and "mcc" in records[0]["metrics"] else [metric]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _task_notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what a reader of a task's metrics has to know: rows, leaks, comparability."""
    first = records[0]
    notes: list[str] = []
    rows = ", ".join(f"{count:,} {name}" for name, count in first["rows"].items())
    notes.append(f"Rows: {rows}; classes: {', '.join(first['classes'][:12])}"
                 + (", ..." if len(first["classes"]) > 12 else "") + ".")  # fmt: skip
    counts = dict.fromkeys(r["rows_apart"] for r in records if "rows_apart" in r)
    if counts:
        numbers = " or ".join(f"{count:,}" for count in counts)
        notes.append(
            f"Apart: over the {numbers} test rows that equal or nearly equal no training or "
            "validation row."
        )
    said: list[str] = []
    for record in records:
        for note in record["notes"]:
            if note.startswith("leaks:"):
                # SWEEP/runs/TASK/RUN -> SWEEP/leaks
                file = Path(record["path"]).parents[2] / "leaks" / note.removeprefix("leaks:")
                if file.is_file():
                    note = f"Leak check: {describe_leaks(json.loads(file.read_text()))}"
            said.append(note)
    notes += [note[:1].upper() + note[1:].rstrip(".") + "." for note in dict.fromkeys(said)]
    if first["published"]:
        protocols = dict.fromkeys(p["protocol"] for p in first["published"])
        here = dict.fromkeys(r["protocol"] for r in records)
        ways = " and ".join(protocols)
        text = f"Published figures were made by protocol {ways}; these by {' and '.join(here)}"
        if not first["official"]:
            text += ", on other test rows: the difference says little"
        elif set(here) - set(protocols):
            text += ": compare with care"
        notes.append(text + ".")
        shown = "; ".join(
            f"{p['model']} "
            + ("" if p["metric"] == first["metric"] else f"{p['metric']} ")
            + f"{p['value']:.3f}"
            + ("" if p["spread"] is None else f" +- {p['spread']:.3f}")
            + f" ({p['source']})"
            for p in first["published"]
        )
        notes.append(f"Published: {shown}.")
    chosen = dict.fromkeys(
        f"{r['model']}: {', '.join(f'{k} {v}' for k, v in r['chosen'].items())}"
        for r in records
        if r.get("chosen")
    )
    if chosen:
        notes.append(f"Chosen on validation: {'; '.join(chosen)}.")
    return notes


def table_of(
    found: Sequence[_Line], records: Sequence[Mapping[str, Any]]
) -> Callable[[str, str], tuple[list[str], list[list[str]], list[str]]]:
    """Give a function from (suite, task) to head, rows and notes of its table, for the page."""

    def describe(suite: str, task: str) -> tuple[list[str], list[list[str]], list[str]]:
        mine = [line for line in found if (line.suite, line.task) == (suite, task)]
        own = [r for r in records if (r["suite"], r["task"]) == (suite, task)]
        return *_table_cells(mine, own), _task_notes(own)

    return describe


def write_tables(
    output: Path, found: Sequence[_Line], records: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write results.parquet (a row for each run and metric), summary.parquet and results.md."""
    import polars as pl

    tidy: list[dict[str, Any]] = []
    for record in records:
        rows = {**record["rows"], "test_apart": record.get("rows_apart")}
        for split in ("valid", "test", "test_apart"):
            for metric, value in record.get(split, {}).items():
                tidy.append({
                    **{k: record[k] for k in ("suite", "task", "model", "start", "family")},
                    **{k: record[k] for k in ("key", "protocol", "seed", "fold", "length")},
                    "split": split, "metric": metric, "value": value, "rows": rows[split],
                    "official_test": record["official"], "parameters": record["parameters"],
                    "minutes": record["seconds"] / 60,
                    "tuning_minutes": record["tuning_seconds"] / 60,
                    "folder": os.path.relpath(record["path"], output),
                })  # fmt: skip
    summary = [
        {**asdict(line), "folders": [os.path.relpath(f, output) for f in line.folders]}
        for line in found
    ]
    written: list[Path] = []
    for name, rows in (("results.parquet", tidy), ("summary.parquet", summary)):
        path = output / name
        with atomic_file(path, overwrite=True) as file:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(file)
        written.append(path)
    path = output / "results.md"
    write_whole(path, markdown(found, records))
    return [*written, path]

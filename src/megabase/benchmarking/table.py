"""From the records of a sweep to its tables: tidy rows, one line for each model, Markdown."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from megabase.benchmarking.rows import PROTOCOLS, describe_leaks
from megabase.evaluate.metrics import VARIANT_METRICS, bootstrap_interval
from megabase.genome.files import atomic_file, write_whole

_FAMILY_NAMES = {
    "hyenadna": "HyenaDNA", "gpt": "GPT", "mamba": "Mamba", "cnn": "CNN", "dnabert": "DNABERT",
    "deepsea": "DeepSEA", "bigbird": "BigBird",
}  # fmt: skip
"""Family -> its name in the tables of papers."""
_METRIC_NAMES = VARIANT_METRICS | {"mcc": "MCC", "f1": "F1"}
"""Metrics that are written otherwise than they are named."""
_Record = Mapping[str, Any]
"""A run (``record.json`` and the ``path`` of its folder), or a line of a table."""


class Tables:
    """The tables of finished runs: one line for each task, model, protocol and setting.

    `folders` are output folders of sweeps, of which some may hold the same run. Models are in the
    given order, others follow; `resamples` are behind the intervals, 0 gives none.
    """

    def __init__(self, *folders: Path, order: Sequence[str] = (), resamples: int = 500) -> None:
        runs: dict[tuple[str, ...], dict[str, Any]] = {}
        for folder in folders:
            for file in sorted((folder / "runs").glob("*/*/record.json")):
                record = {**json.loads(file.read_text()), "path": str(file.parent)}
                # A run in two sweeps (a baseline of both) is one: its folder's name says all of it.
                runs.setdefault((record["suite"], record["task"], record["folder"]), record)
        self.records = list(runs.values())
        groups: dict[tuple[str, ...], list[_Record]] = {}
        for record in self.records:
            key = tuple(record[x] for x in ("suite", "task", "protocol", "model", "key"))
            groups.setdefault(key, []).append(record)
        place = {name: number for number, name in enumerate(order)}

        def rank(item: tuple[str, ...]) -> tuple[Any, ...]:
            suite, task, protocol, model, key = item
            length, number = groups[item][0]["length"] or 0, groups[item][0].get("number", 0)
            return suite, length, task, protocol, place.get(model, len(place)), number, model, key

        self.lines: list[dict[str, Any]] = []
        """Rows of ``summary.parquet``: ``spread`` is the standard deviation over runs (cv5: half of
        their range), ``low`` to ``high`` the 95 % interval of the mean, from resampled rows."""
        for key in sorted(groups, key=rank):
            held = sorted(groups[key], key=lambda r: (r["seed"], r["fold"] or 0))
            several = sum(other[:4] == key[:4] for other in groups) > 1
            name = f"{key[3]} #{key[4][:4]}" if several else key[3]
            self.lines.append(_line(held, name, resamples))

    def of(self, suite: str, task: str) -> tuple[list[str], list[list[str]], list[str]]:
        """Give head, rows and notes of the table of a task."""
        own = [r for r in self.records if (r["suite"], r["task"]) == (suite, task)]
        lines = [line for line in self.lines if (line["suite"], line["task"]) == (suite, task)]
        return *_table_cells(lines, own), _task_notes(own)

    def markdown(self) -> str:
        """Give the tables, task by task, with protocol, leaks and published figures."""
        parts = ["# Benchmark"]
        for protocol in dict.fromkeys(line["protocol"] for line in self.lines):
            parts.append(f"Protocol **{protocol}**: {PROTOCOLS[protocol]}.")
        parts.append(
            "The interval is the 95 % bootstrap over test rows of the mean. Minutes are wall-clock "
            "on this machine; a model that was tuned spent the rest of its minutes on that."
        )
        for suite, task in dict.fromkeys((line["suite"], line["task"]) for line in self.lines):
            head, rows, notes = self.of(suite, task)
            table = (f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
            parts += [f"## {suite}: {task}", "\n".join(table)]
            parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def write(self, output: Path) -> list[Path]:
        """Write results.parquet (a row for each run and metric), summary.parquet and results.md."""
        tidy: list[dict[str, Any]] = []
        for record in self.records:
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
            {**line, "folders": [os.path.relpath(f, output) for f in line["folders"]]}
            for line in self.lines
        ]
        for name, rows in (("results", tidy), ("summary", summary)):
            with atomic_file(output / f"{name}.parquet", overwrite=True) as file:
                pl.DataFrame(rows, infer_schema_length=None).write_parquet(file)
        write_whole(output / "results.md", self.markdown())
        return [output / name for name in ("results.parquet", "summary.parquet", "results.md")]


def _line(runs: Sequence[_Record], name: str, resamples: int) -> dict[str, Any]:
    first = runs[0]
    metric = first["metric"]
    values = [math.nan if r["test"].get(metric) is None else r["test"][metric] for r in runs]
    mean = sum(values) / len(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if first["protocol"] == "cv5" and len(values) > 1:
        deviation = (max(values) - min(values)) / 2
    low, high = None, None
    if "intervals" in first:
        low, high = first["intervals"].get(metric, (None, None))
    elif resamples and not math.isnan(mean):
        key = tuple((r["path"], r["test_rows"]) for r in runs)
        low, high = bootstrap_interval(key, first["kind"], metric, resamples)
    said = _published(first)
    seconds = sum(r["seconds"] for r in runs)
    return {
        "suite": first["suite"], "task": first["task"], "model": name,
        "protocol": first["protocol"], "metric": metric, "mean": mean, "spread": deviation,
        "low": low, "high": high, "runs": len(runs), "parameters": first["parameters"],
        "minutes": seconds / len(runs) / 60,
        "total_minutes": (seconds + first["tuning_seconds"]) / 60,
        "published": said and said["value"],
        "published_source": said and f"{said['model']}, {said['source']}",
        "difference": said and mean - said["value"],
        "length": first["length"], "folders": [r["path"] for r in runs],
    }  # fmt: skip


def _published(record: _Record) -> _Record | None:
    """Find the figure that a run is to be compared with: that of `compare`, or of its family."""
    family, name = record["family"], record["compare"]
    if name is None:
        name = _FAMILY_NAMES.get(family)
        if family == "caduceus":
            name = "Caduceus-PS" if (record["overrides"] or {}).get("rcps") else "Caduceus-Ph"
        fresh = record["start"].endswith("scratch") or record["start"] == family
        if fresh and family in ("hyenadna", "gpt"):
            name = f"{name} from scratch"
    items = [p for p in record["published"] if p["metric"] == record["metric"]]
    for wanted in (name, name and name.removesuffix(" from scratch")):
        fitting = [p for p in items if p["model"] == wanted]
        same = [p for p in fitting if p["protocol"] == record["protocol"]]
        if fitting:
            return (same or fitting)[0]
    return None


def _cell(value: float | None, form: str = ".3f") -> str:
    return "" if value is None or math.isnan(value) else f"{value:{form}}"


def _estimate(record: _Record, metric: str) -> str:
    value, (low, high) = record["test"][metric], record["intervals"].get(metric, (None, None))
    return _cell(value) + ("" if low is None else f" ({_cell(low)} to {_cell(high)})")


def _table_cells(
    lines: Sequence[_Record], records: Sequence[_Record]
) -> tuple[list[str], list[list[str]]]:
    metric = lines[0]["metric"]
    groups = list(records[0]["groups"])
    apart = [metric] if any("test_apart" in record for record in records) else []
    # Accuracy says little where the rows that are left are mostly of one class.
    apart += ["mcc"] if apart == ["accuracy"] and "mcc" in records[0]["metrics"] else []
    measured = [name for name in records[0].get("intervals", ()) if name != metric]
    head = [
        "model", "protocol", _METRIC_NAMES.get(metric, metric), "+-", "95 % interval", "runs",
        *(f"{_METRIC_NAMES.get(name, name)} apart" for name in apart),
        *(f"median AUROC {group}" for group in groups), *(_METRIC_NAMES[x] for x in measured),
        "parameters", "minutes a run", "minutes in all", "published", "difference", "published as",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for line in lines:
        interval = "" if line["low"] is None else f"{_cell(line['low'])} to {_cell(line['high'])}"
        own = [record for record in records if record["path"] in line["folders"]]
        further = [_mean(record.get("test_apart", {}).get(name) for record in own)
                   for name in apart]  # fmt: skip
        further += [_mean(record["test"].get(f"median_auroc_{group}") for record in own)
                    for group in groups]  # fmt: skip
        rows.append([
            line["model"], line["protocol"], _cell(line["mean"]), _cell(line["spread"]), interval,
            f"{line['runs']}", *map(_cell, further), *(_estimate(own[0], x) for x in measured),
            f"{line['parameters']:,}",
            f"{line['minutes']:.1f}", f"{line['total_minutes']:.1f}", _cell(line["published"]),
            _cell(line["difference"], "+.3f"), line["published_source"] or "",
        ])  # fmt: skip
    return head, rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _task_notes(records: Sequence[_Record]) -> list[str]:
    """Say what a reader of a task's metrics has to know: rows, leaks, comparability."""
    first = records[0]
    rows = ", ".join(f"{count:,} {name}" for name, count in first["rows"].items())
    more = ", ..." if len(first["classes"]) > 12 else ""
    notes = [f"Rows: {rows}; classes: {', '.join(first['classes'][:12])}{more}."]
    counts = dict.fromkeys(r["rows_apart"] for r in records if "rows_apart" in r)
    if counts:
        numbers = " or ".join(f"{count:,}" for count in counts)
        row = "test rows that equal or nearly equal no training or validation row"
        notes.append(f"Apart: over the {numbers} {row}.")
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
        text = f"Published figures were made by protocol {' and '.join(protocols)}; "
        text += f"these by {' and '.join(here)}"
        if not first["official"]:
            text += ", on other test rows: the difference says little"
        elif set(here) - set(protocols):
            text += ": compare with care"
        notes.append(text + ".")
        shown = []
        for p in first["published"]:
            metric = "" if p["metric"] == first["metric"] else f"{p['metric']} "
            around = "" if p["spread"] is None else f" +- {p['spread']:.3f}"
            shown.append(f"{p['model']} {metric}{p['value']:.3f}{around} ({p['source']})")
        notes.append(f"Published: {'; '.join(shown)}.")
    chosen = dict.fromkeys(
        f"{r['model']}: {', '.join(f'{k} {v}' for k, v in r['chosen'].items())}"
        for r in records
        if r.get("chosen")
    )
    if chosen:
        notes.append(f"Chosen on validation: {'; '.join(chosen)}.")
    return notes

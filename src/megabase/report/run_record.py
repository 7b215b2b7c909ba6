"""What a run folder tells, read from its files: no model is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabase.errors import ReportError
from megabase.untrusted import parse_yaml, parsing, read_json, read_text, shown

__all__ = ["RunRecord", "read_evaluation", "read_run"]

Record = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run folder.

    Parameters
    ----------
    folder
        The run folder.
    config, data, environment
        ``config.yaml``, ``data.json``, ``environment.json``.
    metrics
        Records of ``metrics.jsonl``, in order.
    model
        ``config.json`` of the best checkpoint (of the last one without validation).
    parameters
        Number of trained weights of that checkpoint, shared ones counted once.
    checkpoint
        Name of that checkpoint.
    """

    folder: Path
    config: Record
    data: Record
    environment: Record
    metrics: tuple[Record, ...]
    model: Record
    parameters: int
    checkpoint: str

    def of_kind(self, kind: str) -> list[Record]:
        """Give the metrics of one kind."""
        return [record for record in self.metrics if record.get("kind") == kind]


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder.

    Raises
    ------
    ReportError
        When the folder is no run folder, a file in it is missing or broken, or no step has been
        recorded yet.
    """
    run = Path(folder)
    if not (run / "metrics.jsonl").is_file():
        raise ReportError(
            f"{run} is no run folder: it has no metrics.jsonl; name the folder that "
            "`megabase pretrain` wrote to"
        )
    metrics = _read_lines(run / "metrics.jsonl")
    if not any(record.get("kind") == "train" for record in metrics):
        raise ReportError(f"{run / 'metrics.jsonl'} holds no training step yet")
    settings = run / "config.yaml"
    config = parse_yaml(read_text(settings, ReportError), settings, ReportError)
    if not isinstance(config, dict):
        raise ReportError(f"{settings}: expected the settings of a run, found {shown(config)}")
    best = next((run / name for name in ("best", "last") if (run / name).is_dir()), None)
    if best is None:
        raise ReportError(f"{run} holds no checkpoint yet (neither best nor last)")
    return RunRecord(
        folder=run,
        config=config,
        data=read_json(run / "data.json", ReportError),
        environment=read_json(run / "environment.json", ReportError),
        metrics=tuple(metrics),
        model=read_json(best / "config.json", ReportError),
        parameters=_count_parameters(best),
        checkpoint=best.resolve().name,
    )


def read_evaluation(path: str | Path) -> Record:
    """Read the JSON of an evaluation.

    Raises
    ------
    ReportError
        When the file cannot be read or is no evaluation.
    """
    record = read_json(path, ReportError)
    if record.get("kind") != "evaluation":
        raise ReportError(
            f"{path} is no evaluation (kind {record.get('kind')!r}); "
            "`megabase evaluate --json` writes one"
        )
    return record


def _read_lines(path: Path) -> list[Record]:
    lines: Sequence[str] = read_text(path, ReportError).splitlines()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, found {shown(record)}")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # the line a running or killed process was writing
            raise ReportError(f"{path}, line {number} is not a JSON record: {error}") from error
        records.append(record)
    return records


def _count_parameters(checkpoint: Path) -> int:
    """Count what the optimizer moves: one first moment for each trained parameter.

    The model's own file would count constant tables too (positions of a filter, say).
    """
    moments = checkpoint / "training_state" / "optimizer.safetensors"
    trained = {name: size for name, size in _sizes(moments).items() if name.endswith("exp_avg")}
    return sum((trained or _sizes(checkpoint / "model.safetensors")).values())


def _sizes(path: Path) -> dict[str, int]:
    """Read the header of a safetensors file (8 bytes of length, then JSON): values by tensor."""
    if not path.is_file():
        return {}
    with parsing(path, ReportError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
        return {
            name: math.prod(entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }

"""What a run folder tells, read from its files: no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabase.errors import ReportError
from megabase.training.run_folder import RunFolder
from megabase.untrusted import read_json

Record = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run folder: its files, and ``config.json`` of its chosen checkpoint.

    That is the best checkpoint, the last one without validation; `parameters` counts its trained
    weights, shared ones once.
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
    """Read a run folder; a :class:`ReportError` when it is none, damaged, or without a step yet."""
    run = Path(folder)
    if not (run / "metrics.jsonl").is_file():
        raise ReportError(
            f"{run} is not a run folder: it has no metrics.jsonl; name the folder that "
            "`megabase pretrain` wrote to"
        )
    reader = RunFolder(run, ReportError)
    metrics = reader.metrics()
    if not any(record.get("kind") == "train" for record in metrics):
        raise ReportError(f"{run / 'metrics.jsonl'} holds no training step yet")
    config = reader.config()
    best = reader.checkpoint()
    if best is None:
        raise ReportError(f"{run} holds no checkpoint yet (neither best nor last)")
    return RunRecord(
        folder=run,
        config=config,
        data=reader.record("data.json"),
        environment=reader.record("environment.json"),
        metrics=tuple(metrics),
        model=read_json(best / "config.json", ReportError),
        parameters=reader.parameters(best),
        checkpoint=best.resolve().name,
    )


def read_evaluation(path: str | Path) -> Record:
    """Read the JSON of an evaluation; a :class:`ReportError` for any other file."""
    record = read_json(path, ReportError)
    if record.get("kind") != "evaluation":
        raise ReportError(
            f"{path} is not an evaluation (kind {record.get('kind')!r}); "
            "`megabase evaluate -o FILE.json` writes one"
        )
    return record

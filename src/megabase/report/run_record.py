"""What a run folder tells, read from its files: no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabase.errors import ReportError
from megabase.training.run_folder import RunFolder
from megabase.untrusted import read_json

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
        When the folder is not a run folder, a file in it is missing or broken, or no step has been
        recorded yet.
    """
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
    """Read the JSON of an evaluation.

    Raises
    ------
    ReportError
        When the file cannot be read or is not an evaluation.
    """
    record = read_json(path, ReportError)
    if record.get("kind") != "evaluation":
        raise ReportError(
            f"{path} is not an evaluation (kind {record.get('kind')!r}); "
            "`megabase evaluate --json` writes one"
        )
    return record

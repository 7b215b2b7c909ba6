"""The jobs that are not yet functions, on the engine of :mod:`megabase.inference.jobs`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Unpack

from megabase.inference.jobs import Progress, RunOptions, Work, map_file

__all__ = ["Progress", "run_job"]


def _compute(ready: tuple[Any, Any], chunk: Any) -> Any:
    job, compute = ready
    return partial(job.write_part, compute(chunk))


def _open(job: Any, device: str | None) -> tuple[Any, Any]:
    return job, job.open(device)


def run_job(job: Any, target: str | Path, **running: Unpack[RunOptions]) -> Path:
    """Run a job."""
    job.provenance()
    work = Work(_compute, partial(_open, job), job.chunks, job.items, job.suffix)
    return map_file(
        work, target, lambda _: job.provenance(), lambda parts, place, _: job.merge(parts, place),
        **running,
    )  # fmt: skip

"""The same fine-tuning with several seeds."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.genome.files import write_json
from megabase.tasks.digests import describe_data, start_of
from megabase.tasks.finetune import FinetuneResult, finetune
from megabase.tasks.finetune_config import FinetuneConfig, to_yaml
from megabase.tasks.finetune_data import read_splits
from megabase.training.run_folder import finished_result, own_folder

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["finetune_seeds", "spread"]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Give mean and sample standard deviation (None for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def finetune_seeds(
    config: FinetuneConfig,
    seeds: Sequence[int],
    *,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[FinetuneResult]:
    """Run a fine-tuning once for each seed, in ``OUTPUT/seed-N``.

    The seed decides the new weights, the order of the rows, the dropout and, where validation rows
    are cut off the training rows, which ones. With ``resume``, finished seeds are kept and the
    others go on or start.

    Parameters
    ----------
    config
        Settings; its own seed is not used.
    seeds
        Different whole numbers.
    dry_run
        Only show the plans.
    console
        Where to show plans and progress.

    Returns
    -------
    list of FinetuneResult
        In the order of the seeds; shorter when a signal stopped one (the last). Mean and standard
        deviation of every figure are written to ``OUTPUT/result.json``.
    """
    with contextlib.nullcontext() if dry_run else own_folder(Path(config.output)):
        return _run_all(config, seeds, dry_run, console)


def _run_all(
    config: FinetuneConfig, seeds: Sequence[int], dry_run: bool, console: Console | None
) -> list[FinetuneResult]:
    results: list[FinetuneResult] = []
    for seed in dict.fromkeys(seeds):
        folder = Path(config.output) / f"seed-{seed}"
        started = (folder / "config.yaml").is_file()
        one = replace(config, seed=seed, output=str(folder), resume=config.resume and started)
        finished = _finished(one, folder) if one.resume else None
        result = finished or finetune(one, dry_run=dry_run, console=console)
        if result is None:
            continue
        results.append(result)
        if result.signal is not None:
            return results
    if results:
        write_json(Path(config.output) / "result.json", _summary(results, seeds))
    return results


def _finished(config: FinetuneConfig, folder: Path) -> FinetuneResult | None:
    found = finished_result(
        folder, to_yaml(config), lambda: describe_data(read_splits(config), start_of(config))
    )
    return None if found is None else FinetuneResult(**found)


def _summary(results: Sequence[FinetuneResult], seeds: Sequence[int]) -> dict[str, Any]:
    figures: dict[str, dict[str, dict[str, float | None]]] = {}
    for split in ("valid", "test"):
        for name in getattr(results[0], split):
            mean, sd = spread([getattr(result, split)[name] for result in results])
            figures.setdefault(split, {})[name] = {"mean": mean, "sd": sd}
    return {"seeds": list(seeds), **figures, "runs": [vars(result) for result in results]}

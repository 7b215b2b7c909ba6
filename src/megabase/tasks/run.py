"""What all runs have in common: plan, print, start, fit, measure, write the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from lightning_fabric import Fabric
from rich.console import Console

from megabase.data.labeled import LabeledSequences
from megabase.errors import ConfigError
from megabase.genome.files import atomic_file, write_json
from megabase.objectives.base import Objective
from megabase.ops.kernels import slower_than_possible
from megabase.settings import RunConfig, TrainConfig
from megabase.tasks.config import to_yaml
from megabase.training.checkpoint import Progress, SaveModel
from megabase.training.engine import FitResult, fit
from megabase.training.evaluation import Batches, EvalSet
from megabase.training.process import build_fabric
from megabase.training.run_folder import RunFolder, check_run
from megabase.training.schedule import LengthSchedule

_Config = TypeVar("_Config", bound=RunConfig)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, worked out before its first step."""

    settings: TrainConfig  # what the loop reads, with everything filled in that depends on the data
    family: str
    model: Any  # with its initial weights
    batches: Batches  # training windows or examples
    objective: Objective
    evaluations: Mapping[str, EvalSet]  # validation (``valid``) and test
    schedule: LengthSchedule
    save_model: SaveModel
    data: Mapping[str, Any]  # what the run is made from, for ``data.json``
    lines: Sequence[str]  # all of it for people, above notes and hints
    splits: Mapping[str, LabeledSequences] = field(default_factory=dict)
    """Labeled sequences of train, and of valid and test where they exist."""
    notes: list[str] = field(default_factory=list)  # what a reader of the numbers has to know
    hints: Sequence[str | None] = ()
    refusal: str | None = None  # why the run must not start, if so
    trains: bool = True  # whether there is anything to train
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the result that are known beforehand."""


class Done(NamedTuple):
    """A run at the end of its training."""

    plan: Plan
    run: Path  # its folder
    fabric: Fabric
    outcome: FitResult  # how training ended; nothing is done when there was nothing to train
    started: float  # ``time.perf_counter()`` at the beginning of the call

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run early."""
        return self.outcome.signal is not None

    @property
    def epochs(self) -> float:
        """Passes over the training rows."""
        return sum(count for *_, count in self.drawn()) / len(self.plan.splits["train"])

    def drawn(self) -> list[tuple[int, int, int]]:
        """Give number, length and trained sequences of every stage."""
        left, found = self.outcome.progress.step, []
        for point, steps in self.plan.schedule.stages():
            steps = min(steps, left)
            left -= steps
            found.append((point.stage, point.length, steps * point.global_batch))
        return found

    @property
    def chosen(self) -> Path:
        """The checkpoint to measure: the best one, the last one without validation."""
        best = self.run / "best"
        return best if "valid" in self.plan.evaluations and best.is_dir() else self.run / "last"


class RunResult(SimpleNamespace):
    """What a run that is measured comes to; written to ``result.json``.

    Fields are ``run`` (its folder), ``family``, ``trained_parameters``, ``rows`` (sequences of each
    split), ``steps``, ``best_step`` (of the checkpoint that was measured; None without validation
    or training), ``trained_tokens`` and ``training_seconds`` over all sessions of the run,
    ``seconds`` of the whole call, ``valid`` and ``test`` (loss and metrics),
    ``notes`` (what a reader of the numbers has to know), ``signal`` (that stopped the run early;
    then nothing was measured), and those that its verb names.
    """

    @classmethod
    def of(cls, done: Done, metrics: Mapping[str, dict[str, float]], **more: Any) -> Self:
        """Build the result of a run from its metrics by split; `more` are fields of the verb."""
        plan, progress = done.plan, done.outcome.progress
        trained = (p.numel() for p in plan.model.parameters() if p.requires_grad and plan.trains)
        facts: dict[str, Any] = {
            "run": plan.settings.output, "family": plan.family, "trained_parameters": sum(trained),
            "rows": {name: len(split) for name, split in plan.splits.items()},
            "steps": progress.step, "best_step": progress.best_step,
            "trained_tokens": progress.tokens, "training_seconds": progress.seconds,
            "seconds": time.perf_counter() - done.started, "valid": metrics.get("valid", {}),
            "test": metrics.get("test", {}), "notes": plan.notes, "signal": done.outcome.signal,
        }  # fmt: skip
        return cls(**{**facts, **plan.facts, **more})


def lay_out(settings: TrainConfig, fabric: Fabric, batches: Batches) -> LengthSchedule:
    """Lay out the stages for as many readers as there are, or as a launch will make.

    A ConfigError when processes do not divide into groups that share a sequence.
    """
    planned = int(getattr(fabric.strategy, "num_processes", 1)) * settings.devices.nodes
    world = max(fabric.world_size, planned)  # of a launch to come, too
    shared = settings.devices.context_parallel
    if world % shared:
        raise ConfigError(
            f"devices.context_parallel is {shared}, and the number of processes is {world}; "
            f"start a multiple of {shared} (devices.devices, or processes of torchrun)"
        )
    return LengthSchedule(settings, world // shared, batches.epoch_size)


def execute(
    config: _Config, prepare: Callable[[_Config, Fabric], Plan],
    conclude: Callable[[_Config, Done], RunResult], *, dry_run: bool = False,
    console: Console | None = None,
) -> RunResult | None:  # fmt: skip
    """Run the skeleton that all verbs share; None after a dry run.

    `prepare` builds everything the run needs and writes nothing; `conclude` measures what was
    trained, which is written to ``result.json``; a finished run that is resumed gives what is
    there. The first process shows plan and progress on `console`.
    """
    started = time.perf_counter()
    resolved = to_yaml(config)
    changes = check_run(config, resolved)
    fabric = build_fabric(config.devices, config.precision)
    if not dry_run:
        fabric.launch()
    plan = prepare(config, fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        told = [f"note        {note}" for note in plan.notes] + [f"output      {config.output}"]
        told += [f"resumed with another setting: {change}" for change in changes]
        hints = (slower_than_possible(plan.model, fabric.device), *plan.hints)
        for line in (*plan.lines, *told, *filter(None, hints)):
            show.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan.refusal is not None:
        raise ConfigError(plan.refusal)
    if dry_run:
        return None
    if config.resume:
        kept = RunFolder(Path(config.output)).finished_result(resolved, plan.data, config)
        if kept is not None:
            return RunResult(**kept)
    with RunFolder.started(config, resolved, fabric, plan.data) as run:
        outcome = FitResult(Progress())
        if plan.trains:
            outcome = fit(
                plan.model, plan.objective, plan.batches, plan.settings, fabric=fabric,
                save_model=plan.save_model, validation=plan.evaluations.get("valid"), console=show,
            )  # fmt: skip
        else:
            plan.model.to(fabric.device)
        done = Done(plan, run, fabric, outcome, started)
        result = conclude(config, done)
        if fabric.global_rank == 0 and not done.stopped:
            write_json(run / "result.json", vars(result))
        return result


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays atomically."""
    with atomic_file(path, overwrite=True) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

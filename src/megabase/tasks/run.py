"""What all runs have in common: plan, print, start, fit, measure, write the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from megabase.errors import ConfigError
from megabase.genome.files import atomic_file, write_json
from megabase.ops.kernels import slower_than_possible
from megabase.settings import RunConfig, TrainConfig
from megabase.tasks.config import to_yaml
from megabase.training.engine import FitResult, fit
from megabase.training.evaluation import Batches, EvalSet
from megabase.training.process import build_fabric
from megabase.training.run_folder import RunFolder, check_run, started_run
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console

    from megabase.data.labeled import LabeledSequences
    from megabase.objectives.base import Objective
    from megabase.training.checkpoint import SaveModel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, worked out before its first step."""

    settings: TrainConfig
    """What the loop reads, with everything filled in that depends on the data."""
    family: str
    model: Any
    """With its initial weights."""
    batches: Batches
    """Training windows or examples."""
    objective: Objective
    evaluations: Mapping[str, EvalSet]
    """Validation (``valid``) and test."""
    schedule: LengthSchedule
    save_model: SaveModel
    """Writes the model into a checkpoint."""
    data: Mapping[str, Any]
    """What the run is made from, for ``data.json``."""
    text: str
    """All of it for people."""
    splits: Mapping[str, LabeledSequences] = field(default_factory=dict)
    """Labeled sequences of train, and of valid and test where they exist."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""
    hints: Sequence[str | None] = ()
    """Advice to print below the plan."""
    refusal: str | None = None
    """Why the run must not start, if so."""
    trains: bool = True
    """Whether there is anything to train."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the result that are known beforehand."""

    @property
    def trained_parameters(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


class Done(NamedTuple):
    """A run at the end of its training."""

    plan: Plan
    run: Path
    """Its folder."""
    fabric: Fabric
    outcome: FitResult | None
    """How training ended; None when there was nothing to train."""
    started: float
    """``time.perf_counter()`` at the beginning of the call."""

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run early."""
        return self.outcome is not None and self.outcome.signal is not None

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self.outcome.progress.step if self.outcome is not None else 0

    @property
    def seconds(self) -> float:
        """Time of the training steps."""
        return self.outcome.progress.seconds if self.outcome is not None else 0.0

    @property
    def epochs(self) -> float:
        """Passes over the training rows."""
        return sum(count for *_, count in self.drawn()) / len(self.plan.splits["train"])

    def drawn(self) -> list[tuple[int, int, int]]:
        """Give number, length and trained sequences of every stage."""
        left, found = self.steps, []
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

    Beside these fields it has those that its verb names.
    """

    run: str
    """Run folder."""
    family: str
    trained_parameters: int
    rows: dict[str, int]
    """Sequences of each split."""
    steps: int
    best_step: int | None
    """Step of the checkpoint that was measured; None without validation or training."""
    trained_tokens: int
    """Input positions that training has read."""
    training_seconds: float
    """Time of the training steps, over all sessions of the run."""
    seconds: float
    """Time of the whole call: reading, training, validation, test."""
    valid: dict[str, float]
    """Loss and metrics of the validation rows."""
    test: dict[str, float]
    """Loss and metrics of the test rows."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    signal: int | None
    """Signal that stopped the run early; then nothing was measured."""

    @classmethod
    def of(cls, done: Done, metrics: Mapping[str, dict[str, float]], **more: Any) -> Self:
        """Build the result of a run from its metrics by split; `more` are fields of the verb."""
        plan, outcome = done.plan, done.outcome
        measured = outcome is not None and "valid" in plan.evaluations
        facts: dict[str, Any] = {
            "run": plan.settings.output,
            "family": plan.family,
            "trained_parameters": plan.trained_parameters if outcome is not None else 0,
            "rows": {name: len(split) for name, split in plan.splits.items()},
            "steps": done.steps,
            "best_step": outcome.progress.best_step if outcome is not None and measured else None,
            "trained_tokens": outcome.progress.tokens if outcome is not None else 0,
            "training_seconds": done.seconds,
            "seconds": time.perf_counter() - done.started,
            "valid": metrics.get("valid", {}),
            "test": metrics.get("test", {}),
            "notes": plan.notes,
            "signal": outcome.signal if outcome is not None else None,
        }
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
    config: RunConfig,
    prepare: Callable[[Fabric], Plan],
    conclude: Callable[[Done], RunResult],
    *,
    dry_run: bool = False,
    console: Console | None = None,
) -> RunResult | None:
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
    plan = prepare(fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        told = [f"resumed with another setting: {change}" for change in changes]
        hints = (slower_than_possible(plan.model, fabric.device), *plan.hints)
        for line in (plan.text, *told, *filter(None, hints)):
            show.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan.refusal is not None:
        raise ConfigError(plan.refusal)
    if dry_run:
        return None
    if config.resume:
        kept = RunFolder(Path(config.output)).finished_result(resolved, plan.data, config)
        if kept is not None:
            return RunResult(**kept)
    with started_run(config, resolved, fabric, plan.data) as run:
        outcome = None
        if plan.trains:
            outcome = fit(
                plan.model, plan.objective, plan.batches, plan.settings, fabric=fabric,
                save_model=plan.save_model, validation=plan.evaluations.get("valid"), console=show,
            )  # fmt: skip
        else:
            plan.model.to(fabric.device)
        done = Done(plan, run, fabric, outcome, started)
        result = conclude(done)
        if fabric.global_rank == 0 and not done.stopped:
            write_json(run / "result.json", vars(result))
        return result


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays atomically."""
    with atomic_file(path, overwrite=True) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

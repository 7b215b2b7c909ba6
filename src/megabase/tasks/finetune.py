"""Fine-tuning: labelled sequences, a model with a head, and the loop, put together.

Validation chooses the best checkpoint; the test rows are read for their labels at the start and
scored once, with that checkpoint, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megabase.data.leaks import overlap_hint
from megabase.evaluate.base_probabilities import NucleotidePredictions
from megabase.genome.files import atomic_file, write_json
from megabase.models.adapt.classifier import Labels, save_classifier
from megabase.ops.kernels import slower_than_possible
from megabase.tasks.digests import describe_data, start_of
from megabase.tasks.finetune_config import FinetuneConfig, start_settings, to_yaml
from megabase.tasks.finetune_plan import Plan, plan_run
from megabase.training.engine import FitResult, fit
from megabase.training.evaluation import EvalSet, evaluate
from megabase.training.process import build_fabric
from megabase.training.run_folder import check_run, started_run

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console
    from torch import nn

    from megabase.data.labeled import LabeledSequences

__all__ = [
    "FinetuneResult",
    "finetune",
    "measure_splits",
    "write_arrays",
]


@dataclass(frozen=True)
class FinetuneResult:
    """What a run came to; written to ``result.json``."""

    run: str
    """Run folder; its ``best`` (without validation ``last``) is the model."""
    family: str
    """Model family."""
    parameters: int
    """Numbers of the model, tied ones once."""
    trained_parameters: int
    """Those that were trained."""
    kind: str
    """What the labels are."""
    classes: list[str]
    """Names of the outputs."""
    rows: dict[str, int]
    """Sequences of each split."""
    steps: int
    """Optimizer steps done."""
    epochs: float
    """The same in passes over the training rows."""
    best_step: int | None
    """Step of the checkpoint that was measured; None without validation."""
    monitor: str
    """What chose it."""
    training_seconds: float
    """Time of the training steps."""
    seconds: float
    """Time of the whole call: reading, training, validation, test."""
    tokens_per_second: float
    """Real input tokens (no padding) by training second."""
    bases_per_second: float
    """The same in bases, of sequences of average length: comparable between tokenizers."""
    valid: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the validation rows."""
    test: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the test rows."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""
    signal: int | None = None
    """Signal that stopped the run early; then nothing was measured."""


def finetune(
    config: FinetuneConfig, *, dry_run: bool = False, console: Console | None = None
) -> FinetuneResult | None:
    """Train a model on labelled sequences and measure it.

    Parameters
    ----------
    config
        Settings of the run.
    dry_run
        Stop after the plan: nothing is written.
    console
        Where to show the plan and the progress; None shows nothing.

    Returns
    -------
    FinetuneResult or None
        None after a dry run.

    Raises
    ------
    MegabaseError
        For settings, data, a model or a folder that cannot be used, too many non-finite steps, or a
        checkpoint that cannot be written.
    """
    started = time.perf_counter()
    resolved = to_yaml(config)
    changes = check_run(config, resolved)
    fabric = build_fabric(config.devices, config.precision)
    if not dry_run:
        fabric.launch()
    plan = plan_run(config, fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        show.print(plan.text, markup=False, highlight=False, soft_wrap=True)
        for change in changes:
            show.print(f"resumed with another setting: {change}", markup=False, highlight=False)
        for hint in (slower_than_possible(plan.model, fabric.device), overlap_hint(plan.splits)):
            if hint is not None:
                show.print(hint, markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return None
    with started_run(config, resolved, fabric, describe_data(plan.splits, start_of(config))) as run:
        return _run(plan, run, fabric, show, started)


def _run(
    plan: Plan, run: Path, fabric: Fabric, show: Console | None, started: float
) -> FinetuneResult:
    outcome = fit(
        plan.model,
        plan.objective,
        plan.batches,
        plan.config,
        fabric=fabric,
        save_model=lambda folder, state: save_classifier(
            plan.model,
            plan.tokens.tokenizer,
            folder,
            state,
            plan.config.lora,
            start_settings(plan.config),
        ),
        validation=plan.evaluations.get("valid"),
        console=show,
    )
    measured = outcome.signal is None and plan.evaluations
    figures = _measure(plan, run, fabric) if measured else {}
    result = _result(plan, outcome, figures, time.perf_counter() - started)
    if fabric.global_rank == 0 and outcome.signal is None:
        write_json(run / "result.json", vars(result))
    return result


def _measure(plan: Plan, run: Path, fabric: Fabric) -> dict[str, dict[str, float]]:
    """Score valid and test with the chosen checkpoint, read back from its folder."""
    from megabase.models.auto import load_model

    best = run / "best"
    folder = best if "valid" in plan.evaluations and best.is_dir() else run / "last"
    train = plan.splits["train"]
    task = Labels(train.kind, train.classes).task
    model = load_model(folder, task, device=fabric.device)
    return measure_splits(model, plan.evaluations, plan.splits, plan.config, run, fabric)


def measure_splits(
    model: nn.Module,
    evaluations: Mapping[str, EvalSet],
    splits: Mapping[str, LabeledSequences],
    config: FinetuneConfig,
    run: Path,
    fabric: Fabric,
    columns: Sequence[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Give loss and metrics of each split, and write what the model said.

    Parameters
    ----------
    model, evaluations, splits, config, run, fabric
        Of the run.
    columns
        Columns of the outputs that stand for the classes; None when all do, in order.
    """
    found: dict[str, dict[str, float]] = {}
    kept: dict[str, np.ndarray] = {}
    for name, windows in evaluations.items():
        wanted = config.predictions and name == "test"
        left = config.head.padding == "left"
        said = NucleotidePredictions(splits[name], left=left) if wanted else None
        windows = replace(windows, on_batch=said)
        scored = evaluate(model, windows, config.eval_batch or 1, fabric)
        if said is not None:
            said.write(run / "predictions.parquet")
        found[name] = {"loss": scored.loss, **scored.figures}
        if scored.outputs is not None and splits[name].kind != "nucleotides":
            outputs = scored.outputs if columns is None else scored.outputs[:, columns]
            kept |= {name: outputs, f"{name}_labels": splits[name].labels}
    if fabric.global_rank == 0 and kept:
        write_arrays(run / "outputs.npz", kept)
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays, whole or not at all."""
    with atomic_file(path, overwrite=True) as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def _result(
    plan: Plan, outcome: FitResult, figures: Mapping[str, dict[str, float]], seconds: float
) -> FinetuneResult:
    progress = outcome.progress
    done, seen, sequences = 0, 0, 0
    for point, steps in plan.schedule.stages():
        steps = min(steps, progress.step - done)
        count = steps * point.global_batch
        seen += plan.batches.token_count(point.stage, 0, count, point.length)
        sequences += count
        done += steps
    bases = sequences * float(plan.splits["train"].lengths.mean())
    measured = "valid" in plan.evaluations
    valid = plan.evaluations.get("valid")
    return FinetuneResult(
        run=plan.config.output,
        family=plan.family,
        parameters=sum(p.numel() for p in plan.model.parameters()),
        trained_parameters=sum(p.numel() for p in plan.model.parameters() if p.requires_grad),
        kind=plan.splits["train"].kind,
        classes=list(plan.splits["train"].classes),
        rows={name: len(split) for name, split in plan.splits.items()},
        steps=progress.step,
        epochs=sequences / len(plan.batches),
        best_step=progress.best_step if measured else None,
        monitor=valid.monitor if valid is not None else "none",
        training_seconds=progress.seconds,
        seconds=seconds,
        tokens_per_second=seen / progress.seconds if progress.seconds else 0.0,
        bases_per_second=bases / progress.seconds if progress.seconds else 0.0,
        valid=figures.get("valid", {}),
        test=figures.get("test", {}),
        notes=plan.notes,
        signal=outcome.signal,
    )

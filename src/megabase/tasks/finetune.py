"""Fine-tuning: labeled sequences, a model with a head, and the loop, put together.

Validation chooses the best checkpoint; the test rows are read for their labels at the start and
scored once, with that checkpoint, at the end.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from rich.console import Console

from megabase.data.batches import LabeledBatches
from megabase.models.adapt.build import build_classifier, save_classifier
from megabase.models.auto import load_model
from megabase.models.base import checkpoint_activations
from megabase.settings import StartConfig
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.labeled import LabeledRun, measure_splits
from megabase.tasks.run import Done, Plan, RunResult, execute


def finetune(
    config: FinetuneConfig, *, dry_run: bool = False, console: Console | None = None
) -> RunResult | None:
    """Train a model on labeled sequences and measure it.

    A `dry_run` stops after the plan, before anything is written, and gives None; plan and progress
    are shown on `console`. The result has ``parameters`` of the model (tied ones once), ``kind``,
    ``classes``, ``epochs`` over the training rows, ``monitor`` that chose the checkpoint,
    ``training_seconds`` of the steps, ``tokens_per_second`` of them (padding left out), and
    ``bases_per_second``, of sequences of average length: comparable between tokenizers.

    Raises
    ------
    MegabaseError
        For settings, data, a model or a folder that cannot be used, too many non-finite steps, or a
        checkpoint that cannot be written.
    """
    return execute(config, _plan, _conclude, dry_run=dry_run, console=console)


def _plan(config: FinetuneConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    start, lora = config.part(StartConfig), config.lora
    run = LabeledRun(config, start)
    run.tokenize()
    torch.manual_seed(config.seed)
    kind, classes = run.train.kind, run.train.classes
    model: Any = build_classifier(
        start, config.head, lora, run.family, kind, classes, run.tokens, run.longest
    )
    vars(model.config).pop("units", None)  # of the run that the weights come from
    if run.units is not None:
        model.config.units = asdict(run.units)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    limit = getattr(model.config, "max_length", None)
    if limit is not None and run.longest > limit:
        run.tokenize(limit)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    bases, tokenizer = run.train.lengths, run.tokens.tokenizer
    line = (
        f"model       {run.family}, {parameters:,} parameters"
        + (f", {trained:,} of them trained" if trained < parameters else "")
        + f", from {start.trained or 'fresh weights'}; tokenizer {type(tokenizer).__name__}"
    )
    return run.plan(
        fabric,
        model,
        lambda folder, state: save_classifier(model, tokenizer, folder, state, lora, start.model),
        [line],
        lengths=f"{int(bases.min()):,} to {int(bases.max()):,} bases, "
        f"{run.longest:,} tokens at most",
    )


def _conclude(config: FinetuneConfig, done: Done) -> RunResult:
    """Score valid and test with the chosen checkpoint, read back from its folder."""
    plan, metrics = done.plan, {}
    if not done.stopped and plan.evaluations:
        model = load_model(done.chosen, device=done.fabric.device)
        metrics = measure_splits(config, done, model)
    batches, stages = cast("LabeledBatches", plan.batches), done.drawn()
    tokens = sum(batches.token_count(stage, 0, count, length) for stage, length, count in stages)
    bases = sum(count for *_, count in stages) * float(plan.splits["train"].lengths.mean())
    seconds = done.outcome.progress.seconds or math.inf  # nothing is trained in no time
    return RunResult.of(
        done, metrics, epochs=done.epochs, tokens_per_second=tokens / seconds,
        bases_per_second=bases / seconds,
    )  # fmt: skip

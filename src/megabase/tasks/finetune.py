"""Fine-tuning: labeled sequences, a model with a head, and the loop, put together.

Validation chooses the best checkpoint; the test rows are read for their labels at the start and
scored once, with that checkpoint, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from megabase.data.leaks import overlap_hint
from megabase.genome.files import write_json
from megabase.models.adapt.classifier import (
    Labels,
    build_classifier,
    family_of_start,
    save_classifier,
)
from megabase.models.base import checkpoint_activations
from megabase.models.tokenizers.encoder import build_encoder
from megabase.settings import StartConfig, part_of
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.labeled import (
    LabeledResult,
    batches_of,
    check_predictions,
    describe_data,
    drawn,
    evaluation_of,
    label_line,
    labeled_facts,
    letters_of,
    measure_splits,
    metrics_of,
    notes_of,
    objective_of,
    read_splits,
    resolve,
    split_lines,
    tokenize_splits,
    training_lines,
)
from megabase.tasks.run import (
    Done,
    Plan,
    common_facts,
    execute,
    lay_out,
    member,
    spread,
    sweep,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console

    from megabase.data.batches import LabeledBatches


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(LabeledResult):
    """What a run came to; its ``best`` folder (without validation ``last``) is the model."""

    tokens_per_second: float
    """Real input tokens (no padding) by training second."""
    bases_per_second: float
    """The same in bases, of sequences of average length: comparable between tokenizers."""


def finetune(
    config: FinetuneConfig, *, dry_run: bool = False, console: Console | None = None
) -> FinetuneResult | None:
    """Train a model on labeled sequences and measure it.

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
    predictions, padding = config.predictions, config.head.padding

    def conclude(done: Done) -> FinetuneResult:
        return _conclude(done, predictions=predictions, padding=padding)

    return execute(
        config, lambda fabric: plan_run(config, fabric), conclude, dry_run=dry_run, console=console
    )


def plan_run(config: FinetuneConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    splits = read_splits(config)
    train, head, table, lora = splits["train"], config.head, config.table, config.lora
    start = part_of(config, StartConfig)
    names, monitor = metrics_of(config.metrics, config.monitor, train.kind)
    labels = Labels(train.kind, train.classes)
    family = family_of_start(start, labels.task)
    tokens = build_encoder(start, head, family, lambda: letters_of(train), per_base=labels.per_base)
    rows, longest = tokenize_splits(splits, tokens, table, head)
    torch.manual_seed(config.seed)
    model: Any = build_classifier(start, head, lora, family, labels, tokens, longest)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    limit = getattr(model.config, "max_length", None)
    if limit is not None and longest > limit:
        rows, longest = tokenize_splits(splits, tokens, table, head, limit)
    block = config.global_batch or 1
    sets = batches_of(splits, rows, tokens.pad_id, head, seed=config.seed, block=block)
    settings = resolve(config, len(train), longest)
    schedule = lay_out(settings, fabric, sets["train"])
    if config.predictions:
        check_predictions(splits, schedule.world)
    double = bool(getattr(model.config, "double_sigmoid", False))
    beyond = int((rows["train", False].lengths > settings.longest).sum())
    notes = notes_of(splits)
    if beyond:
        notes.append(
            f"{beyond:,} of {len(train):,} training sequences have more tokens than the longest "
            f"stage, {settings.longest:,}: training never reads their ends"
        )
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines = [
        f"model       {family}, {parameters:,} parameters"
        + (f", {trained:,} of them trained" if trained < parameters else "")
        + f", from {start.trained or 'fresh weights'}; "
        f"tokenizer {type(tokens.tokenizer).__name__}",
        label_line(train),
        *split_lines(splits),
        f"lengths     {int(train.lengths.min()):,} to {int(train.lengths.max()):,} bases, "
        f"{longest:,} tokens at most",
        *training_lines(
            settings,
            schedule.total_steps,
            schedule.at(0).global_batch,
            monitor if "valid" in splits else None,
        ),
        *(f"note        {note}" for note in notes),
        f"output      {config.output}",
    ]
    return Plan(
        settings=settings,
        family=family,
        model=model,
        batches=sets["train"],
        objective=objective_of(train, head, double_sigmoid=double),
        evaluations={
            name: evaluation_of(
                splits[name], sets[name], longest, names, monitor, double_sigmoid=double
            )
            for name in splits
            if name != "train"
        },
        schedule=schedule,
        save_model=lambda folder, state: save_classifier(
            model, tokens.tokenizer, folder, state, lora, start
        ),
        data=describe_data(splits, start.trained),
        text="\n".join(lines),
        splits=splits,
        notes=notes,
        hints=(overlap_hint(splits),),
    )


def _conclude(done: Done, *, predictions: bool, padding: str) -> FinetuneResult:
    """Score valid and test with the chosen checkpoint, read back from its folder."""
    from megabase.models.auto import load_model

    plan, metrics = done.plan, {}
    if not done.stopped and plan.evaluations:
        train = plan.splits["train"]
        task = Labels(train.kind, train.classes).task
        model = load_model(done.chosen, task, device=done.fabric.device)
        metrics = measure_splits(done, model, predictions=predictions, padding=padding)
    facts = labeled_facts(done)
    seconds, batches = facts["training_seconds"], cast("LabeledBatches", plan.batches)
    stages = drawn(done)
    tokens = sum(batches.token_count(stage, 0, count, length) for stage, length, count in stages)
    bases = sum(count for *_, count in stages) * float(plan.splits["train"].lengths.mean())
    return FinetuneResult(
        parameters=sum(p.numel() for p in plan.model.parameters()),
        tokens_per_second=tokens / seconds if seconds else 0.0,
        bases_per_second=bases / seconds if seconds else 0.0,
        **common_facts(done, metrics),
        **facts,
    )


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
        deviation of every metric are written to ``OUTPUT/result.json``.
    """

    def summarize(results: list[FinetuneResult]) -> None:
        summary: dict[str, dict[str, dict[str, float | None]]] = {}
        for split in ("valid", "test"):
            for name in getattr(results[0], split):
                mean, sd = spread([getattr(result, split)[name] for result in results])
                summary.setdefault(split, {})[name] = {"mean": mean, "sd": sd}
        record = {"seeds": list(seeds), **summary, "runs": [vars(result) for result in results]}
        write_json(Path(config.output) / "result.json", record)

    return sweep(
        config.output,
        [member(config, f"seed-{seed}", seed=seed) for seed in dict.fromkeys(seeds)],
        lambda one: finetune(one, dry_run=dry_run, console=console),
        FinetuneResult,
        lambda one: describe_data(read_splits(one), one.trained),
        summarize,
        dry_run=dry_run,
    )

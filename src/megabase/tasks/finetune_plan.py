"""What a fine-tuning run will do: data, tokens, model and steps, worked out before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megabase.data.labelled import LabelledSequences, label_splits, published_split, split_rows
from megabase.data.labelled_batches import LabelledBatches, TokenRows, tokenise
from megabase.data.labelled_files import LabelledText, find_splits, read_text
from megabase.genome import alphabet
from megabase.objectives.classification import SequenceLabels
from megabase.tasks import metrics
from megabase.tasks.classifier import (
    Labels,
    Tokens,
    balanced_weights,
    build_classifier,
    build_tokens,
    family_of_start,
)
from megabase.tasks.finetune_config import FinetuneConfig
from megabase.training.config import ConfigError, Stage
from megabase.training.devices import planned_world
from megabase.training.evaluation import EvalSet
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from transformers import PreTrainedModel

__all__ = ["Plan", "plan_run", "read_splits"]

_MONITORS = {"classes": "accuracy", "multi_label": "auroc", "regression": "pearson"}
_EVAL_BATCH = 64


@dataclass(frozen=True)
class Plan:
    """What a run will do, worked out before its first step."""

    config: FinetuneConfig
    """The settings with stages and intervals filled in."""
    family: str
    """Model family."""
    model: PreTrainedModel
    """The model with its initial weights."""
    tokens: Tokens
    """Its tokenizer."""
    splits: Mapping[str, LabelledSequences]
    """Labelled sequences: train, and valid and test where there are any."""
    batches: LabelledBatches
    """Training batches."""
    objective: SequenceLabels
    """Training loss."""
    evaluations: Mapping[str, EvalSet]
    """Valid and test."""
    schedule: LengthSchedule
    """Stages in steps."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    text: str
    """All of it for people."""


def read_splits(config: FinetuneConfig) -> dict[str, LabelledSequences]:
    """Read train, valid and test, with the same classes everywhere.

    A folder given as ``train`` may hold all of them. Validation rows are cut off the training rows
    when there is no file for them.

    Raises
    ------
    LabelledDataError
        Naming file and row.
    """
    paths: dict[str, str | Path | None] = {
        "train": config.train, "valid": config.valid, "test": config.test
    }  # fmt: skip
    inside = find_splits(config.train) if Path(config.train).is_dir() else {}
    if "train" in inside:
        paths = {
            "train": inside["train"],
            "valid": config.valid or inside.get("valid"),
            "test": config.test or inside.get("test"),
        }
    table = config.table
    texts: dict[str, LabelledText] = {
        name: read_text(
            path, sequence=table.sequence, label=table.label, fasta_label=table.fasta_label
        )
        for name, path in paths.items()
        if path is not None
    }
    splits = label_splits(texts, table.kind)
    fraction, rows = table.validation_fraction, splits["train"]
    if "valid" not in splits and fraction:
        if table.validation_split == "published":
            valid, train = published_split(len(rows), config.seed, (fraction, 1 - fraction))
        else:
            train, valid = split_rows(rows.labels, fraction, config.seed)
        splits.update(train=rows.take(train), valid=rows.take(valid))
    return splits


def plan_run(config: FinetuneConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    splits = read_splits(config)
    train = splits["train"]
    names, monitor = _metrics_of(config, train.kind)
    family = family_of_start(config)
    tokens = build_tokens(config, family, lambda: _letters(train))
    rows = _tokenise(config, splits, tokens, None)
    longest = max(int(r.lengths.max(initial=1)) for r in rows.values())
    torch.manual_seed(config.seed)
    model = build_classifier(config, family, Labels(train.kind, train.classes), tokens, longest)
    limit = getattr(model.config, "max_length", None)
    if limit is not None and longest > limit:
        rows = _tokenise(config, splits, tokens, limit)
        longest = max(int(r.lengths.max(initial=1)) for r in rows.values())
    sets = _batches(config, splits, rows, tokens)
    config = _resolve(config, len(train), longest)
    double = bool(getattr(model.config, "double_sigmoid", False))
    weights = config.head.class_weights
    if weights == "balanced":
        weights = balanced_weights(list(train.class_counts().values()))
    objective = SequenceLabels(
        train.kind,
        class_weights=weights,
        label_smoothing=config.head.label_smoothing,
        double_sigmoid=double,
    )
    if weights is not None and len(weights) != train.outputs:
        raise ConfigError(
            f"head.class_weights has {len(weights)} numbers, but there are {train.outputs} "
            f"classes: {', '.join(train.classes)}"
        )
    evaluations = {
        name: EvalSet(
            data=sets[name],
            windows=len(splits[name]),
            length=longest,
            objective=SequenceLabels(train.kind, double_sigmoid=double),
            figures=_figures(names, splits[name]),
            monitor=monitor,
            higher=metrics.higher_is_better(monitor),
        )
        for name in splits
        if name != "train"
    }
    world = max(fabric.world_size, planned_world(fabric, config.devices))
    schedule = LengthSchedule(config, world, sets["train"].epoch_size)
    notes = _notes(config, splits)
    plan = Plan(
        config, family, model, tokens, splits, sets["train"], objective, evaluations, schedule,
        notes, "",
    )  # fmt: skip
    return replace(plan, text=_describe(plan, monitor, longest))


def _letters(sequences: LabelledSequences) -> Iterable[str]:
    return (alphabet.decode(sequences.sequence(i)) for i in range(len(sequences)))


def _metrics_of(config: FinetuneConfig, kind: str) -> tuple[tuple[str, ...], str]:
    """Give the metrics to report and the one that chooses; both are checked."""
    names = list(config.metrics or metrics.default_metrics(kind))
    monitor = config.monitor or _MONITORS[kind]
    if monitor != "loss" and monitor not in names:
        names.append(monitor)
    metrics.check(names, kind)
    return tuple(names), monitor


def _figures(names: Iterable[str], split: LabelledSequences) -> Any:
    return lambda outputs: metrics.measure(names, split.kind, outputs, split.labels)


def _strands(config: FinetuneConfig, split: str) -> bool:
    """Tell whether a split needs the tokens of the other strand."""
    head = config.head
    return head.reverse_complement > 0 if split == "train" else head.strand_average


def _tokenise(
    config: FinetuneConfig,
    splits: Mapping[str, LabelledSequences],
    tokens: Tokens,
    limit: int | None,
) -> dict[tuple[str, bool], TokenRows]:
    """Give the tokens of every split and strand that is needed."""
    table = config.table
    bases = table.max_length
    room = tokens.room(limit) if limit is not None and table.truncate else None
    if room is not None:
        bases = room if bases is None else min(bases, room)
    return {
        (name, reverse): tokenise(
            split,
            tokens.encode,
            reverse=reverse,
            max_bases=bases,
            max_tokens=limit,
            truncate=table.truncate,
        )
        for name, split in splits.items()
        for reverse in (False, True)
        if not reverse or _strands(config, name)
    }


def _batches(
    config: FinetuneConfig,
    splits: Mapping[str, LabelledSequences],
    rows: Mapping[tuple[str, bool], TokenRows],
    tokens: Tokens,
) -> dict[str, LabelledBatches]:
    head = config.head
    return {
        name: LabelledBatches(
            rows[name, False],
            split.labels,
            pad_id=tokens.pad_id,
            seed=config.seed,
            shuffle=name == "train",
            block=config.global_batch or 1,
            reverse=rows.get((name, True)),
            reverse_probability=head.reverse_complement if name == "train" else 0.0,
            both_strands=name != "train" and head.strand_average,
            padding=head.padding,
            pad_to_length=head.pad_to_longest,
        )
        for name, split in splits.items()
    }


def _resolve(config: FinetuneConfig, rows: int, longest: int) -> FinetuneConfig:
    """Fill in what depends on the data: the length of the one stage, the steps of an epoch."""
    stages = config.stages
    if not stages:
        open_ended = config.steps is not None or config.tokens is not None
        stages = (
            Stage(
                length=longest,
                micro_batch=config.micro_batch,
                epochs=None if open_ended else config.epochs,
            ),
        )
    batch = config.global_batch or max(1, int(config.global_batch_tokens or 1) // longest)
    return replace(
        config,
        stages=stages,
        eval_every=config.eval_every or -(-rows // batch),
        eval_batch=config.eval_batch or config.micro_batch or min(batch, _EVAL_BATCH),
    )


def _notes(config: FinetuneConfig, splits: Mapping[str, LabelledSequences]) -> list[str]:
    notes: list[str] = []
    if "valid" not in splits:
        notes.append("no validation rows: the last checkpoint is measured")
    elif "test" in splits and splits["valid"].text.source == splits["test"].text.source:
        notes.append(
            "validation and test are the same file: the checkpoint is chosen on the test rows, so "
            "the test figures are too good"
        )
    return notes


def _describe(plan: Plan, monitor: str, longest: int) -> str:
    config, model, train = plan.config, plan.model, plan.splits["train"]
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    start = config.model if config.model and not config.from_scratch else "fresh weights"
    counts = train.class_counts()
    classes = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:10])
    lengths = train.lengths
    lines = [
        f"model       {plan.family}, {parameters:,} parameters"
        + (f", {trained:,} of them trained" if trained < parameters else "")
        + f", from {start}; tokenizer {type(plan.tokens.tokenizer).__name__}",
        f"labels      {train.kind}: {train.outputs} "
        + (f"({classes}{', ...' if len(counts) > 10 else ''})" if counts else "numbers"),
    ]
    lines += [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        for name, split in plan.splits.items()
    ]
    lines += [
        f"lengths     {int(lengths.min()):,} to {int(lengths.max()):,} bases, "
        f"{longest:,} tokens at most",
        f"budget      {plan.schedule.total_steps:,} steps of "
        f"{plan.schedule.at(0).global_batch} sequences",
        f"optimizer   AdamW, lr {config.optim.lr:g} ({config.optim.schedule}), "
        f"weight decay {config.optim.weight_decay:g}, precision {config.precision}",
    ]
    if "valid" in plan.evaluations:
        lines.append(f"validation  every {config.eval_every} steps; {monitor} chooses the best")
    lines += [f"note        {note}" for note in plan.notes]
    lines.append(f"output      {config.output}")
    return "\n".join(lines)

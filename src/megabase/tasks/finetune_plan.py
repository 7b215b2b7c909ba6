"""What a fine-tuning run will do: data, tokens, model and steps, worked out before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
from megabase.data.labeled import LabeledSequences, LabelTable, Ragged
from megabase.errors import ConfigError
from megabase.evaluate import metrics
from megabase.evaluate.metrics import measure_table
from megabase.genome import alphabet
from megabase.models.adapt.classifier import (
    Labels,
    balanced_weights,
    build_classifier,
    family_of_start,
)
from megabase.models.base import checkpoint_activations
from megabase.models.tokenizers.encoder import TokenEncoder, build_encoder
from megabase.objectives.classification import SequenceLabels
from megabase.objectives.nucleotides import NucleotideLabels
from megabase.settings import Stage
from megabase.tasks.finetune_config import FinetuneConfig, start_settings
from megabase.tasks.finetune_data import read_splits
from megabase.training.evaluation import EvalSet
from megabase.training.process import planned_world
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from transformers import PreTrainedModel

__all__ = [
    "Plan",
    "batches_of",
    "check_predictions",
    "evaluation_of",
    "letters_of",
    "metrics_of",
    "notes_of",
    "objective_of",
    "plan_run",
    "resolve",
    "tokenise_splits",
]

_MONITORS = {
    "classes": "accuracy", "multi_label": "auroc", "regression": "pearson", "nucleotides": "auroc"
}  # fmt: skip
_EVAL_BATCH = 64
_Config = TypeVar("_Config", bound=FinetuneConfig)


@dataclass(frozen=True)
class Plan:
    """What a run will do, worked out before its first step."""

    config: FinetuneConfig
    """The settings with stages and intervals filled in."""
    family: str
    """Model family."""
    model: PreTrainedModel
    """The model with its initial weights."""
    tokens: TokenEncoder
    """Its tokenizer."""
    splits: Mapping[str, LabeledSequences]
    """Labelled sequences: train, and valid and test where there are any."""
    batches: LabeledBatches
    """Training batches."""
    objective: SequenceLabels | NucleotideLabels
    """Training loss."""
    evaluations: Mapping[str, EvalSet]
    """Valid and test."""
    schedule: LengthSchedule
    """Stages in steps."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    text: str
    """All of it for people."""


def plan_run(config: FinetuneConfig, fabric: Fabric) -> Plan:
    """Build everything a run needs and describe it; writes nothing."""
    splits = read_splits(config)
    train = splits["train"]
    names, monitor = metrics_of(config, train.kind)
    labels = Labels(train.kind, train.classes)
    start, head = start_settings(config), config.head
    family = family_of_start(start, labels.task)
    tokens = build_encoder(start, head, family, lambda: letters_of(train), per_base=labels.per_base)
    rows = tokenise_splits(config, splits, tokens, None)
    longest = max(int(r.lengths.max(initial=1)) for r in rows.values())
    torch.manual_seed(config.seed)
    model = build_classifier(start, head, config.lora, family, labels, tokens, longest)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    limit = getattr(model.config, "max_length", None)
    if limit is not None and longest > limit:
        rows = tokenise_splits(config, splits, tokens, limit)
        longest = max(int(r.lengths.max(initial=1)) for r in rows.values())
    sets = batches_of(config, splits, rows, tokens)
    config = resolve(config, len(train), longest)
    evaluations = {
        name: evaluation_of(config, model, splits[name], sets[name], longest, names, monitor)
        for name in splits
        if name != "train"
    }
    world = max(fabric.world_size, planned_world(fabric, config.devices))
    if config.predictions:
        check_predictions(splits, world)
    schedule = LengthSchedule(config, world, sets["train"].epoch_size)
    notes = [*notes_of(config, splits), *_cut_by_stages(config, rows["train", False])]
    plan = Plan(
        config, family, model, tokens, splits, sets["train"], objective_of(config, model, train),
        evaluations, schedule, notes, "",
    )  # fmt: skip
    return replace(plan, text=_describe(plan, monitor, longest))


def check_predictions(splits: Mapping[str, LabeledSequences], world: int) -> None:
    """Check that predictions can be written, when they are asked for."""
    text = splits["test"].text if "test" in splits else None
    if splits["train"].kind != "nucleotides" or text is None or text.intervals is None:
        raise ConfigError(
            "predictions are written for labels of nucleotides on a genome with test places "
            "(genome.test); leave predictions out"
        )
    if world > 1:
        raise ConfigError(
            f"predictions are written by one process, and this run has {world}; leave them out"
        )


def letters_of(sequences: LabeledSequences) -> Iterable[str]:
    """Give every sequence as text."""
    return (alphabet.decode(sequences.sequence(i)) for i in range(len(sequences)))


def metrics_of(config: FinetuneConfig, kind: str) -> tuple[tuple[str, ...], str]:
    """Give the metrics to report and the one that chooses; both are checked."""
    names = list(config.metrics or metrics.default_metrics(kind))
    monitor = config.monitor or _MONITORS[kind]
    if monitor != "loss" and monitor not in names:
        names.append(monitor)
    metrics.check(names, kind)
    return tuple(names), monitor


def objective_of(
    config: FinetuneConfig, model: Any, train: LabeledSequences
) -> SequenceLabels | NucleotideLabels:
    """Give the training loss."""
    weights = config.head.class_weights
    if weights == "balanced":
        weights = balanced_weights(train.class_counts())
    if weights is not None and len(weights) != train.outputs:
        raise ConfigError(
            f"head.class_weights has {len(weights)} numbers, but there are {train.outputs} "
            f"classes: {', '.join(train.classes)}"
        )
    smoothing = config.head.label_smoothing
    if train.kind == "nucleotides":
        return NucleotideLabels(class_weights=weights, label_smoothing=smoothing)
    return SequenceLabels(
        train.kind,
        class_weights=weights,
        label_smoothing=smoothing,
        double_sigmoid=bool(getattr(model.config, "double_sigmoid", False)),
    )


def evaluation_of(
    config: FinetuneConfig,
    model: Any,
    split: LabeledSequences,
    data: LabeledBatches,
    longest: int,
    names: tuple[str, ...],
    monitor: str,
) -> EvalSet:
    """Give what measures a split: plain loss, and metrics over the whole of it."""
    nucleotides = split.kind == "nucleotides"
    double = bool(getattr(model.config, "double_sigmoid", False))
    return EvalSet(
        data=data,
        windows=len(split),
        length=longest,
        objective=NucleotideLabels(tabulate=True)
        if split.kind == "nucleotides"
        else SequenceLabels(split.kind, double_sigmoid=double),
        figures=None
        if nucleotides
        else lambda outputs: metrics.measure(names, split.kind, outputs, split.labels),
        table_figures=(lambda table: measure_table(names, split.outputs, table))
        if nucleotides
        else None,
        monitor=monitor,
        higher=metrics.higher_is_better(monitor),
    )


def _strands(config: FinetuneConfig, split: str) -> bool:
    """Tell whether a split needs the tokens of the other strand."""
    head = config.head
    return head.reverse_complement > 0 if split == "train" else head.strand_average


def tokenise_splits(
    config: FinetuneConfig,
    splits: Mapping[str, LabeledSequences],
    tokens: TokenEncoder,
    limit: int | None,
) -> dict[tuple[str, bool], Ragged]:
    """Give the tokens of every split and strand that is needed."""
    table = config.table
    bases = table.max_length
    room = tokens.room(limit) if limit is not None and table.truncate else None
    if room is not None:
        bases = room if bases is None else min(bases, room)
    return {
        (name, reverse): tokenize(
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


def batches_of(
    config: FinetuneConfig,
    splits: Mapping[str, LabeledSequences],
    rows: Mapping[tuple[str, bool], Ragged],
    tokens: TokenEncoder,
) -> dict[str, LabeledBatches]:
    """Give the batches of every split."""
    head = config.head
    return {
        name: LabeledBatches(
            rows[name, False],
            Ragged(split.labels, split.offsets) if split.kind == "nucleotides" else split.labels,
            padding=Padding(tokens.pad_id, head.padding == "left", head.pad_to_longest),
            draw=Draw(
                seed=config.seed,
                shuffle=name == "train",
                block=config.global_batch or 1,
                reverse_probability=head.reverse_complement if name == "train" else 0.0,
                crop=head.crop if name == "train" else 1.0,
            ),
            reverse=rows.get((name, True)),
            both_strands=name != "train" and head.strand_average,
        )
        for name, split in splits.items()
    }


def resolve(config: _Config, rows: int, longest: int) -> _Config:
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


def _cut_by_stages(config: FinetuneConfig, train: Ragged) -> list[str]:
    """Count the sequences whose ends no stage of the length warm-up reads."""
    beyond = int((train.lengths > config.longest).sum())
    if not beyond:
        return []
    return [
        f"{beyond:,} of {len(train.lengths):,} training sequences have more tokens than the "
        f"longest stage, {config.longest:,}: training never reads their ends"
    ]


def notes_of(config: FinetuneConfig, splits: Mapping[str, LabeledSequences]) -> list[str]:
    """Say what a reader of the numbers has to know."""
    notes: list[str] = []
    if "valid" not in splits:
        notes.append("no validation rows: the last checkpoint is measured")
    elif "test" in splits and _same_rows(splits["valid"].text, splits["test"].text):
        notes.append(
            "validation and test are the same file: the checkpoint is chosen on the test rows, so "
            "the test figures are too good"
        )
    return notes


def _same_rows(one: LabelTable, other: LabelTable) -> bool:
    """Tell whether two splits were read from the same file (of a genome: from the same windows)."""
    return one.source == other.source and one.intervals == other.intervals


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
        + (f"({classes}{', ...' if len(counts) > 10 else ''})" if counts else "numbers")
        + (", in bases" if train.kind == "nucleotides" else ""),
    ]
    lines += [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        + (f", {split.unknown:,} of {split.labels.size:,} labels not known" * bool(split.unknown))
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

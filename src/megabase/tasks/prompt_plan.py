"""What learning a prompt will do: data, model, vectors and steps, worked out before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megabase.data.batches import LabeledBatches
from megabase.data.labeled import LabeledSequences, Ragged
from megabase.errors import ConfigError, InputError, ModelError
from megabase.evaluate import metrics
from megabase.models.adapt.classifier import Labels, family_of_start
from megabase.models.tokenizers.encoder import TokenEncoder, build_encoder
from megabase.objectives.classification import SequenceLabels
from megabase.objectives.nucleotides import NucleotideLabels
from megabase.objectives.prompting import LabelTokens, strict_accuracy
from megabase.tasks.finetune_config import start_settings
from megabase.tasks.finetune_data import read_splits
from megabase.tasks.finetune_plan import (
    batches_of,
    check_predictions,
    evaluation_of,
    letters_of,
    metrics_of,
    notes_of,
    objective_of,
    resolve,
    tokenise_splits,
)
from megabase.tasks.prompt_config import PromptConfig
from megabase.training.evaluation import EvalSet
from megabase.training.process import planned_world
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from megabase.models.adapt.prompt import PromptedModel, PromptSpec

__all__ = ["PromptPlan", "plan_prompt", "prompted_model"]


@dataclass(frozen=True)
class PromptPlan:
    """What a run will do, worked out before its first step."""

    config: PromptConfig
    """The settings with stages and intervals filled in."""
    family: str
    """Model family."""
    model: PromptedModel
    """The frozen model with its prompt as it starts."""
    splits: Mapping[str, LabeledSequences]
    """Labelled sequences: train, and valid and test where there are any."""
    batches: LabeledBatches
    """Training batches."""
    objective: SequenceLabels | NucleotideLabels | LabelTokens
    """Training loss."""
    evaluations: Mapping[str, EvalSet]
    """Valid and test."""
    schedule: LengthSchedule
    """Stages in steps."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    text: str
    """All of it for people."""


def plan_prompt(config: PromptConfig, fabric: Fabric) -> PromptPlan:
    """Build everything a run needs and describe it; writes nothing.

    Raises
    ------
    MegabaseError
        For data, a model or settings that cannot be used, among them sequences that are too long
        beside the prompt.
    """
    splits = read_splits(config)
    train = splits["train"]
    names, monitor = metrics_of(config, train.kind)
    start = start_settings(config)
    family = family_of_start(start)
    per_base = Labels(train.kind, train.classes).per_base
    tokens = build_encoder(start, config.head, family, lambda: letters_of(train), per_base=per_base)
    torch.manual_seed(config.seed)
    model = prompted_model(config, family, tokens, train)
    rows = _token_rows(config, splits, tokens, model)
    longest = max(int(r.lengths.max(initial=1)) for r in rows.values())
    sets = batches_of(config, splits, rows, tokens)
    config = resolve(config, len(train), longest)
    evaluations = {
        name: _evaluation(config, model, split, sets[name], longest, names, monitor)
        for name, split in splits.items()
        if name != "train"
    }
    world = max(fabric.world_size, planned_world(fabric, config.devices))
    if config.predictions:
        check_predictions(splits, world)
    spec = model.spec
    objective = (
        objective_of(config, model, train)
        if spec.answer == "head"
        else LabelTokens(spec.label_ids, restricted=spec.restricted)
    )
    plan = PromptPlan(
        config=config,
        family=family,
        model=model,
        splits=splits,
        batches=sets["train"],
        objective=objective,
        evaluations=evaluations,
        schedule=LengthSchedule(config, world, sets["train"].epoch_size),
        notes=notes_of(config, splits),
        text="",
    )
    return replace(plan, text=_describe(plan, monitor, longest))


def prompted_model(
    config: PromptConfig, family: str, tokens: TokenEncoder, train: LabeledSequences
) -> PromptedModel:
    """Load the model and put a new prompt beside it, from torch's current seed."""
    from megabase.models.adapt.prompt import PROMPTED_FAMILIES, PromptedModel
    from megabase.models.auto import load_model
    from megabase.models.base import checkpoint_activations

    if family not in PROMPTED_FAMILIES:
        raise ModelError(
            f"{config.model} is of the family {family}, which cannot read a soft prompt; the "
            f"families {', '.join(PROMPTED_FAMILIES)} can"
        )
    settings = config.prompt
    spec = _spec(config, tokens, train)
    kind = "causal-lm" if settings.answer == "label_tokens" else "base"
    frozen = load_model(str(config.model), kind).train()
    if config.activation_checkpointing:
        checkpoint_activations(frozen, config.checkpointing_stretch)
    start = None
    if settings.start == "vocabulary":
        bases = torch.tensor([_token(tokens, letter) for letter in "ACGT"])
        table: Any = frozen.get_input_embeddings()
        start = table.weight.detach()[bases[torch.randint(4, (spec.length,))]]
    return PromptedModel(frozen, spec, start=start, dropout=settings.dropout)


def _spec(config: PromptConfig, tokens: TokenEncoder, train: LabeledSequences) -> PromptSpec:
    from megabase.models.adapt.prompt import PromptSpec, label_letters

    settings = config.prompt
    spec: dict[str, Any] = {
        "length": settings.length,
        "position": settings.position,
        "answer": settings.answer,
        "classes": train.classes,
        "kind": train.kind,
    }
    if settings.answer == "head":
        over = settings.over
        if over == "auto":
            over = "sequence" if settings.position == "before" or not settings.length else "all"
        return PromptSpec(**spec, pooling=config.head.pooling or "mean", over=over)
    if train.kind != "classes":
        raise ConfigError(
            f"prompt.answer is label_tokens, which is for classes, and the labels are "
            f"{train.kind}; take prompt.answer='head'"
        )
    letters = label_letters(len(train.classes))
    return PromptSpec(
        **spec,
        letters=letters,
        label_ids=tuple(_token(tokens, letter) for letter in letters),
        end_id=tokens.tokenizer.sep_token_id,
        restricted=settings.letters == "labels",
    )


def _token(tokens: TokenEncoder, letter: str) -> int:
    found = tokens.tokenizer.convert_tokens_to_ids(letter)
    if found is None or found == tokens.tokenizer.unk_token_id:
        raise ConfigError(
            f"the tokenizer {type(tokens.tokenizer).__name__} has no token {letter}; take "
            "prompt.answer='head', with prompt.start='noise'"
        )
    return int(found)


def _token_rows(
    config: PromptConfig,
    splits: Mapping[str, LabeledSequences],
    tokens: TokenEncoder,
    model: PromptedModel,
) -> dict[tuple[str, bool], Ragged]:
    """Turn sequences into tokens; each must fit beside the prompt."""
    limit = model.max_length
    rows = tokenise_splits(config, splits, tokens, None)
    if limit is None or max(int(r.lengths.max(initial=1)) for r in rows.values()) <= limit:
        return rows
    if config.table.truncate:
        return tokenise_splits(config, splits, tokens, limit)
    spec = model.spec
    for (name, _), found in rows.items():
        over = np.flatnonzero(found.lengths > limit)
        if len(over):
            first, separator = int(over[0]), spec.extra - spec.length
            room = limit + spec.length - int(found.lengths.max())
            shorter = f", take a prompt of at most {room} vectors" if room >= 0 else ""
            raise InputError(
                f"{splits[name].where(first)}: {int(found.lengths[first]):,} tokens, a prompt of "
                f"{spec.length:,}{' and a separator' if separator else ''} are longer than the "
                f"model's longest input, {limit + spec.extra:,} ({len(over):,} rows are too long, "
                f"the longest has {int(found.lengths.max()):,} tokens); cut them with "
                f"table.truncate{shorter}, or take a model with a longer input"
            )
    return rows


def _evaluation(
    config: PromptConfig,
    model: PromptedModel,
    split: LabeledSequences,
    data: LabeledBatches,
    longest: int,
    names: tuple[str, ...],
    monitor: str,
) -> EvalSet:
    """Give what measures a split; with label tokens also the published, stricter accuracy."""
    windows = evaluation_of(config, model, split, data, longest, names, monitor)
    spec = model.spec
    if spec.answer == "head":
        return windows
    ids = list(spec.label_ids)
    return replace(
        windows,
        objective=LabelTokens(ids, restricted=spec.restricted),
        figures=lambda outputs: {
            **metrics.measure(names, split.kind, outputs[:, ids], split.labels),
            "strict_accuracy": strict_accuracy(outputs, split.labels, ids),
        },
    )


def _describe(plan: PromptPlan, monitor: str, longest: int) -> str:
    config, spec, train = plan.config, plan.model.spec, plan.splits["train"]
    frozen = sum(p.numel() for p in plan.model.model.parameters())
    counts = train.class_counts()
    classes = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:10])
    if spec.answer == "head":
        answer = f"a linear head, {spec.pooling} of {spec.over}"
    else:
        pairs = zip(train.classes, spec.letters, strict=True)
        answer = "label tokens " + ", ".join(f"{name} = {letter}" for name, letter in pairs)
    where = f" {'on both sides of' if spec.position == 'both' else spec.position} the sequence"
    lines = [
        f"model       {plan.family}, {frozen:,} parameters, all frozen, from {config.model}",
        f"prompt      {spec.length:,} vectors{where if spec.length else ''}; answer by {answer}; "
        f"{plan.model.trained_parameters:,} parameters trained",
        f"labels      {train.kind}: {train.outputs} "
        + (f"({classes}{', ...' if len(counts) > 10 else ''})" if counts else "numbers"),
    ]
    lines += [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        for name, split in plan.splits.items()
    ]
    lines.append(
        f"lengths     {longest:,} tokens at most, {longest + spec.extra:,} with the prompt"
    )
    if plan.model.trained_parameters:
        lines += [
            f"budget      {plan.schedule.total_steps:,} steps of "
            f"{plan.schedule.at(0).global_batch} sequences",
            f"optimizer   AdamW, lr {config.optim.lr:g} ({config.optim.schedule}), "
            f"weight decay {config.optim.weight_decay:g}, precision {config.precision}",
        ]
        if "valid" in plan.evaluations:
            lines.append(f"validation  every {config.eval_every} steps; {monitor} chooses the best")
    else:
        lines.append("budget      nothing to train: the model is asked as it is")
    lines += [f"note        {note}" for note in plan.notes]
    lines.append(f"output      {config.output}")
    return "\n".join(lines)

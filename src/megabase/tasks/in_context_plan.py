"""What a run of questions behind solved examples will do, worked out before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from megabase.data.batches import InContextBatches, prompt_tokens
from megabase.data.label_files import find_splits, read_text
from megabase.data.labeled import LabeledSequences, label_splits, split_rows
from megabase.data.vocabulary import PAD_ID
from megabase.errors import ConfigError, ModelError, TruncationWarning, warn
from megabase.evaluate import metrics
from megabase.models.tokenizers.character import DNATokenizer
from megabase.objectives.prompting import InContext, strict_accuracy
from megabase.settings import Stage
from megabase.tasks.in_context_config import InContextConfig
from megabase.training.evaluation import EvalSet
from megabase.training.process import planned_world
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn
    from transformers import PreTrainedModel

    from megabase.models.adapt.prompt import PromptedModel, PromptSpec

__all__ = ["InContextPlan", "fixed_examples", "plan_in_context"]

_EVAL_BATCH = 16


@dataclass(frozen=True)
class InContextPlan:
    """What a run will do, worked out before its first step."""

    config: InContextConfig
    """The settings with stages and intervals filled in."""
    family: str
    """Model family."""
    language_model: PreTrainedModel
    """The model."""
    model: nn.Module
    """What is asked: the model, or the model with a soft prompt."""
    tokenizer: Any
    """Its tokenizer."""
    letters: str
    """Letter of each class."""
    splits: Mapping[str, LabeledSequences]
    """Labelled sequences."""
    batches: InContextBatches
    """Training questions."""
    objective: InContext
    """Training loss."""
    evaluations: Mapping[str, EvalSet]
    """Valid and test."""
    schedule: LengthSchedule
    """Stages in steps."""
    tokens: int
    """Tokens of a question with its examples and prompt."""
    notes: list[str]
    """What a reader of the numbers has to know."""
    text: str
    """All of it for people."""

    @property
    def prompted(self) -> PromptedModel:
        """The model with its soft prompt."""
        return cast("PromptedModel", self.model)


def plan_in_context(config: InContextConfig, fabric: Fabric) -> InContextPlan:
    """Build everything a run needs and describe it; writes nothing.

    Raises
    ------
    MegabaseError
        For data, a model or settings that cannot be used, among them questions that are too long.
    """
    from megabase.models.adapt.prompt import PROMPTED_FAMILIES, label_letters
    from megabase.models.auto import load_config, load_model, load_tokenizer
    from megabase.models.base import checkpoint_activations
    from megabase.models.families import family_of

    splits, notes = read_splits(config)
    train = splits["train"]
    name = config.model
    family = family_of(load_config(name).model_type)
    if family is None or family.name not in PROMPTED_FAMILIES:
        raise ModelError(
            f"{config.model} does not predict the next token; models of the families "
            f"{', '.join(PROMPTED_FAMILIES)} do"
        )
    letters = label_letters(len(train.classes))
    length = config.max_length or max(int(s.lengths.max(initial=1)) for s in splits.values())
    _count_cut(splits, length)
    torch.manual_seed(config.seed)
    language_model = load_model(name, "causal-lm").train()
    tokenizer = load_tokenizer(name)
    ids = tuple(int(tokenizer.convert_tokens_to_ids(letter)) for letter in letters)
    _check_model(config, tokenizer, language_model)
    vectors = config.vectors if config.tune == "prompt" else 0
    tokens = _check_length(config, language_model, length, len(letters), vectors)
    model: nn.Module = language_model
    if config.tune == "prompt":
        model = _prompted(config, language_model, train, letters, ids, tokenizer)
    if config.activation_checkpointing:
        checkpoint_activations(language_model, config.checkpointing_stretch)
    questions = train
    if config.samples is not None and config.samples < len(train):
        rng = np.random.default_rng([config.seed, 1])
        questions = train.take(np.sort(rng.permutation(len(train))[: config.samples]))
    options: dict[str, Any] = {
        "letters": letters, "length": length, "shots": config.shots, "seed": config.seed,
    }  # fmt: skip
    batches = InContextBatches(
        questions,
        train,
        shuffle=True,
        reverse_probability=config.reverse_complement,
        **options,
    )
    restricted, prompted = config.letters == "labels", config.tune == "prompt"
    objective = InContext(ids, restricted=restricted, every_answer=True, prompted=prompted)
    evaluations = {
        split: EvalSet(
            data=InContextBatches(
                rows, rows if config.examples == "published" else train, **options
            ),
            windows=len(rows),
            length=batches.longest,
            objective=InContext(ids, restricted=restricted, prompted=prompted),
            figures=_figures(rows, ids),
            monitor="loss",
        )
        for split, rows in splits.items()
        if split != "train"
    }
    config = _resolve(config, len(batches), batches.longest)
    world = max(fabric.world_size, planned_world(fabric, config.devices))
    plan = InContextPlan(
        config=config,
        family=family.name,
        language_model=language_model,
        model=model,
        tokenizer=tokenizer,
        letters=letters,
        splits=splits,
        batches=batches,
        objective=objective,
        evaluations=evaluations,
        schedule=LengthSchedule(config, world, batches.epoch_size),
        tokens=tokens,
        notes=notes,
        text="",
    )
    return replace(plan, text=_describe(plan, length))


def read_splits(config: InContextConfig) -> tuple[dict[str, LabeledSequences], list[str]]:
    """Read the splits that the run needs; validation rows only where they choose a prompt."""
    paths: dict[str, Any] = {"train": config.train, "valid": config.valid, "test": config.test}
    inside = find_splits(config.train) if Path(config.train).is_dir() else {}
    if "train" in inside:
        paths = {name: paths[name] or inside.get(name) for name in paths} | {
            "train": inside["train"]
        }
    if config.tune != "prompt":
        paths["valid"] = None
    table = config.table
    texts = {
        name: read_text(
            path, sequence=table.sequence, label=table.label, fasta_label=table.fasta_label
        )
        for name, path in paths.items()
        if path is not None
    }
    splits = label_splits(texts, "classes")
    notes: list[str] = []
    if config.tune == "prompt" and "valid" not in splits:
        if not table.validation_fraction:
            raise ConfigError(
                "there are no validation rows to choose the prompt by; name a file as valid, or "
                "set table.validation_fraction"
            )
        kept, cut = split_rows(splits["train"].labels, table.validation_fraction, config.seed)
        splits |= {"train": splits["train"].take(kept), "valid": splits["train"].take(cut)}
    rows = splits.get("test")
    if rows is not None and config.test_rows is not None and config.test_rows < len(rows):
        order = np.random.default_rng([config.seed, 2]).permutation(len(rows))
        splits["test"] = rows.take(np.sort(order[: config.test_rows]))
        notes.append(f"{config.test_rows:,} of {len(rows):,} test sequences are asked")
    if config.examples == "published" and config.shots:
        notes.append(
            "the examples of valid and test questions come from the questions' own split, as in "
            "the published code: the model is shown labels of the split that it is measured on"
        )
    return {name: splits[name] for name in ("train", "valid", "test") if name in splits}, notes


def _count_cut(splits: Mapping[str, LabeledSequences], length: int) -> None:
    for split in splits.values():
        cut = int((split.lengths > length).sum())
        if cut:
            warn(
                f"{cut:,} of {len(split):,} sequences of {split.text.source} are cut to "
                f"{length:,} bases",
                TruncationWarning,
            )


def _check_model(config: InContextConfig, tokenizer: Any, model: PreTrainedModel) -> None:
    if not isinstance(tokenizer, DNATokenizer):
        raise ConfigError(
            f"solved examples need one token for each base; the tokenizer of {config.model} is "
            f"{type(tokenizer).__name__}"
        )
    if not getattr(model.config, "is_causal_model", True):
        raise ConfigError(
            f"{config.model} looks ahead; questions need a model that reads left to right"
        )


def _check_length(
    config: InContextConfig, model: PreTrainedModel, length: int, classes: int, vectors: int
) -> int:
    """Give the tokens of a question with its examples and prompt, which must fit the model."""
    limit = getattr(model.config, "max_length", None)
    needed = prompt_tokens(length, config.shots * classes) + vectors
    if limit is not None and needed > limit:
        fits = int((limit - vectors - length - 1) // ((length + 3) * classes))
        first = f"shots of at most {fits}, " if fits >= 0 else ""
        raise ConfigError(
            f"{config.shots} examples for each of {classes} classes, sequences of {length:,} tokens"
            + (f" and a prompt of {vectors:,}" if vectors else "")
            + f" make {needed:,} tokens, and {config.model} reads {int(limit):,}; take {first}"
            "shorter sequences (max_length), or a model with a longer input"
        )
    return needed


def _prompted(
    config: InContextConfig,
    model: PreTrainedModel,
    train: LabeledSequences,
    letters: str,
    ids: tuple[int, ...],
    tokenizer: Any,
) -> PromptedModel:
    from megabase.models.adapt.prompt import PromptedModel, PromptSpec

    spec = PromptSpec(
        length=config.vectors,
        classes=train.classes,
        letters=letters,
        label_ids=ids,
        end_id=int(tokenizer.sep_token_id),
        restricted=config.letters == "labels",
    )
    return PromptedModel(model, spec, dropout=config.dropout)


def fixed_examples(plan: InContextPlan) -> PromptSpec:
    """Give what a saved prompt is: with one draw of solved examples, the same for every question.

    So a prompt that was learnt in front of examples can be used on sequences alone.
    """
    spec = plan.prompted.spec
    block = plan.batches.length
    if plan.config.shots:
        first = plan.batches.batch(0, np.zeros(1, dtype=np.int64), 0)["input_ids"][0]
        examples = tuple(first[: -(block + 1)].tolist())
        spec = replace(spec, examples=examples, block=block, pad_id=PAD_ID)
    return spec


def _figures(rows: LabeledSequences, ids: tuple[int, ...]) -> Any:
    names = metrics.default_metrics("classes")
    columns = list(ids)
    return lambda outputs: {
        **metrics.measure(names, "classes", outputs[:, columns], rows.labels),
        "strict_accuracy": strict_accuracy(outputs, rows.labels, columns),
    }


def _resolve(config: InContextConfig, rows: int, length: int) -> InContextConfig:
    """Fill in what depends on the data: the length, the steps of an epoch."""
    epochs = None if config.steps is not None else config.epochs
    # Past the constructor, which refuses stages from outside.
    copied = replace(
        config,
        eval_every=config.eval_every or -(-rows // (config.global_batch or 1)),
        eval_batch=config.eval_batch or config.micro_batch or _EVAL_BATCH,
    )
    stage = Stage(length=length, micro_batch=config.micro_batch, epochs=epochs)
    object.__setattr__(copied, "stages", (stage,))
    return copied


def _describe(plan: InContextPlan, length: int) -> str:
    config, train = plan.config, plan.splits["train"]
    parameters = sum(p.numel() for p in plan.language_model.parameters())
    tuned = {
        "none": "nothing is trained",
        "prompt": f"{config.vectors:,} vectors are trained, the model is frozen",
        "all": "all weights are trained",
    }[config.tune]
    letters = ", ".join(f"{n} = {x}" for n, x in zip(train.classes, plan.letters, strict=True))
    source = "their own split" if config.examples == "published" else "the training rows"
    lines = [
        f"model       {plan.family}, {parameters:,} parameters, from {config.model}; {tuned}",
        f"questions   {config.shots} solved examples for each of {len(train.classes)} classes "
        f"({letters}), from {source}; {length:,} tokens a sequence, {plan.tokens:,} in all",
    ]
    lines += [
        f"{name:<11} {len(split):,} sequences of {split.text.source}"
        for name, split in plan.splits.items()
    ]
    if config.tune != "none":
        lines.append(
            f"budget      {plan.schedule.total_steps:,} steps of "
            f"{plan.schedule.at(0).global_batch} questions out of {len(plan.batches):,}; AdamW, "
            f"lr {config.optim.lr:g} ({config.optim.schedule}), "
            f"weight decay {config.optim.weight_decay:g}"
        )
    lines += [f"note        {note}" for note in plan.notes]
    lines.append(f"output      {config.output}")
    return "\n".join(lines)

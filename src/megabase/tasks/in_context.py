"""In-context learning: queries behind demonstrations, for a model before or after tuning."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from megabase.data.batches import InContextBatches
from megabase.data.labeled import LabeledSequences, label_splits, split_rows
from megabase.data.vocabulary import PAD_ID
from megabase.errors import ConfigError, ModelError, TruncationWarning, warn
from megabase.evaluate import metrics
from megabase.models.adapt import prompt
from megabase.models.auto import load_config, load_model, load_tokenizer
from megabase.models.base import checkpoint_activations
from megabase.models.checkpoints.convert import write_model
from megabase.models.families import family_of
from megabase.models.tokenizers.character import DNATokenizer
from megabase.objectives.labels import InContext
from megabase.settings import Stage, TrainConfig
from megabase.tasks.config import InContextConfig
from megabase.tasks.finetune import answer_metrics
from megabase.tasks.labeled_data import describe_data, read_files, split_lines
from megabase.tasks.run import Done, Plan, RunResult, execute, lay_out
from megabase.training.evaluation import EvalSet, evaluate

_EVAL_BATCH = 16
"""Queries of a validation batch by default; each is many times as long as its sequence."""


def in_context(
    config: InContextConfig, *, dry_run: bool = False, console: Console | None = None
) -> RunResult | None:
    """Evaluate a language model on queries behind demonstrations, after tuning on request.

    Arguments and errors are those of :func:`megabase.tasks.finetune.finetune`. The result has
    ``model``, ``tune`` and ``examples`` as in the settings, ``shots`` of each class, ``samples``,
    the training queries (0 without training), ``vectors``, the soft-prompt tokens, ``letters`` by
    class, and ``tokens`` of a query with its demonstrations and prompt.
    """
    return execute(config, _plan, _conclude, dry_run=dry_run, console=console)


def _plan(config: InContextConfig, fabric: Fabric) -> Plan:
    splits, notes = _read_splits(config)
    train, shots, prompts = splits["train"], config.shots, config.tune == "prompt"
    family = family_of(load_config(config.model).model_type)
    if family is None or family.name not in prompt.PROMPTED_FAMILIES:
        raise ModelError(
            f"{config.model} does not predict the next token; models of the families "
            f"{', '.join(prompt.PROMPTED_FAMILIES)} do"
        )
    letters = prompt.label_letters(len(train.classes))
    length = config.max_length or max(int(s.lengths.max(initial=1)) for s in splits.values())
    for split in splits.values():
        if cut := int((split.lengths > length).sum()):
            warn(
                f"{cut:,} of {len(split):,} sequences of {split.text.source} are cut to "
                f"{length:,} bases",
                TruncationWarning,
            )
    torch.manual_seed(config.seed)
    model = load_model(config.model, "causal-lm").train()
    tokenizer: Any = load_tokenizer(config.model)
    ids = tuple(int(tokenizer.convert_tokens_to_ids(letter)) for letter in letters)
    _check_model(config.model, tokenizer, model)
    vectors = config.vectors if prompts else 0
    limit = getattr(model.config, "max_length", None)
    tokens = _check_length(config.model, limit, shots, length, len(letters), vectors)
    restricted = config.letters == "labels"
    asked: Any = model
    if prompts:
        spec = prompt.PromptSpec(
            length=vectors, classes=train.classes, letters=letters, label_ids=ids,
            end_id=int(tokenizer.sep_token_id), restricted=restricted,
        )  # fmt: skip
        asked = prompt.PromptedModel(model, spec, dropout=config.dropout)
    if config.activation_checkpointing:
        checkpoint_activations(model, config.checkpointing_stretch)
    queries = train
    if config.samples is not None and config.samples < len(train):
        rng = np.random.default_rng([config.seed, 1])
        queries = train.take(np.sort(rng.permutation(len(train))[: config.samples]))
    build = partial(InContextBatches, letters=letters, length=length, shots=shots, seed=config.seed)
    batches = build(queries, train, shuffle=True, reverse_probability=config.reverse_complement)
    evaluations = {
        split: EvalSet(
            data=build(rows, rows if config.examples == "published" else train),
            windows=len(rows), length=batches.longest,
            objective=InContext(ids, restricted=restricted, prompted=prompts),
            metrics=answer_metrics(metrics.default_metrics("classes"), rows, ids),
        )
        for split, rows in splits.items()
        if split != "train"
    }  # fmt: skip
    epochs = None if config.steps is not None else config.epochs
    settings = config.part(
        TrainConfig,
        stages=(Stage(length=batches.longest, micro_batch=config.micro_batch, epochs=epochs),),
        eval_every=config.eval_every or -(-len(batches) // config.global_batch),
        eval_batch=config.eval_batch or config.micro_batch or _EVAL_BATCH,
    )
    schedule = lay_out(settings, fabric, batches)

    def save(folder: Path, state: Mapping[str, Any]) -> None:
        if not prompts:
            write_model(folder, model, tokenizer, state)
            return
        facts = {"shots": shots, "examples": "one draw of the training rows"}
        spec = _fixed_examples(asked.spec, batches, shots)
        prompt.save_prompt(asked, folder, model=config.model, state=state, facts=facts, spec=spec)

    named = dict(zip(train.classes, letters, strict=True))
    parameters = sum(p.numel() for p in model.parameters())
    tuned = {
        "none": "nothing is trained",
        "prompt": f"{config.vectors:,} vectors are trained, the model is frozen",
        "all": "all weights are trained",
    }[config.tune]
    source = "their own split" if config.examples == "published" else "the training rows"
    lines = [
        f"model       {family.name}, {parameters:,} parameters, from {config.model}; {tuned}",
        f"queries     {shots} demonstrations for each of {len(train.classes)} classes "
        f"({', '.join(f'{n} = {x}' for n, x in named.items())}), from {source}; "
        f"{length:,} tokens a sequence, {tokens:,} in all",
        *split_lines(splits),
    ]
    trains = config.tune != "none"
    if trains:
        lines.append(
            f"budget      {schedule.total_steps:,} steps of "
            f"{schedule.at(0).global_batch} queries out of {len(batches):,}; {settings.optim}"
        )
    return Plan(
        settings=settings, family=family.name, model=asked, batches=batches,
        objective=InContext(ids, restricted=restricted, every_answer=True, prompted=prompts),
        evaluations=evaluations, schedule=schedule, save_model=save,
        data=describe_data(splits, config.model), lines=lines, splits=splits, notes=notes,
        trains=trains, facts={
            "model": config.model, "tune": config.tune, "shots": shots,
            "samples": len(batches) if trains else 0, "vectors": vectors,
            "examples": config.examples, "letters": named, "tokens": tokens,
        },
    )  # fmt: skip


def _read_splits(config: InContextConfig) -> tuple[dict[str, LabeledSequences], list[str]]:
    """Read the splits that the run needs; validation rows only where they choose a prompt."""
    table, prompts = config.table, config.tune == "prompt"
    names = ("train", "valid", "test") if prompts else ("train", "test")
    splits = label_splits(read_files(config, names), "classes")
    notes: list[str] = []
    if prompts and "valid" not in splits:
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
        notes.append(f"{config.test_rows:,} of {len(rows):,} test sequences are evaluated")
    if config.examples == "published" and config.shots:
        notes.append(
            "the demonstrations of valid and test queries come from the queries' own split, as in "
            "the published code: the model is shown labels of the split that it is measured on"
        )
    return {name: splits[name] for name in ("train", "valid", "test") if name in splits}, notes


def _check_model(name: str, tokenizer: Any, model: Any) -> None:
    if not isinstance(tokenizer, DNATokenizer):
        raise ConfigError(
            f"demonstrations need one token for each base; the tokenizer of {name} is "
            f"{type(tokenizer).__name__}"
        )
    if not getattr(model.config, "is_causal_model", True):
        raise ConfigError(f"{name} looks ahead; queries need a model that reads left to right")


def _check_length(
    name: str, limit: int | None, shots: int, length: int, classes: int, vectors: int
) -> int:
    """Give the tokens of a query with its demonstrations and prompt, which must fit the model."""
    needed = InContextBatches.tokens_of(length, shots * classes) + vectors
    if limit is not None and needed > limit:
        fits = int((limit - vectors - length - 1) // ((length + 3) * classes))
        first = f"shots of at most {fits}, " if fits >= 0 else ""
        raise ConfigError(
            f"{shots} demonstrations for each of {classes} classes, sequences of {length:,} tokens"
            + (f" and a prompt of {vectors:,}" if vectors else "")
            + f" make {needed:,} tokens, and {name} reads {int(limit):,}; take {first}"
            "shorter sequences (max_length), or a model with a longer input"
        )
    return needed


def _fixed_examples(
    spec: prompt.PromptSpec, batches: InContextBatches, shots: int
) -> prompt.PromptSpec:
    """Give the spec of a saved prompt, with one draw of demonstrations for every query."""
    if not shots:
        return spec
    first = batches.batch(0, np.zeros(1, dtype=np.int64), 0)["input_ids"][0]
    examples = tuple(first[: -(batches.length + 1)].tolist())
    return replace(spec, examples=examples, block=batches.length, pad_id=PAD_ID)


def _conclude(config: InContextConfig, done: Done) -> RunResult:
    model: nn.Module = done.plan.model
    found: dict[str, dict[str, float]] = {}
    if done.stopped:
        return RunResult.of(done, found)
    if config.tune == "all":
        model = load_model(done.chosen, "causal-lm", device=done.fabric.device)
    elif config.tune == "prompt":
        model.load_state_dict(prompt.read_prompt(done.chosen).tensors)
    for name, windows in done.plan.evaluations.items():
        scored = evaluate(model, windows, done.plan.settings.eval_batch or 1, done.fabric)
        found[name] = {"loss": scored.loss, **scored.metrics}
    return RunResult.of(done, found)

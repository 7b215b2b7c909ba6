"""Soft prompts: tokens are learned alongside the sequences while the model stays frozen.

Validation chooses the best prompt; the test rows are read for their labels at the start and scored
once, with that prompt, at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console

from megabase.data.labeled import LabeledSequences
from megabase.errors import ConfigError, InputError, ModelError
from megabase.genome.files import write_whole
from megabase.models.adapt import prompt
from megabase.models.auto import load_model
from megabase.models.base import checkpoint_activations
from megabase.models.tokenizers.encoder import TokenEncoder
from megabase.objectives.labels import LabelTokens
from megabase.settings import StartConfig
from megabase.tasks.config import PromptConfig, PromptSettings
from megabase.tasks.finetune import LabeledRun, measure_splits
from megabase.tasks.run import Done, Plan, RunResult, execute


def learn_prompt(
    config: PromptConfig, *, dry_run: bool = False, console: Console | None = None
) -> RunResult | None:
    """Learn a prompt for a frozen model and measure it.

    Arguments, errors and the result are those of :func:`megabase.tasks.finetune.finetune`, without
    the speeds; with ``model``, ``length`` in soft-prompt tokens, ``position``, ``answer`` and
    ``prompt_bytes``, the size of the prompt that is saved in ``prompt``.
    """
    return execute(config, _plan, _conclude, dry_run=dry_run, console=console)


def _conclude(config: PromptConfig, done: Done) -> RunResult:
    found: dict[str, dict[str, float]] = {}
    spec = done.plan.model.spec
    if not done.stopped:
        columns = list(spec.label_ids) if spec.answer == "label_tokens" else None
        found = measure_splits(config, done, _keep_best(done), columns)
    return RunResult.of(
        done, found, model=config.model, length=spec.length, position=spec.position,
        answer=spec.answer, parameters=sum(p.numel() for p in done.plan.model.model.parameters()),
        epochs=done.epochs,
        prompt_bytes=sum(file.stat().st_size for file in (done.run / "prompt").glob("*")),
    )  # fmt: skip


def _plan(config: PromptConfig, fabric: Fabric) -> Plan:
    run = LabeledRun(config, StartConfig(model=config.model), "sequence-classification")
    head = run.head
    if run.family not in prompt.PROMPTED_FAMILIES:
        raise ModelError(
            f"{config.model} is of the family {run.family}, which cannot read a soft prompt; the "
            f"families {', '.join(prompt.PROMPTED_FAMILIES)} can"
        )
    torch.manual_seed(config.seed)
    spec = _spec(config.prompt, head.pooling, run.tokens, run.train)
    frozen = load_model(config.model, "base" if spec.answer == "head" else "causal-lm").train()
    if config.activation_checkpointing:
        checkpoint_activations(frozen, config.checkpointing_stretch)
    start = None
    if config.prompt.start == "vocabulary":
        bases = torch.tensor([_token(run.tokens, letter) for letter in "ACGT"])
        table: Any = frozen.get_input_embeddings()
        start = table.weight.detach()[bases[torch.randint(4, (spec.length,))]]
    model = prompt.PromptedModel(frozen, spec, start=start, dropout=config.prompt.dropout)
    _tokenize(run, model, truncate=config.table.truncate)
    facts = {
        "padding": head.padding,
        "strand_average": head.strand_average,
        "reverse_complement": head.reverse_complement,
        "longest": int(run.rows["train", False].lengths.max(initial=1)),
    }

    def save(folder: Path, state: Mapping[str, Any] | None) -> None:
        prompt.save_prompt(model, folder, model=config.model, state=state, facts=facts)

    return run.plan(
        fabric,
        model,
        save,
        _model_lines(config.model, run.family, model, run.train),
        lengths=f"{run.longest:,} tokens at most, {run.longest + spec.extra:,} with the prompt",
        label_tokens=None
        if spec.answer == "head"
        else LabelTokens(spec.label_ids, restricted=spec.restricted),
        trains=model.trained_parameters > 0,
    )


def _spec(
    settings: PromptSettings, pooling: str | None, tokens: TokenEncoder, train: LabeledSequences
) -> prompt.PromptSpec:
    spec: dict[str, Any] = {
        "length": settings.length, "position": settings.position, "layers": settings.layers,
        "answer": settings.answer, "classes": train.classes, "kind": train.kind,
    }  # fmt: skip
    if settings.answer == "head":
        over = settings.over
        if over == "auto":
            over = "sequence" if settings.position == "before" or not settings.length else "all"
        return prompt.PromptSpec(**spec, pooling=pooling or "mean", over=over)
    if train.kind != "classes":
        raise ConfigError(
            f"prompt.answer is label_tokens, which is for classes, and the labels are "
            f"{train.kind}; take prompt.answer='head'"
        )
    letters = prompt.label_letters(len(train.classes))
    return prompt.PromptSpec(
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


def _tokenize(run: LabeledRun, model: prompt.PromptedModel, *, truncate: bool) -> None:
    """Turn sequences into tokens; each must fit in the model together with the prompt."""
    limit, spec = model.max_length, model.spec
    run.tokenize()
    if limit is None or run.longest <= limit:
        return
    if truncate:
        run.tokenize(limit)
        return
    (name, _), found = next(
        item for item in run.rows.items() if int(item[1].lengths.max(initial=1)) > limit
    )
    over = np.flatnonzero(found.lengths > limit)
    first, separator = int(over[0]), spec.extra - spec.length
    room = limit + spec.length - int(found.lengths.max())
    shorter = f", take a prompt of at most {room} vectors" if room >= 0 else ""
    raise InputError(
        f"{run.splits[name].where(first)}: {int(found.lengths[first]):,} tokens, a prompt of "
        f"{spec.length:,}{' and a separator' if separator else ''} are longer than the "
        f"model's longest input, {limit + spec.extra:,} ({len(over):,} rows are too long, "
        f"the longest has {int(found.lengths.max()):,} tokens); cut them with "
        f"table.truncate{shorter}, or take a model with a longer input"
    )


def _model_lines(
    name: str, family: str, model: prompt.PromptedModel, train: LabeledSequences
) -> list[str]:
    spec = model.spec
    frozen = sum(p.numel() for p in model.model.parameters())
    if spec.answer == "head":
        answer = f"a linear head, {spec.pooling} of {spec.over}"
    else:
        pairs = zip(train.classes, spec.letters, strict=True)
        answer = "label tokens " + ", ".join(f"{label} = {letter}" for label, letter in pairs)
    where = f" {'on both sides of' if spec.position == 'both' else spec.position} the sequence"
    return [
        f"model       {family}, {frozen:,} parameters, all frozen, from {name}",
        f"prompt      {spec.length:,} vectors{where if spec.length else ''}; answer by {answer}; "
        f"{model.trained_parameters:,} parameters trained",
    ]


def _keep_best(done: Done) -> prompt.PromptedModel:
    """Copy the chosen prompt to ``run/prompt``, without the training state; read it from there."""
    target = done.run / "prompt"
    if done.fabric.global_rank == 0:
        target.mkdir(exist_ok=True)
        if not done.plan.trains:
            done.plan.save_model(target, {})
        else:
            for name in prompt.PROMPT_FILES:
                write_whole(target / name, (done.chosen / name).read_bytes())
    done.fabric.barrier()
    return prompt.load_prompt(target, done.plan.model.model)

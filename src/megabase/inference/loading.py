"""Any model of the project with its tokenizer, by name or as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from megabase.inference.errors import InferenceError
from megabase.inference.model import ModelSpec, model_digest, shown_name
from megabase.inference.tokens import TokenEncoder, uses_special_tokens
from megabase.models.prompting import PromptedModel

__all__ = ["Loaded", "find_class", "load_any", "looks_back_only"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked.

    Parameters
    ----------
    model
        The transformers model.
    kind
        One of :data:`megabase.models.families.KINDS`.
    name
        Its name, for outputs.
    encoder
        From base codes to its tokens.
    folder
        Where it was; None for a model in memory.
    digest
        sha256 over configuration and weights.
    both_strands
        Whether the figures of its training are those of both strands averaged.
    """

    model: Any
    kind: str
    name: str
    encoder: TokenEncoder
    folder: Path | None
    digest: str
    both_strands: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def longest(self) -> int | None:
        """Longest sequence in tokens; None when there is no limit."""
        # A soft prompt takes positions of the model, which the prompted model has counted.
        holder = self.model if isinstance(self.model, PromptedModel) else self.model.config
        return getattr(holder, "max_length", None)

    @property
    def padded(self) -> bool:
        """Whether sequences of different lengths may share a batch without a trace."""
        return self.encoder.per_base and looks_back_only(self.model.config)

    def class_names(self) -> tuple[str, ...]:
        """Names of the outputs of a head, by number."""
        names = {int(i): str(name) for i, name in (self.model.config.id2label or {}).items()}
        return tuple(names[i] for i in sorted(names))


def looks_back_only(config: Any) -> bool:
    """Tell from its configuration whether a model of ours never sees the bases after a position."""
    causal = getattr(config, "is_causal_model", None)
    return config.model_type == "megabase_mamba" if causal is None else bool(causal)


def load_any(
    spec: ModelSpec = None,
    *,
    prompt: str | Path | None = None,
    base: bool = False,
    device: str | torch.device | None = None,
) -> Loaded:
    """Load a model, whatever its head.

    Parameters
    ----------
    spec
        Model folder, run folder, preset or Hub name; None or ``default`` for the packaged model;
        or a transformers model of ours, which stays on its device and in its mode.
    prompt
        Folder of a soft prompt for this model; the model then answers as the prompt says.
    base
        Leave the head out where the family allows it.
    device
        Where a loaded model goes; the CPU when None.

    Raises
    ------
    ModelNotFoundError, ModelKindError, CheckpointError
        When there is no such model, or it cannot be loaded.
    PromptError
        When the prompt cannot be read, or was made for another model.
    InferenceError
        For a module that is no model of ours.
    """
    from megabase.models.auto import (
        find_kind,
        load_config,
        load_model,
        load_tokenizer,
        resolve_model,
    )
    from megabase.models.families import family_of

    if spec == "default" and not Path("default").exists():
        spec = None
    if prompt is not None:
        return _load_prompted(spec, prompt, device)
    if isinstance(spec, nn.Module):
        model: Any = spec
        config: Any = getattr(spec, "config", None)
        family = family_of(getattr(config, "model_type", ""))
        if family is None:
            raise InferenceError(f"{type(spec).__name__} is no model of megabase")
        kinds = {found.__name__: kind for kind, found in family.classes().items()}
        kind = kinds.get(type(spec).__name__, "base")
        folder, name, tokenizer = None, type(spec).__name__, family.tokenizer_classes()[0]()
        rows = int(getattr(config, "vocab_rows", config.vocab_size))
        if len(tokenizer.get_vocab()) > rows:
            raise InferenceError(
                f"{name} has {rows:,} rows of embeddings, fewer than its usual tokenizer has "
                "tokens; save model and tokenizer in a folder, and name that"
            )
    else:
        folder = resolve_model(spec)
        config = load_config(folder)
        family = family_of(config.model_type)
        wanted = "base" if base and family is not None and "base" in family.classes() else None
        kind, _ = find_kind(folder, config, wanted)
        saved, _ = find_kind(folder, config)
        if kind == "base" and saved == "masked-lm":
            # Its body has no pooler, which the bare class of a BERT would miss.
            model = load_model(folder, saved, device=device).base_model
        else:
            model = load_model(folder, kind, device=device)
        name, tokenizer = shown_name(spec, folder), load_tokenizer(folder)
    encoder = TokenEncoder(tokenizer, uses_special_tokens(folder, config.model_type))
    both = bool(getattr(model.config, "strand_average", False))
    return Loaded(model, kind, name, encoder, folder, model_digest(model), both)


def _load_prompted(
    spec: ModelSpec, prompt: str | Path, device: str | torch.device | None
) -> Loaded:
    from megabase.models.auto import load_tokenizer, resolve_model
    from megabase.models.families import family_of
    from megabase.models.prompt_files import load_prompt, read_prompt

    if isinstance(spec, PreTrainedModel):
        prompted = load_prompt(prompt, spec)
        folder, name = None, type(spec).__name__
        family = family_of(spec.config.model_type)
        tokenizer: Any = None if family is None else family.tokenizer_classes()[0]()
    elif isinstance(spec, nn.Module):
        raise InferenceError(f"{type(spec).__name__} is no model that a prompt can be given to")
    else:
        folder = resolve_model(spec)
        prompted = load_prompt(prompt, folder, device=device)
        name, tokenizer = shown_name(spec, folder), load_tokenizer(folder)
    by_base = prompted.spec.kind == "nucleotides"
    kind = "token-classification" if by_base else "sequence-classification"
    both = hashlib.sha256((model_digest(prompted.model) + model_digest(prompted)).encode())
    name = f"{name} + prompt {Path(prompt).name}"
    strands = bool(read_prompt(prompt).facts.get("strand_average", False))
    return Loaded(prompted, kind, name, TokenEncoder(tokenizer), folder, both.hexdigest(), strands)


def find_class(names: Sequence[str], wanted: str | int, model: str) -> int:
    """Give the number of an output by its name, or by its number.

    Raises
    ------
    InferenceError
        When there is none.
    """
    for number, name in enumerate(names):
        if wanted in (name, number):
            return number
    if isinstance(wanted, str) and wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise InferenceError(f"{model} has no output {wanted!r}; it has {', '.join(names[:20])}")

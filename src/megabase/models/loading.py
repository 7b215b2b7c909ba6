"""The one loader of every verb: a model by name or as it is, with its tokenizer, name and hash."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from megabase.errors import InputError
from megabase.models.adapt.prompting import PromptedModel
from megabase.models.checkpoints.finite import require_finite_weights
from megabase.models.scored_model import ModelSpec, language_model_kind, model_digest, shown_name
from megabase.models.tokenizers.encoder import TokenEncoder, uses_special_tokens

__all__ = ["Loaded", "find_class", "load", "looks_back_only", "require_length"]


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked.

    Parameters
    ----------
    model
        The module.
    kind
        One of :data:`megabase.models.families.KINDS`.
    name
        Its name, for outputs.
    folder
        Where it was; None for a model in memory.
    both_strands
        Whether the metrics of its training are those of both strands averaged.
    """

    model: Any
    kind: str
    name: str
    folder: Path | None = None
    both_strands: bool = False

    @cached_property
    def encoder(self) -> TokenEncoder:
        """From base codes to its tokens.

        Raises
        ------
        InputError
            When a model in memory has another vocabulary than its family's tokenizer.
        """
        from megabase.models.auto import load_tokenizer
        from megabase.models.families import family_of

        config = self.model.config
        if self.folder is not None:
            tokenizer = load_tokenizer(self.folder)
        else:
            family = family_of(config.model_type)
            assert family is not None  # the loader refused others
            tokenizer = family.tokenizer_classes()[0]()
            rows = int(getattr(config, "vocab_rows", config.vocab_size))
            if len(tokenizer.get_vocab()) > rows:
                raise InputError(
                    f"{self.name} has {rows:,} rows of embeddings, fewer than its usual tokenizer "
                    "has tokens; save model and tokenizer in a folder, and name that"
                )
        if isinstance(self.model, PromptedModel):
            return TokenEncoder(tokenizer)
        return TokenEncoder(tokenizer, uses_special_tokens(self.folder, config.model_type))

    @cached_property
    def digest(self) -> str:
        """sha256 over configuration and weights, those of a soft prompt included."""
        if not isinstance(self.model, PromptedModel):
            return model_digest(self.model)
        both = model_digest(self.model.model) + model_digest(self.model)
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def masked(self) -> bool:
        """Whether it predicts hidden bases from both sides (otherwise the next base)."""
        return self.kind == "masked-lm"

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU when they wait elsewhere for the call of their module."""
        places = (parameter.device for parameter in self.model.parameters())
        return next((place for place in places if place.type != "meta"), torch.device("cpu"))

    @property
    def longest(self) -> int | None:
        """Longest sequence in tokens; None when there is no limit."""
        # A soft prompt takes positions of the model, which the prompted model has counted.
        prompted = isinstance(self.model, PromptedModel)
        holder = self.model if prompted else getattr(self.model, "config", None)
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


def load(
    spec: ModelSpec = None,
    *,
    head: Literal["own", "none", "language"] = "own",
    prompt: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Loaded:
    """Load a model for inference, and check its weights once.

    Parameters
    ----------
    spec
        Model folder, run folder, preset or Hub name; None or ``default`` for the packaged model;
        or a module, which stays on its device and in its mode.
    head
        ``own``: the one it was saved with. ``none``: left out where the family allows it.
        ``language``: it must give probabilities to single bases; a module then need not be of
        megabase, if it takes ``input_ids``.
    prompt
        Folder of a soft prompt for this model; the model then answers as the prompt says.
    device
        Where a loaded model goes; the CPU when None.

    Raises
    ------
    ModelError, ModelError, CheckpointError
        When there is no such model, or it cannot be loaded.
    NotFiniteError
        When a weight is NaN or infinite.
    ModelError
        When the prompt cannot be read, or was made for another model.
    InputError, InputError
        When the model has not the head that is asked for, or a module is of another library.
    """
    if spec == "default" and not Path("default").exists():
        spec = None
    if prompt is not None:
        return _load_prompted(spec, prompt, device)
    if isinstance(spec, nn.Module):
        return _given(spec, head)
    from megabase.models.auto import find_kind, load_config, load_model, resolve_model
    from megabase.models.families import family_of

    folder = resolve_model(spec)
    config = load_config(folder)
    saved, _ = find_kind(folder, config)
    family = family_of(config.model_type)
    bare = head == "none" and family is not None and "base" in family.classes()
    if head == "language" and saved not in ("causal-lm", "masked-lm"):
        what = (config.architectures or [config.model_type])[0]
        raise InputError(
            f"{folder}: is a {what} ({saved}), which gives no probabilities to bases; scores "
            "need a model with a language-model head (causal-lm or masked-lm)"
        )
    if bare and saved == "masked-lm":
        # Its body has no pooler, which the bare class of a BERT would miss.
        model: Any = load_model(folder, saved, device=device).base_model
    else:
        model = load_model(folder, "base" if bare else saved, device=device)
    kind = f"{language_model_kind(model)}-lm" if head == "language" else "base" if bare else saved
    both = bool(getattr(model.config, "strand_average", False))
    return Loaded(model, kind, shown_name(spec, folder), folder, both)


def _given(model: nn.Module, head: str) -> Loaded:
    """Take a module as it is."""
    from megabase.models.families import family_of

    name, config = type(model).__name__, getattr(model, "config", None)
    family = family_of(getattr(config, "model_type", ""))
    if head == "language":
        known = inspect.signature(model.forward).parameters
        if "input_ids" not in known and all(p.kind is not p.VAR_KEYWORD for p in known.values()):
            raise InputError(
                f"{name} is not a language model: it takes no input_ids; give a model of "
                "megabase, or a folder or name of one"
            )
        kind = f"{language_model_kind(model)}-lm"
    elif family is None:
        raise InputError(f"{name} is not a model of megabase")
    else:
        kinds = {found.__name__: kind for kind, found in family.classes().items()}
        kind = kinds.get(name, "base")
    require_finite_weights(model, name)
    return Loaded(model, kind, name, None, bool(getattr(config, "strand_average", False)))


def _load_prompted(
    spec: ModelSpec, prompt: str | Path, device: str | torch.device | None
) -> Loaded:
    from megabase.models.adapt.prompt_files import load_prompt, read_prompt
    from megabase.models.auto import resolve_model

    folder: Path | None = None
    if isinstance(spec, PreTrainedModel):
        prompted, name = load_prompt(prompt, spec), type(spec).__name__
    elif isinstance(spec, nn.Module):
        raise InputError(f"a prompt cannot be given to {type(spec).__name__}")
    else:
        folder = resolve_model(spec)
        prompted, name = load_prompt(prompt, folder, device=device), shown_name(spec, folder)
    name = f"{name} + prompt {Path(prompt).name}"
    kind = "token-classification" if prompted.spec.kind == "nucleotides" else (
        "sequence-classification"
    )  # fmt: skip
    strands = bool(read_prompt(prompt).facts.get("strand_average", False))
    return Loaded(prompted, kind, name, folder, strands)


def require_length(model: Loaded, length: int, what: str) -> None:
    """Refuse inputs that the model cannot take.

    Raises
    ------
    InputError
        When `length` positions are too many.
    """
    if model.longest is not None and length > model.longest:
        raise InputError(
            f"{what} of {length:,} does not fit the model {model.name}, whose longest input is "
            f"{model.longest:,} positions"
        )


def find_class(names: Sequence[str], wanted: str | int, model: str) -> int:
    """Give the number of an output by its name, or by its number.

    Raises
    ------
    InputError
        When there is none.
    """
    for number, name in enumerate(names):
        if wanted in (name, number):
            return number
    if isinstance(wanted, str) and wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise InputError(f"{model} has no output {wanted!r}; it has {', '.join(names[:20])}")

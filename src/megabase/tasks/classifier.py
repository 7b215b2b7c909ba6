"""A model with a head for labels, and its tokenizer as a function over base codes."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from megabase.data.labelled_batches import Encode
from megabase.genome import alphabet
from megabase.tasks.finetune_config import FinetuneConfig
from megabase.training.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Labels", "Tokens", "build_classifier", "build_tokens", "save_classifier"]

# Field that holds the longest input of a family, positions to add to the longest sequence, and the
# least that can be built (shorter sequences are padded).
_LENGTH_FIELDS = {
    "hyenadna": ("max_seq_len", 2, 0),
    "gpt": ("max_position_embeddings", 0, 1024),
    "cnn": ("max_length", 0, 57),
    "deepsea": ("max_length", 0, 163),
}
# Families that read a sequence between special tokens.
_WITH_SPECIALS = ("dnabert", "bigbird")
_POOLING_FIELDS = ("pooling", "pooling_strategy")
_PROBLEMS = {
    "classes": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_BYTE_PAIRS = 4096
"""Tokens of a byte-pair vocabulary when nothing else is said."""
_PROBE = "ACGTACGTTGCATGCA"


@dataclass(frozen=True)
class Labels:
    """What a head has to say."""

    kind: str
    """classes, multi_label or regression."""
    names: tuple[str, ...]
    """One for each output."""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a model's configuration."""
        return {
            "problem_type": _PROBLEMS[self.kind],
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
        }


@dataclass(frozen=True)
class Tokens:
    """A tokenizer for base codes."""

    tokenizer: Any
    """The transformers tokenizer, saved with the model."""
    encode: Encode
    """From base codes (length,) to token ids, special tokens included when they are wanted."""
    room: Callable[[int], int | None]
    """From a number of tokens to the longest sequence in bases that fits for certain; None when
    that depends on the sequence."""
    pad_id: int
    """Token that fills shorter rows."""
    size: int
    """Number of tokens."""


def family_of_start(config: FinetuneConfig) -> str:
    """Name the family of the model that a run starts from.

    Raises
    ------
    MegabaseError
        For an unknown family, preset or model, or a family that this installation does not have.
    """
    from megabase.models.families import FAMILIES

    known = {family.name: family for family in FAMILIES}
    if config.model is not None:
        from megabase.models.auto import load_config
        from megabase.models.families import family_of

        found = family_of(load_config(_spec(config.model)).model_type)
        return "" if found is None else found.name
    if config.preset is not None:
        from megabase.models.presets import find_preset

        name = find_preset(config.preset).family
    else:
        name = config.family or ""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"family {name!r} is not known; {hint}")
    family = known[name]
    if not family.available or "sequence-classification" not in family.classes():
        raise ConfigError(f"family {name!r} has no model for labels of sequences here")
    return name


def build_tokens(
    config: FinetuneConfig, family: str, training: Callable[[], Iterable[str]]
) -> Tokens:
    """Give the tokenizer of a run.

    Parameters
    ----------
    config
        Says which.
    family
        Family of the model.
    training
        Gives the training sequences, for byte pairs that are learnt from them.

    Raises
    ------
    ConfigError
        When there is no such tokenizer.
    """
    tokenizer = _tokenizer(config, family, training)
    specials = config.head.special_tokens == "yes" or (
        config.head.special_tokens == "auto" and family in _WITH_SPECIALS
    )
    bare = _ids(tokenizer, _PROBE, False)
    full = _ids(tokenizer, _PROBE, True) if specials else bare
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    before, after = full[:start], full[start + len(bare) :]
    look_up = _look_up(tokenizer)

    def encode(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return np.concatenate([before, look_up(codes), after]).astype(np.int64)

    return Tokens(
        tokenizer=tokenizer,
        encode=encode,
        room=_room(tokenizer, len(before) + len(after)),
        pad_id=int(tokenizer.pad_token_id or 0),
        size=len(tokenizer.get_vocab()),
    )


def _ids(tokenizer: Any, text: str, specials: bool) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=specials)["input_ids"]]


def _is_char(tokenizer: Any) -> bool:
    from megabase.models.tokenization import DNATokenizer

    return isinstance(tokenizer, DNATokenizer)


def _look_up(tokenizer: Any) -> Encode:
    """Give the quickest way from codes to ids that a tokenizer has."""
    if _is_char(tokenizer):
        return lambda codes: alphabet.TOKEN_ID_OF_CODE[codes]
    if hasattr(tokenizer, "ids_from_codes"):
        least = int(getattr(tokenizer, "k", 1)) if tokenizer_overlaps(tokenizer) else 1

        def from_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
            if len(codes) < least:
                return np.zeros(0, dtype=np.int64)
            return tokenizer.ids_from_codes(torch.tensor(codes)[None])[0].numpy()

        return from_codes
    return lambda codes: np.array(_ids(tokenizer, alphabet.decode(codes), False), dtype=np.int64)


def tokenizer_overlaps(tokenizer: Any) -> bool:
    """Tell whether k-mers overlap, so that a sequence shorter than k has none."""
    return getattr(tokenizer, "stride", 1) == 1


def _room(tokenizer: Any, specials: int) -> Callable[[int], int | None]:
    if _is_char(tokenizer):
        return lambda tokens: max(1, tokens - specials)
    if not hasattr(tokenizer, "token_count"):
        return lambda tokens: None

    def room(tokens: int) -> int:
        low, high = 1, 16 * tokens
        while low < high:  # the count never falls by more than the tail of single bases
            middle = (low + high + 1) // 2
            fits = tokenizer.token_count(middle, add_special_tokens=False) + specials <= tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    return room


def _tokenizer(config: FinetuneConfig, family: str, training: Callable[[], Iterable[str]]) -> Any:
    wanted = config.tokenizer
    if wanted is None and config.model is not None:
        from megabase.models.auto import load_tokenizer

        return load_tokenizer(_spec(config.model))
    if wanted is None and family == "dnabert":
        from megabase.models.dnabert.tokenization import DNABERTTokenizer

        return DNABERTTokenizer(k=int(_asked(config).get("k", 6)))
    if wanted is None and family == "bigbird":
        wanted = f"bpe:{_asked(config).get('vocab_size', _BYTE_PAIRS)}"
    if wanted in (None, "char"):
        from megabase.models.tokenization import DNATokenizer

        return DNATokenizer()
    kmer = re.fullmatch(r"([2-8])mer", wanted or "")
    if kmer:
        from megabase.models.kmer_tokenization import KmerTokenizer

        return KmerTokenizer(k=int(kmer.group(1)))
    pairs = re.fullmatch(r"bpe:(\d+)", wanted or "")
    if pairs:
        from megabase.models.bpe_tokenization import train_bpe

        return train_bpe(training(), vocab_size=int(pairs.group(1)))
    if Path(wanted or "").is_dir():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(wanted, local_files_only=True)
    raise ConfigError(
        f"tokenizer is {wanted!r}; expected char, 2mer to 8mer, bpe:SIZE or a folder that holds one"
    )


def _asked(config: FinetuneConfig) -> dict[str, Any]:
    """Give the fields of a new model that preset and overrides name."""
    fields: dict[str, Any] = {}
    if config.preset is not None:
        from megabase.models.presets import find_preset

        fields.update(find_preset(config.preset).config)
    return {**fields, **config.overrides}


def _spec(model: str) -> str | None:
    return None if model == "default" else model


def build_classifier(
    config: FinetuneConfig, family: str, labels: Labels, tokens: Tokens, longest: int
) -> PreTrainedModel:
    """Build a model with a head for labels, from torch's current seed.

    Parameters
    ----------
    config
        Model to start from, or shape of a new one.
    family
        Result of :func:`family_of_start`.
    labels
        Outputs of the head.
    tokens
        Result of :func:`build_tokens`.
    longest
        Longest sequence of all splits in tokens; a new model is built for it where its family has
        such a setting and the settings do not say otherwise.

    Raises
    ------
    MegabaseError
        For a model that cannot be loaded, fields its family does not have, or settings that cannot
        be built.
    """
    fields: dict[str, Any] = {**labels.fields, **_head_fields(config, family)}
    if config.model is not None and not config.from_scratch:
        from megabase.models.auto import load_model

        model = load_model(
            _spec(config.model), "sequence-classification", new_head=True, **fields
        ).train()
    else:
        model = _new_model(config, family, fields, tokens, longest)
    if config.head.freeze:
        _freeze(model)
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _head_fields(config: FinetuneConfig, family: str) -> dict[str, Any]:
    known = _fields_of(family)
    unknown = sorted(set(config.overrides) - known)
    if unknown:
        near = [difflib.get_close_matches(name, known, n=1) for name in unknown]
        hints = [f"did you mean {n[0]!r}?" for n in near if n]
        raise ConfigError(
            f"overrides has {', '.join(unknown)}, which the family {family} does not have"
            + (f"; {hints[0]}" if hints else "")
        )
    fields = dict(config.overrides)
    if config.head.pooling is not None:
        name = next((name for name in _POOLING_FIELDS if name in known), None)
        if name is None:
            raise ConfigError(
                f"head.pooling is {config.head.pooling}, but the family {family} has its own way "
                "from positions to a vector; leave it out"
            )
        fields[name] = config.head.pooling
    return fields


def _fields_of(family: str) -> set[str]:
    return {field.name for field in dataclasses.fields(_classes(family)[0])}


def _classes(family: str) -> tuple[Any, Any]:
    from megabase.models.families import FAMILIES

    found = next(f for f in FAMILIES if f.name == family)
    return found.config_class(), found.classes()["sequence-classification"]


def _new_model(
    config: FinetuneConfig, family: str, fields: Mapping[str, Any], tokens: Tokens, longest: int
) -> PreTrainedModel:
    config_class, model_class = _classes(family)
    known = _fields_of(family)
    shape: dict[str, Any] = {}
    if family in _LENGTH_FIELDS:
        name, extra, least = _LENGTH_FIELDS[family]
        shape[name] = max(longest + extra, least)
    if config.model is not None:
        from megabase.models.auto import load_config

        loaded = load_config(_spec(config.model))
        for name in known - {"architectures", "id2label", "label2id", "problem_type"}:
            shape[name] = getattr(loaded, name)
    shape.update({**_asked(config), **fields})
    # A vocabulary that is learnt or counted decides the rows of the embedding; so does one that a
    # published shape is too small for.
    if not _is_char(tokens.tokenizer) or shape.get("vocab_size", tokens.size) < tokens.size:
        shape.update(vocab_size=tokens.size, pad_token_id=tokens.pad_id)
    return model_class(config_class(**shape))


def _freeze(model: PreTrainedModel) -> None:
    base = model.base_model
    if base is model:
        raise ConfigError(
            f"head.freeze is set, but {type(model).__name__} has no part below its head"
        )
    base.requires_grad_(False)


def save_classifier(
    model: PreTrainedModel, tokenizer: Any, folder: Path, state: Mapping[str, torch.Tensor]
) -> None:
    """Write a Hugging Face folder: weights, configuration with class names, tokenizer.

    Parameters
    ----------
    model
        Gives configuration and names.
    tokenizer
        Saved beside it.
    folder
        Existing folder.
    state
        Full state dict, which may differ from the model's own when it is sharded.
    """
    from transformers.utils import logging

    # The library's bar over the files it writes would cut through the run's own.
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, state_dict=dict(state))
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Give every class the weight n / (classes * its rows), so that all weigh the same.

    Examples
    --------
    >>> balanced_weights([30, 10])
    [0.6666666666666666, 2.0]
    """
    return [sum(counts) / (len(counts) * count) for count in counts]

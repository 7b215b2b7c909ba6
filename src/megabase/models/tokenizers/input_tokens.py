"""The tokenizer of a fine-tuning run, as a function over base codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megabase.data.labelled_batches import Encode
from megabase.errors import ConfigError
from megabase.genome import alphabet
from megabase.settings import HeadConfig, StartConfig

__all__ = ["Tokens", "asked_fields", "build_tokens", "is_character", "model_spec"]

# Families that read a sequence between special tokens.
_WITH_SPECIALS = ("dnabert", "bigbird")
_BYTE_PAIRS = 4096
"""Tokens of a byte-pair vocabulary when nothing else is said."""
_PROBE = "ACGTACGTTGCATGCA"


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


def build_tokens(
    start: StartConfig,
    head: HeadConfig,
    family: str,
    training: Callable[[], Iterable[str]],
    *,
    per_base: bool = False,
) -> Tokens:
    """Give the tokenizer of a run.

    Parameters
    ----------
    start
        Says which tokenizer, or of which model.
    head
        Says whether there are special tokens.
    family
        Family of the model.
    training
        Gives the training sequences, for byte pairs that are learnt from them.
    per_base
        Whether every token has to be one base.

    Raises
    ------
    ConfigError
        When there is no such tokenizer.
    """
    tokenizer = _tokenizer(start, family, training)
    if per_base and (not is_character(tokenizer) or head.special_tokens == "yes"):
        raise ConfigError(
            "labels of nucleotides need one token for each base: the tokenizer char, and no "
            f"special tokens (head.special_tokens); this one is {type(tokenizer).__name__}"
        )
    specials = head.special_tokens == "yes" or (
        head.special_tokens == "auto" and family in _WITH_SPECIALS
    )
    if specials and head.crop < 1:
        raise ConfigError(
            f"head.crop is {head.crop}: stretches are cut out of the tokens, and would lose "
            "the special tokens around them; leave it out, or set head.special_tokens no"
        )
    bare = _ids(tokenizer, _PROBE, False)
    full = _ids(tokenizer, _PROBE, True) if specials else bare
    first = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    before, after = full[:first], full[first + len(bare) :]
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


def is_character(tokenizer: Any) -> bool:
    """Tell whether every token is one base."""
    from megabase.models.tokenizers.character import DNATokenizer

    return isinstance(tokenizer, DNATokenizer)


def _look_up(tokenizer: Any) -> Encode:
    """Give the quickest way from codes to ids that a tokenizer has."""
    if is_character(tokenizer):
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
    if is_character(tokenizer):
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


def _tokenizer(start: StartConfig, family: str, training: Callable[[], Iterable[str]]) -> Any:
    wanted = start.tokenizer
    if wanted is None and start.model is not None:
        from megabase.models.auto import load_tokenizer

        return load_tokenizer(model_spec(start.model))
    if wanted is None and family == "dnabert":
        from megabase.models.dnabert.tokenization import DNABERTTokenizer

        return DNABERTTokenizer(k=int(asked_fields(start).get("k", 6)))
    if wanted is None and family == "bigbird":
        wanted = f"bpe:{asked_fields(start).get('vocab_size', _BYTE_PAIRS)}"
    if wanted in (None, "char"):
        from megabase.models.tokenizers.character import DNATokenizer

        return DNATokenizer()
    kmer = re.fullmatch(r"([2-8])mer", wanted or "")
    if kmer:
        from megabase.models.tokenizers.kmer_tokens import KmerTokenizer

        return KmerTokenizer(k=int(kmer.group(1)))
    pairs = re.fullmatch(r"bpe:(\d+)", wanted or "")
    if pairs:
        from megabase.models.tokenizers.bpe import train_bpe

        return train_bpe(training(), vocab_size=int(pairs.group(1)))
    if Path(wanted or "").is_dir():
        from megabase.models.auto import read_tokenizer

        return read_tokenizer(Path(wanted or ""))
    raise ConfigError(
        f"tokenizer is {wanted!r}; expected char, 2mer to 8mer, bpe:SIZE or a folder that holds one"
    )


def asked_fields(start: StartConfig) -> dict[str, Any]:
    """Give the fields of a new model that preset and overrides name."""
    fields: dict[str, Any] = {}
    if start.preset is not None:
        from megabase.models.presets import find_preset

        fields.update(find_preset(start.preset).config)
    return {**fields, **start.overrides}


def model_spec(model: str) -> str | None:
    """Give what the loaders of models take: None for the packaged default."""
    return None if model == "default" else model

"""Recognising published DNABERT folders, whose ``config.json`` says only ``"bert"``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megabase.models.dnabert.tokenization import DNABERTTokenizer, read_dnabert_vocabulary
from megabase.models.kmer import KmerError
from megabase.models.validation import ModelConfigError

__all__ = ["is_dnabert_folder", "load_tokenizer"]


def is_dnabert_folder(folder: str | Path) -> bool:
    """Tell whether a model folder holds a DNABERT: a BERT with a vocabulary of k-mers.

    Parameters
    ----------
    folder
        With ``config.json``; ``vocab.txt`` is looked into when it is there.

    Returns
    -------
    bool
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    if config.get("model_type") == "dnabert":
        return True
    if config.get("model_type", "bert") != "bert":
        return False
    if not any(config.get("vocab_size") == 4**k + 5 for k in range(3, 7)):
        return False
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        return True
    try:
        read_dnabert_vocabulary(vocabulary)
    except KmerError:
        return False
    return True


def load_tokenizer(folder: str | Path, **settings: Any) -> DNABERTTokenizer:
    """Load the tokenizer of a DNABERT folder, whatever its ``tokenizer_config.json`` asks for.

    The published settings say ``do_lower_case: true``, with which every k-mer becomes unknown; it
    has no effect here.

    Parameters
    ----------
    folder
        A published or saved folder.
    **settings
        Settings of :class:`DNABERTTokenizer` to change.

    Returns
    -------
    DNABERTTokenizer

    Raises
    ------
    ModelConfigError
        When the folder holds another family, or its vocabulary does not fit its configuration.
    """
    folder = Path(folder)
    if not is_dnabert_folder(folder):
        raise ModelConfigError(
            f"{folder} holds no DNABERT: expected a config.json of model_type 'bert' or 'dnabert' "
            "with 69, 261, 1029 or 4101 tokens, and a vocab.txt of k-mers; load it with the family "
            "it belongs to"
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (folder / "vocab.txt").exists():
        tokenizer = DNABERTTokenizer.from_pretrained(folder, **settings)
    else:
        k = next(k for k in range(3, 7) if 4**k + 5 == config.get("vocab_size", 4101))
        tokenizer = DNABERTTokenizer(k=k, **settings)
    if tokenizer.vocab_size != config.get("vocab_size", 4101):
        raise ModelConfigError(
            f"{folder}: the model reads {config.get('vocab_size')} tokens, its vocab.txt has "
            f"{tokenizer.vocab_size} ({tokenizer.k}-mers); the two files are of different models"
        )
    return tokenizer

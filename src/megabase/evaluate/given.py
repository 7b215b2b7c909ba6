"""What functions are given: sequences as letters or base codes, and what is neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import encode, warn_ambiguous

__all__ = ["as_codes", "codes_of", "require_several"]

_Item = TypeVar("_Item")
Given = str | bytes | NDArray[np.uint8]


def require_several(sequences: Iterable[_Item]) -> Iterable[_Item]:
    """Refuse a single text, whose letters would be taken for sequences, and what is no collection.

    Raises
    ------
    InputError
        Saying what was expected.
    """
    if isinstance(sequences, (str, bytes, Path)):
        raise InputError(
            f"expected a list of sequences, found one text, {str(sequences)[:40]!r}; a single one "
            'is written ["ACGT"], and files are read by the functions that end in _file, or on the '
            "command line"
        )
    if not isinstance(sequences, Iterable):
        raise InputError(f"expected a list of sequences, found {type(sequences).__name__}")
    return sequences


def codes_of(sequences: Iterable[Given]) -> list[NDArray[np.uint8]]:
    """Give the base codes of several sequences; errors and warnings as :func:`as_codes`."""
    ambiguous: Counter[str] = Counter()
    codes = [as_codes(one, ambiguous=ambiguous) for one in require_several(sequences)]
    warn_ambiguous(ambiguous, "the sequences")
    return codes


def as_codes(
    sequence: Given, what: str = "the sequence", ambiguous: Counter[str] | None = None
) -> NDArray[np.uint8]:
    """Give the base codes of letters; codes are taken as they are.

    Parameters
    ----------
    sequence
        Letters or codes.
    what
        What they are, for the warning.
    ambiguous
        Where letters that are read as N are counted instead of a warning.

    Warns
    -----
    AmbiguousLettersWarning
        When letters are read as N.

    Raises
    ------
    GenomeError
        For a letter that is no DNA letter.
    InputError
        For anything else.
    """
    if isinstance(sequence, (str, bytes)):
        counts = Counter[str]() if ambiguous is None else ambiguous
        codes = encode(sequence, counts)
        if ambiguous is None:
            warn_ambiguous(counts, what)
        return codes
    if isinstance(sequence, np.ndarray) and sequence.dtype == np.uint8:
        return sequence
    kind = type(sequence).__name__
    found = f"an array of {sequence.dtype}" if isinstance(sequence, np.ndarray) else kind
    raise InputError(f"a sequence is DNA letters, or base codes (uint8); found {found}")

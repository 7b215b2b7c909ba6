"""A class for every nucleotide: label cells of a table as class numbers.

A cell holds one symbol for each base of its sequence: characters side by side (``00111``), or names
divided by blanks, commas or semicolons (``exon exon intron``). A dot is a base without a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from megabase.data.labelled_files import LabelledText
from megabase.errors import InputError

__all__ = ["IGNORED", "base_class_names", "number_bases", "sorted_names"]

IGNORED = -100
"""Class number of a base without a label; it counts nowhere."""

_UNKNOWN = "."
_DIVIDED = re.compile(r"[\s,;\[\]]")
_MOST = int(np.iinfo(np.int16).max)


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: as numbers when all are whole numbers, else as text."""
    given = set(names)
    if all(name.lstrip("-").isdecimal() for name in given):
        return tuple(sorted(given, key=lambda name: (int(name), name)))
    return tuple(sorted(given))


def base_class_names(train: LabelledText) -> tuple[str, ...]:
    """Give the sorted names of the classes in the label cells of training rows.

    Raises
    ------
    InputError
        For several label columns, fewer than two classes, or more than 32,767.
    """
    if len(train.columns) > 1:
        raise InputError(
            f"{train.source}: labels of nucleotides come from one column, found "
            f"{', '.join(train.columns)}"
        )
    names: set[str] = set()
    for row in train.labels:
        names.update(_symbols(row[0]))
    names.discard(_UNKNOWN)
    if not 2 <= len(names) <= _MOST:
        found = f"only the class {next(iter(names))!r}" if len(names) == 1 else "no class"
        found = f"{len(names):,} classes" if len(names) > _MOST else found
        raise InputError(
            f"{train.source}: its labels of nucleotides have {found}; training needs two or more"
        )
    return sorted_names(names)


def number_bases(text: LabelledText, classes: Sequence[str]) -> npt.NDArray[np.int16]:
    """Turn label cells into class numbers, one for each base.

    Parameters
    ----------
    text
        Rows; their sequences say how many labels each needs.
    classes
        Names by number.

    Returns
    -------
    numpy.ndarray
        int16 (bases of all rows,); -100 for a base without label.

    Raises
    ------
    InputError
        With file and row: for another number of labels than bases, a class that no training row
        has, or a row without any label.
    """
    number = {name: i for i, name in enumerate(classes)}
    number[_UNKNOWN] = IGNORED
    parts: list[npt.NDArray[np.int16]] = []
    for row, (letters, cells) in enumerate(zip(text.sequences, text.labels, strict=True)):
        symbols = _symbols(cells[0])
        if len(symbols) != len(letters):
            raise InputError(
                f"{text.where(row)}: {len(symbols):,} labels for a sequence of {len(letters):,} "
                "bases; each base needs one (a dot where it is not known)"
            )
        try:
            found = [number[symbol] for symbol in symbols]
        except KeyError as error:
            shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise InputError(
                f"{text.where(row)}: the label {error.args[0]!r} occurs in no training row (there "
                f"are {shown})"
            ) from None
        parts.append(np.array(found, dtype=np.int16))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int16)


def _symbols(cell: str) -> Sequence[str]:
    if _DIVIDED.search(cell):
        return [name for name in _DIVIDED.split(cell) if name]
    return cell

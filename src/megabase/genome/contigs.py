"""Names of contigs: aliases, and the nearest names for messages."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection

__all__ = ["contig_aliases", "nearest_contigs"]

_MITOCHONDRIAL = ("chrM", "MT", "M", "chrMT")


def contig_aliases(name: str) -> tuple[str, ...]:
    """Return other spellings under which a contig is looked for, in order.

    The rule: ``chr1`` and ``1`` are the same contig, and so are ``chrM``, ``MT``, ``M`` and
    ``chrMT``. An exact name always wins over an alias.

    Examples
    --------
    >>> contig_aliases("chr20"), contig_aliases("MT")
    (('20',), ('chrM', 'M', 'chrMT'))
    """
    if name in _MITOCHONDRIAL:
        return tuple(other for other in _MITOCHONDRIAL if other != name)
    if name.startswith("chr"):
        return (name[3:],) if len(name) > 3 else ()
    return (f"chr{name}",)


def nearest_contigs(name: str, names: Collection[str]) -> str:
    """Say which of ``names`` a person may have meant; for the end of an error message."""
    near = difflib.get_close_matches(name, list(itertools.islice(names, 10_000)), n=3, cutoff=0.5)
    if near:
        return "the nearest names are " + ", ".join(map(repr, near))
    more = f", ... ({len(names):,} in all)" if len(names) > 3 else ""
    return "its contigs are " + ", ".join(map(repr, itertools.islice(names, 3))) + more

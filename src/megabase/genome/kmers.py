"""K-mers as integers, two bits a base: A 0, C 1, G 2, T 3, the first base highest; and shuffles."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from megabase.genome import alphabet

_Codes = npt.NDArray[np.uint8]
_Kmers = npt.NDArray[np.uint64]


def pack_kmers(
    codes: _Codes, k: int, *, canonical: bool = False
) -> tuple[_Kmers, npt.NDArray[np.bool_]]:
    """Pack every k-mer (k 1 to 32) of base codes (n,) into an uint64 (n - k + 1,), or empty.

    With `canonical` each is the smaller of it and its reverse complement. The second array, bool of
    the same shape, says which are all A, C, G, T; others are packed as if they had an A in place of
    each other letter.
    """
    if len(codes) < k:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
    base = codes & alphabet.BASE_BITS
    bad = np.concatenate([[0], np.cumsum(base > alphabet.T)])
    two = np.where(base > alphabet.T, 0, base).astype(np.uint64)
    packed = _pack(two, k)
    if canonical:
        packed = np.minimum(packed, _pack(np.uint64(3) - two[::-1], k)[::-1])
    return packed, bad[k:] == bad[:-k]


def dinucleotide_shuffle(codes: _Codes, rng: np.random.Generator) -> _Codes:
    """Shuffle base codes (n,) so that every dinucleotide is as often there, and both ends stay.

    All such orders are equally likely: a base is left for the last time by an edge of a random tree
    that leads to the last base, and before that by its other edges in random order (Altschul and
    Erickson 1985, doi:10.1093/oxfordjournals.molbev.a040370). Lower case is not kept.
    """
    bases = (codes & alphabet.BASE_BITS).tolist()
    if len(bases) < 4:
        return np.array(bases, dtype=np.uint8)
    after: dict[int, list[int]] = {}
    for one, other in pairwise(bases):
        after.setdefault(one, []).append(other)
    while True:
        exits = {one: int(rng.integers(len(after[one]))) for one in after if one != bases[-1]}
        ends = set(after)
        for _ in exits:  # as many steps lead any base to the last one, or round in a circle
            ends = {after[one][exits[one]] if one in exits else one for one in ends}
        if ends <= {bases[-1]}:
            break
    walks: dict[int, Iterator[int]] = {}
    for one, others in after.items():
        final = [others.pop(exits[one])] if one in exits else []
        walks[one] = iter([*rng.permutation(others).tolist(), *final])
    found = bases[:1]
    for _ in bases[1:]:
        found.append(next(walks[found[-1]]))
    return np.array(found, dtype=np.uint8)


def _pack(two: _Kmers, k: int) -> _Kmers:
    """Pack k-mers from k-mers of half their length: log2(k) passes over the array."""
    if k == 1:
        return two
    half = k // 2
    low, n = _pack(two, half), len(two) - k + 1
    first, second = low[:n], low[half : half + n]
    if k % 2:
        extra = two[half * 2 : half * 2 + n]
        return (first << np.uint64(2 * (half + 1))) | (second << np.uint64(2)) | extra
    return (first << np.uint64(2 * half)) | second

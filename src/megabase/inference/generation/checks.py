"""What written sequences are like: composition, words, and copies of a genome."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, N, encode
from megabase.genome.files import write_json
from megabase.genome.interval import Interval
from megabase.genome.kmers import count_kmers
from megabase.genome.store import GenomeStore
from megabase.inference.generation.copies import Copy, longest_copies
from megabase.inference.generation.generate import Generated

__all__ = ["GenerationCheck", "SequenceCheck", "check_generated", "count_kmers", "kmer_distance"]

_PART = 1 << 22
_Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class SequenceCheck:
    """Findings about one written sequence.

    Parameters
    ----------
    number, name, length
        Running number, name of the prompt, bases written.
    gc
        Share of G and C among A, C, G, T; NaN without any.
    bits_per_base
        Negative log2 probability of its letters, under the model itself.
    copy
        Longest exact copy of the genome, prompt not counted; None without a genome.
    """

    number: int
    name: str
    length: int
    gc: float
    bits_per_base: float
    copy: Copy | None


@dataclass(frozen=True)
class GenerationCheck:
    """Findings about all written sequences, beside a genome.

    Parameters
    ----------
    bases, gc, letters
        Of all sequences together.
    kmer
        Size of the words compared.
    genome, genome_sha256, genome_gc
        The genome; None without one.
    kmer_distance
        Jensen-Shannon divergence, in bits, of the word frequencies of sequences and genome: 0 when
        equal, 1 when they share no word.
    kmer_distance_genome
        The same for stretches of the genome of the same lengths, at random places: what is to be
        expected of DNA of this amount.
    kmer_distance_uniform
        The same for random letters, all equally probable.
    longest_copy
        Bases of the longest exact copy.
    longest_copy_uniform
        Bases of the longest exact copy in random letters of the same lengths: what chance gives.
    sequences
        One by one.
    """

    bases: int
    gc: float
    letters: dict[str, int]
    kmer: int
    genome: str | None
    genome_sha256: str | None
    genome_gc: float | None
    kmer_distance: float | None
    kmer_distance_genome: float | None
    kmer_distance_uniform: float | None
    longest_copy: int | None
    longest_copy_uniform: int | None
    sequences: tuple[SequenceCheck, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain values; NaN becomes None."""
        return json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write JSON, whole or not at all; `more` are further fields."""
        write_json(path, {**more, **self.to_dict()})


def kmer_distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Give the Jensen-Shannon divergence of two tables of counts, in bits; NaN without counts."""
    if not one.sum() or not other.sum():
        return float("nan")
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2

    def bits(x: NDArray[np.float64]) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum())

    return (bits(p) + bits(q)) / 2


def check_generated(
    generated: Sequence[Generated],
    genome: GenomeStore | None = None,
    *,
    kmer: int = 6,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> GenerationCheck:
    """Look at what a model wrote.

    Parameters
    ----------
    generated
        The sequences; prompts are left out of everything.
    genome
        Genome to compare with, such as the one the model was trained on.
    kmer
        Size of the words compared, 1 to 10.
    seed
        Of the random places and letters that serve as measure.
    progress
        Called with genome bases searched for copies and the number in all.

    Returns
    -------
    GenerationCheck

    Raises
    ------
    InputError
        When `kmer` is out of range.
    """
    if not 1 <= kmer <= 10:
        raise InputError(f"kmer must lie between 1 and 10, found {kmer}")
    codes = [encode(one.sequence) for one in generated]
    copies: list[Copy | None] = [None] * len(codes)
    chance: int | None = None
    distances: list[float | None] = [None, None, None]
    if genome is not None:
        rng = np.random.default_rng(seed)
        uniform = [rng.integers(0, 4, len(row), dtype=np.uint8) for row in codes]
        found = longest_copies([*codes, *uniform], genome, progress)
        copies = list(found[: len(codes)])
        chance = max((copy.length for copy in found[len(codes) :]), default=0)
        table = sum_counts([genome.view(contig.name) for contig in genome.contigs], kmer)
        pieces = _stretches(genome, [len(row) for row in codes], rng)
        distances = [
            kmer_distance(sum_counts(rows, kmer), table) for rows in (codes, pieces, uniform)
        ]
    rows = tuple(
        SequenceCheck(
            one.number,
            one.name,
            len(one.sequence),
            _gc(one.sequence),
            -one.log_prob / np.log(2) / max(1, len(one.sequence)),
            copy,
        )
        for one, copy in zip(generated, copies, strict=True)
    )
    text = "".join(one.sequence for one in generated)
    return GenerationCheck(
        bases=len(text),
        gc=_gc(text),
        letters={letter: text.count(letter) for letter in "ACGTN"},
        kmer=kmer,
        genome=None if genome is None else genome.name,
        genome_sha256=None if genome is None else genome.checksum,
        genome_gc=None if genome is None else _genome_gc(genome),
        kmer_distance=distances[0],
        kmer_distance_genome=distances[1],
        kmer_distance_uniform=distances[2],
        longest_copy=max((copy.length for copy in copies if copy), default=None),
        longest_copy_uniform=chance,
        sequences=rows,
    )


def sum_counts(rows: Sequence[_Codes], size: int) -> NDArray[np.int64]:
    """Count the words of several sequences together."""
    counts = np.zeros(4**size, np.int64)
    for row in rows:
        counts += count_kmers(row, size)
    return counts


def _gc(text: str) -> float:
    strong, weak = text.count("G") + text.count("C"), text.count("A") + text.count("T")
    return strong / (strong + weak) if strong + weak else float("nan")


def _genome_gc(genome: GenomeStore) -> float:
    counts = sum_counts([genome.view(contig.name) for contig in genome.contigs], 1)
    return float((counts[1] + counts[2]) / counts.sum()) if counts.sum() else float("nan")


def _stretches(
    genome: GenomeStore, lengths: Sequence[int], rng: np.random.Generator
) -> list[_Codes]:
    """Fetch stretches at random places; those that are mostly N are drawn anew, a few times."""
    found: list[_Codes] = []
    for length in lengths:
        codes = np.empty(0, np.uint8)
        for _ in range(20 if length else 0):
            fits = genome.lengths >= length
            room = np.where(fits, genome.lengths - length + 1, 0)
            if not fits.any():
                # No contig is as long: the whole of the longest one.
                contig = genome.contigs[int(genome.lengths.argmax())]
                codes = genome.view(contig.name)
                break
            place = int(rng.integers(int(room.sum())))
            index = int(np.searchsorted(np.cumsum(room), place, side="right"))
            start = place - int(room[:index].sum())
            name = genome.contigs[index].name
            codes = genome.fetch(Interval(name, start, start + length))
            if ((codes & np.uint8(BASE_BITS)) < N).mean() > 0.5:
                break
        found.append(codes)
    return found

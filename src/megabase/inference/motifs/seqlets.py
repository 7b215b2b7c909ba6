"""Seqlets: runs of bases whose contributions stand out, and the motifs that they resemble.

Motifs come from files of MEME (https://meme-suite.org/meme/doc/meme-format.html, the minimal one).

The rule is that of recursive seqlets (Schreiber, https://github.com/jmschrei/tangermeme): the
p-value of a run is the chance that as many bases, drawn independently from all bases of all
sequences, sum to as much (here also: to as little); a run is a seqlet when it and every run inside
it, down to the shortest, stay below a threshold. Of seqlets that overlap the longest is kept, then
the least probable. Sums are of whole thousandths of the range of contributions, so that their
distribution, a convolution of that of one base, is exact.

Motifs are compared with a seqlet by Tomtom (Gupta et al. 2007, doi:10.1186/gb-2007-8-2-r24) on both
strands, as tomtom-lite computes it (Schreiber 2025, doi:10.1101/2025.05.27.656386). The query is
what stands there, each base with its share of the largest contribution of the seqlet and the rest
even over A, C, G, T: else bases beside a motif, which a long run takes in, hide it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.errors import InputError, InputWarning, MissingDependencyError, warn
from megabase.evaluate.sequences import codes_of
from megabase.genome.alphabet import BASE_BITS, T, decode
from megabase.genome.files import numbered_lines

Matrix = NDArray[np.float64]
_Codes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_NAMED = 0.05
"""Largest q-value of a motif that names a seqlet: at most one name in twenty is wrong."""
_LEVELS = 1000  # steps of the range, as in tangermeme: far finer than what tells seqlets apart
_FEW = 25  # motifs: with fewer, tomtom-lite calls its own p-values rough
_SCHEMA: dict[str, Any] = {
    "number": pl.Int64, "start": pl.Int64, "end": pl.Int64, "strand": pl.String,
    "bases": pl.String, "contribution": pl.Float64, "p": pl.Float64,
    "motif": pl.String, "motif_p": pl.Float64, "motif_q": pl.Float64,
}  # fmt: skip
"""Columns of a table of seqlets, stated so that an empty table has them too."""
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)  # not below 0
_ROUNDING = 0.02  # by which a row of printed probabilities may miss 1


def read_motifs(path: str | Path) -> dict[str, Matrix]:
    """Read the motifs of a MEME file, plain or gzip.

    The names are those of the MOTIF lines (``MA0099.3 FOS::JUN``), the matrices float64 (width, 4),
    rows of probabilities of A, C, G, T. InputError, with the line, for a row of others, a name that
    is there twice, and a file without motifs.
    """
    found: dict[str, list[list[float]]] = {}
    name, inside = "", False
    for number, line in numbered_lines(Path(path)):
        words, where = line.split(), f"{path}, line {number:,}"
        inside = inside and bool(words) and words[0][0] in "0123456789.+-"
        if words[:1] == ["MOTIF"]:
            name = " ".join(words[1:])
            if not name or name in found:
                raise InputError(f"{where}: expected a name of a motif of its own, found {name!r}")
            found[name] = []
        elif inside and name:
            row = [float(word) for word in words if _NUMBER.fullmatch(word)]
            if len(row) != len(words) or len(row) != 4 or not abs(sum(row) - 1) < _ROUNDING:
                raise InputError(
                    f"{where}: expected probabilities of A, C, G, T, found {line.strip()[:60]!r}"
                )
            found[name].append(row)
        inside = inside or line.startswith("letter-probability matrix")
    if not found or not all(found.values()):
        bare = "".join(f" of {name}" for name, rows in found.items() if not rows)
        raise InputError(f"{path}: holds no letter-probability matrix{bare} (MEME format)")
    return {name: np.array(rows) / np.sum(rows, 1, keepdims=True) for name, rows in found.items()}


def find_seqlets(
    contributions: Sequence[_Floats], sequences: Iterable[str | _Codes],
    motifs: Mapping[str, Matrix] | None = None, *,
    threshold: float = 0.01, lengths: tuple[int, int] = (4, 25),
) -> pl.DataFrame:  # fmt: skip
    """Find the runs of bases whose contributions stand out, and name them by motifs.

    Parameters
    ----------
    contributions
        For each sequence float (length,): ``values`` of an attribution.
    sequences
        The sequences, letters or base codes.
    motifs
        What :func:`read_motifs` gave; no names when None.
    threshold
        Largest p-value of a seqlet and of every run of bases inside it.
    lengths
        Fewest and most bases of a seqlet; all of them are A, C, G, T.

    Returns
    -------
    polars.DataFrame
        A row for each seqlet, in order: number (of the sequence, from 0), start and end in it
        (0-based half-open), strand, bases, contribution (their sum) and p. motif_p is Tomtom's of
        the nearest motif, and motif_q that of Benjamini and Hochberg over all seqlets, of motif_p
        times the number of motifs. Where it is at most 0.05, motif is the name, and strand the one
        on which it reads as in its file; elsewhere they are null and ``.``.
    """
    codes = [(one & BASE_BITS).astype(np.uint8) for one in codes_of(sequences)]
    if [len(one) for one in contributions] != [len(one) for one in codes]:
        raise InputError("expected a contribution for each base of each sequence, in their order")
    if motifs:
        try:
            import memelite  # noqa: F401
        except ImportError:
            raise MissingDependencyError("memelite", "motifs", "naming seqlets by motifs") from None
    rows: list[Any] = []
    queries: list[Matrix] = []
    for number, start, end, p in _runs(contributions, codes, threshold, lengths):
        values, bases = contributions[number][start:end].astype(float), codes[number][start:end]
        total = float(values.sum())
        weights = np.maximum(values * np.sign(total), 0)[:, None] / np.abs(values).max()
        queries.append((0.25 + weights * (np.eye(4)[bases] - 0.25)).T)
        rows.append((number, start, end, ".", decode(bases), total, p, None, None, None))
    table = pl.DataFrame(rows, _SCHEMA, orient="row")
    return _named(table, queries, motifs) if rows and motifs else table


def _runs(
    contributions: Sequence[_Floats],
    codes: list[_Codes],
    threshold: float,
    lengths: tuple[int, int],
) -> list[tuple[int, int, int, float]]:
    """Give number of the sequence, start, end and p of all seqlets, in order."""
    every = np.concatenate([np.zeros(0), *contributions])
    low, span = every.min(initial=np.inf), np.ptp(every) if len(every) else 0
    if not span:
        return []
    levels = [np.rint((one - low) * (_LEVELS / span)).astype(int) for one in contributions]
    one = np.bincount(np.concatenate(levels), minlength=_LEVELS + 1) / len(every)
    shortest, longest = lengths
    tails, chances = {}, np.ones(1)  # of sums as large, and as small, by the number of bases
    for length in range(1, longest + 1):
        chances = np.convolve(chances, one)
        tails[length] = chances[::-1].cumsum()[::-1], chances.cumsum()
    found: list[tuple[int, int, int, float]] = []
    for number, (level, bases) in enumerate(zip(levels, codes, strict=True)):
        sums, odd = (np.concatenate(([0], np.cumsum(x))) for x in (level, bases > T))
        runs: list[tuple[int, float, int]] = []
        for side in (0, 1):
            inner = np.zeros(len(level) - shortest + 2)  # largest p of a run and all inside it
            for length in range(shortest, min(longest, len(level)) + 1):
                p = tails[length][side][sums[length:] - sums[:-length]]
                p[odd[length:] > odd[:-length]] = 1
                inner = np.maximum(p, np.maximum(inner[:-1], inner[1:]))
                runs += [(-length, float(p[k]), int(k)) for k in np.flatnonzero(inner < threshold)]
        taken, kept = np.zeros(len(level), dtype=bool), list[tuple[int, int, int, float]]()
        for length, p, start in sorted(runs):
            if not taken[start : start - length].any():
                taken[start : start - length] = True
                kept.append((number, start, start - length, p))
        found += sorted(kept)
    return found


def _named(
    table: pl.DataFrame, queries: list[Matrix], motifs: Mapping[str, Matrix]
) -> pl.DataFrame:
    """Give each seqlet its nearest motif."""
    from memelite import tomtom

    if len(motifs) < _FEW:
        warn(
            f"seqlets are compared with {len(motifs)} motifs; the p-values of Tomtom come from the "
            f"columns of all of them, and are rough with fewer than {_FEW}", InputWarning,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says the same
        found = tomtom(queries, [one.T for one in motifs.values()], n_nearest=1)[:, :, 0]
    p, other, which = found[0], found[4], found[5].astype(int)
    order, ranks = np.argsort(-p), np.arange(len(p), 0, -1)  # the least likely last
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(1, p[order] * len(motifs)) * len(p) / ranks)
    sure, names = q <= _NAMED, np.array([*motifs], dtype=object)
    return table.with_columns(
        strand=pl.Series(np.where(sure, np.where(other == 1, "-", "+"), ".")),
        motif=pl.Series(
            [name if known else None for name, known in zip(names[which], sure, strict=True)],
            dtype=pl.String,
        ),
        motif_p=pl.Series(p), motif_q=pl.Series(q),
    )  # fmt: skip

"""Log-likelihood and perplexity of sequences under a language model.

A causal model gives every base but the first a probability, from the bases before it; a masked
model gives every base one from both sides, itself hidden (a pseudo-log-likelihood). Probabilities
are over A, C, G, T; other letters are read but not scored. The first base of a sequence has nothing
before it and is not scored by a causal model, unless context before it is read as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from megabase.data.augment import codes_to_ids
from megabase.data.sources import Sequence
from megabase.errors import InputError
from megabase.evaluate.batching import run_batched
from megabase.evaluate.given import as_codes, require_several
from megabase.evaluate.log_probs import token_log_probs
from megabase.evaluate.provenance import Provenance
from megabase.genome.alphabet import reverse_complement, warn_ambiguous
from megabase.models.loading import Loaded, load, require_length
from megabase.models.scored_model import ModelSpec

__all__ = ["STRANDS", "ScoreOptions", "SequenceScores", "log_probs_of", "score_sequences",
           "score_table"]  # fmt: skip

Strands = Literal["forward", "reverse", "both"]
STRANDS: tuple[Strands, ...] = ("forward", "reverse", "both")


@dataclass(frozen=True)
class ScoreOptions:
    """What changes a score.

    Parameters
    ----------
    strands
        Which strand is read: ``"forward"`` as given, ``"reverse"`` its reverse complement,
        ``"both"`` the mean of the two.
    window
        Positions of a forward pass for sequences that are longer; the longest input of the model
        when None.
    stride
        By how much windows move; every base but those of the first window then has at least
        ``window - stride`` bases of context. Half a window when None.
    per_base
        Keep the log-probability of every base.
    """

    strands: Strands = "forward"
    window: int | None = None
    stride: int | None = None
    per_base: bool = False

    def __post_init__(self) -> None:
        if self.strands not in STRANDS:
            raise InputError(f"strands is one of {', '.join(STRANDS)}; found {self.strands!r}")
        if self.window is not None and self.window < 2:
            raise InputError(f"a window needs 2 positions or more, found {self.window}")
        if self.stride is not None and not 1 <= self.stride <= (self.window or self.stride):
            raise InputError(f"stride must lie between 1 and the window, found {self.stride:,}")


@dataclass(frozen=True, repr=False)
class SequenceScores:
    """Scores of sequences, with where they come from.

    Parameters
    ----------
    table
        One row for each sequence, in input order; see :func:`score_table`.
    provenance
        Model, genome and options.
    """

    table: pl.DataFrame
    provenance: Provenance

    def __repr__(self) -> str:
        return f"SequenceScores by {self.provenance.model}\n{self.table}"


@dataclass(frozen=True)
class _Piece:
    """A window over a sequence: codes [start, end), of which [first, last) are wanted."""

    owner: int
    start: int
    end: int
    first: int
    last: int


def _pieces(owner: int, length: int, lead: int, after: int, masked: bool, window: int, stride: int
            ) -> Iterator[_Piece]:  # fmt: skip
    stop = length - after
    if length <= window:
        yield _Piece(owner, 0, length, lead, stop)
        return
    if masked:
        for first in range(lead, stop, stride):
            last = min(first + stride, stop)
            start = min(max(0, first - (window - stride) // 2), length - window)
            yield _Piece(owner, start, start + window, first, last)
        return
    first, end = 0, window
    while first < stop:
        end = min(end, stop)
        if end > lead:
            yield _Piece(owner, max(0, end - window), end, max(first, lead), end)
        first, end = end, end + stride


def log_probs_of(
    model: Loaded,
    rows: list[tuple[NDArray[np.uint8], int, int]],
    options: ScoreOptions,
    batch_tokens: int = 1 << 16,
    record: Callable[[int], str] = lambda row: f"sequence {row + 1}",
) -> list[NDArray[np.float32]]:
    """Give the log-probability of every base, read in the direction given.

    Parameters
    ----------
    model
        The model.
    rows
        Codes, and how many at the start and at the end are context only.
    options
        Window and stride.
    batch_tokens
        Most positions of a batch.
    record
        Gives the name of a row, for messages.

    Returns
    -------
    list of NDArray[np.float32]
        Natural logarithms, one array (length,) for each row; NaN where there is no score.
    """
    widest = max((len(codes) for codes, _, _ in rows), default=0)
    window = options.window or min(model.longest or widest, max(widest, 2))
    require_length(model, window, "a window")
    stride = options.stride or max(1, window // 2)
    if stride > window:
        raise InputError(f"stride {stride:,} is longer than the window, {window:,}")
    pieces = [
        piece
        for owner, (codes, lead, after) in enumerate(rows)
        for piece in _pieces(owner, len(codes), lead, after, model.masked, window, stride)
    ]
    found = [np.full(len(codes), np.nan, np.float32) for codes, _, _ in rows]

    def run(codes: NDArray[np.uint8], numbers: NDArray[np.int64]) -> list[None]:
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        log_probs = token_log_probs(
            model.model, ids, first="nan", batch_tokens=batch_tokens, name=model.name,
            record=lambda row: record(pieces[numbers[row]].owner),
        ).cpu().numpy()  # fmt: skip
        for row, number in zip(log_probs, numbers.tolist(), strict=True):
            piece = pieces[number]
            wanted = slice(piece.first - piece.start, piece.last - piece.start)
            found[piece.owner][piece.first : piece.last] = row[wanted]
        return [None] * len(numbers)

    items = [rows[piece.owner][0][piece.start : piece.end] for piece in pieces]
    run_batched(items, run, batch_tokens=batch_tokens, pad=not model.masked)
    return [
        values[lead : len(values) - after]
        for values, (_, lead, after) in zip(found, rows, strict=True)
    ]


def score_table(
    model: Loaded,
    sequences: list[Sequence],
    options: ScoreOptions,
    batch_tokens: int = 1 << 16,
) -> pl.DataFrame:
    """Score sequences.

    Parameters
    ----------
    model
        The model.
    sequences
        What to score. A causal model uses the context before a sequence (on the reverse strand:
        behind it), a masked model both.
    options
        Strands, windows, output.
    batch_tokens
        Most positions of a batch: time and memory, not the result.

    Returns
    -------
    polars.DataFrame
        name; contig, start, end (0-based half-open) and strand, null for sequences without an
        interval; length; scored (bases with a score, both strands together); log_likelihood
        (natural; the mean of the strands when both are read) and perplexity, exp(-mean over scored
        bases), both null when nothing is scored; and with ``per_base`` log_probs, a list with one
        value for each base (NaN where there is no score; of two strands their mean).

    Raises
    ------
    InputError
        When a window does not fit the model.
    """
    rows: list[tuple[NDArray[np.uint8], int, int]] = []
    for one in sequences:
        flipped = reverse_complement(one.codes)
        if model.masked:
            forward, backward = (
                (one.codes, one.context, one.after),
                (flipped, one.after, one.context),
            )
        else:
            forward = (one.codes[: len(one.codes) - one.after], one.context, 0)
            backward = (flipped[: len(flipped) - one.context], one.after, 0)
        if options.strands != "reverse":
            rows.append(forward)
        if options.strands != "forward":
            rows.append(backward)
    strands = 2 if options.strands == "both" else 1
    found = log_probs_of(
        model, rows, options, batch_tokens, lambda row: sequences[row // strands].name
    )
    records: list[dict[str, Any]] = []
    for number, one in enumerate(sequences):
        values = found[number * strands : (number + 1) * strands]
        if options.strands != "forward":
            values[-1] = values[-1][::-1]  # back to the order of the sequence
        stacked = np.stack(values)
        known = ~np.isnan(stacked)
        scored, total = int(known.sum()), float(np.nansum(stacked, dtype=np.float64))
        place = one.interval
        record = {
            "name": one.name,
            "contig": place and place.contig,
            "start": place and place.start,
            "end": place and place.end,
            "strand": place and str(place.strand),
            "length": one.length,
            "scored": scored,
            "log_likelihood": total / strands if scored else None,
            "perplexity": float(np.exp(-total / scored)) if scored else None,
        }
        if options.per_base:
            count = known.sum(0)
            sums = np.where(known, stacked, 0).sum(0)
            record["log_probs"] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
        records.append(record)
    return pl.DataFrame(records, schema=_schema(options))


def _schema(options: ScoreOptions) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "name": pl.String,
        "contig": pl.String,
        "start": pl.Int64,
        "end": pl.Int64,
        "strand": pl.String,
        "length": pl.Int64,
        "scored": pl.Int64,
        "log_likelihood": pl.Float64,
        "perplexity": pl.Float64,
    }
    if options.per_base:
        schema["log_probs"] = pl.List(pl.Float32)
    return schema


def score_sequences(
    sequences: Mapping[str, str] | Iterable[str | Sequence],
    model: ModelSpec = None,
    *,
    strands: Strands = "forward",
    window: int | None = None,
    stride: int | None = None,
    per_base: bool = False,
    batch_tokens: int = 1 << 16,
    device: str | None = None,
) -> SequenceScores:
    """Score sequences with a language model.

    Parameters
    ----------
    sequences
        DNA texts (named by their number from 0), names and texts, or
        :class:`~megabase.data.sources.Sequence` objects.
    model
        A model, or the name of one; the packaged model when None. The mode of a model is restored.
    strands, window, stride, per_base
        See :class:`ScoreOptions`.
    batch_tokens
        Most positions of a batch: time and memory, not the result.
    device
        Where a model that is named goes; the CPU when None.

    Returns
    -------
    SequenceScores

    Raises
    ------
    GenomeError
        For a letter that is no DNA letter.
    InputError, InputError
        When the model gives no probabilities to bases, or a window does not fit it.

    Examples
    --------
    >>> from megabase.inference import score_sequences
    >>> scores = score_sequences({"one": "ACGTACGTACGT", "two": "AAAAAAAAAAAA"})
    >>> scores.table["scored"].to_list()
    [11, 11]
    """
    options = ScoreOptions(strands, window, stride, per_base)
    named = (
        sequences.items()
        if isinstance(sequences, Mapping)
        else enumerate(require_several(sequences))
    )
    ambiguous: Counter[str] = Counter()
    items = [
        one
        if isinstance(one, Sequence)
        else Sequence(str(name), as_codes(one, ambiguous=ambiguous))
        for name, one in named
    ]
    warn_ambiguous(ambiguous, "the sequences")
    loaded = load(model, head="language", device=device)
    table = score_table(loaded, items, options, batch_tokens)
    provenance = Provenance("score", loaded.name, loaded.digest, options=asdict(options))
    return SequenceScores(table, provenance)

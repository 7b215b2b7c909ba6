"""Log-likelihood and perplexity of sequences: in memory, or of a file into a table.

A causal model predicts every base but the first from the bases before it; a masked model every base
from both sides, itself hidden (a pseudo-log-likelihood). Probabilities are over A, C, G, T; other
letters are read but not scored.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from megabase.data.sources import Sequence, SequenceInput
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import token_log_probs
from megabase.evaluate.sequences import Several, Span, named_sequences, plan_windows, run_batched
from megabase.genome.alphabet import reverse_complement
from megabase.inference.jobs import BATCH_TOKENS, Work, map_sequences, split_options
from megabase.inference.parts import Provenance, merge_tables, require_suffix
from megabase.models.loading import Loaded, ModelSpec, load
from megabase.options import ScoreOptions

Strands = Literal["forward", "reverse", "both"]
STRANDS: tuple[Strands, ...] = ("forward", "reverse", "both")
"""Strands that can be read; ``"both"`` is the mean of the two."""
_COLUMNS: dict[str, Any] = {
    "name": pl.String, "contig": pl.String, "start": pl.Int64, "end": pl.Int64,
    "strand": pl.String, "length": pl.Int64, "scored": pl.Int64,
    "log_likelihood": pl.Float64, "perplexity": pl.Float64,
}  # fmt: skip
"""Columns of a table of scores, stated so that an empty table has them too."""


@dataclass(frozen=True, repr=False)
class SequenceScores:
    """Scores of sequences, with their provenance.

    The table has a row for each sequence: name; contig, start, end (0-based half-open) and strand,
    null without an interval; length; scored (bases with a score, both strands together);
    log_likelihood (natural; the mean of the strands when both are read) and perplexity, exp(-mean
    over scored bases), both null when nothing is scored; and with ``per_base`` log_probs, a list
    with one value for each base (NaN where there is no score; of two strands their mean).
    """

    table: pl.DataFrame
    provenance: Provenance

    @property
    def perplexity(self) -> float:
        """Perplexity over all scored bases of all sequences; NaN when none was scored."""
        known = self.table.filter(pl.col("scored") > 0)
        strands = 2 if self.provenance.options.get("strands") == "both" else 1
        total = float(known["log_likelihood"].sum()) * strands
        return math.exp(-total / int(known["scored"].sum())) if known.height else math.nan

    def __repr__(self) -> str:
        return f"SequenceScores by {self.provenance.model}\n{self.table}"


@dataclass(frozen=True)
class _Options:
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


def score(model: ModelSpec, sequences: Several, **options: Unpack[ScoreOptions]) -> SequenceScores:
    """Score sequences with a language model, whose mode is restored.

    Sequences are DNA texts (named by their number from 0), names and texts, or
    :class:`~megabase.data.sources.Sequence` objects. InputError when the model gives no
    probabilities to bases, or a window does not fit it; GenomeError for a letter that is not DNA.
    """
    own, run = split_options(options, ScoreOptions)
    asked = _Options(**own)
    items = named_sequences(sequences)
    loaded = load(model, head="language", device=run.get("device"))
    table = _rows(asked, run.get("batch_tokens", BATCH_TOKENS), loaded, items)
    provenance = Provenance("score", loaded.name, loaded.digest, options=asdict(asked))
    return SequenceScores(table, provenance)


def score_file(
    model: ModelSpec, source: SequenceInput | str | Path, output: str | Path,
    **options: Unpack[ScoreOptions],
) -> Path:  # fmt: skip
    """Score a file of sequences, or the intervals of a BED file, as :func:`score`.

    The output, ``.parquet`` or ``.tsv``, is the table of :class:`SequenceScores`. ``context`` bases
    before (on the reverse strand: behind) an interval of a BED file are read as well.
    """
    require_suffix(output)
    own, run = split_options(options, ScoreOptions)
    context, asked = own.pop("context", 0), _Options(**own)
    given = source if isinstance(source, SequenceInput) else SequenceInput(source)
    given.refuse_variants()
    if context < 0:
        raise InputError(f"context=... must be 0 or more, found {context}")
    if context and given.genome is None:
        raise InputError("context=... needs genome=...: a FASTA sequence has no DNA before it")
    # Which side is context depends on the strand that is read, so both sides are read.
    chunks = partial(SequenceInput.chunks, context=context)
    verb = partial(_rows, asked, run.pop("batch_tokens", BATCH_TOKENS))
    work = Work(verb, partial(load, model, head="language"), chunks)
    about = {**asdict(asked), "context": context}
    return map_sequences("score", work, given, output, lambda _: about, merge_tables, **run)


class _Row(NamedTuple):
    """Codes to read in one direction; those at the start and at the end are context only."""

    codes: NDArray[np.uint8]
    lead: int
    after: int


def _windows(row: _Row, masked: bool, window: int, stride: int) -> list[Span]:
    """Lay windows over a sequence: a causal model looks back, a masked one to both sides."""
    length, lead, stop = len(row.codes), row.lead, len(row.codes) - row.after
    if length <= window:
        return [Span(0, length, lead, stop)]
    if not masked:
        spans = plan_windows(stop, window, window - stride, "before", (lead, stop))
        return [span._replace(first=max(span.first, lead)) for span in spans]
    spans: list[Span] = []
    for first in range(lead, stop, stride):
        start = min(max(0, first - (window - stride) // 2), length - window)
        spans.append(Span(start, start + window, first, min(first + stride, stop)))
    return spans


def _log_probs(
    model: Loaded, rows: list[_Row], options: _Options, batch_tokens: int,
    record: Callable[[int], str],
) -> list[NDArray[np.float32]]:  # fmt: skip
    """Give the log-probability of every base of each row, as read; NaN where there is no score."""
    widest = max((len(row.codes) for row in rows), default=0)
    window = options.window or min(model.longest or widest, max(widest, 2))
    model.require_length(window, "a window")
    stride = options.stride or max(1, window // 2)
    if stride > window:
        raise InputError(f"stride {stride:,} is longer than the window, {window:,}")
    pieces = [
        (owner, span)
        for owner, row in enumerate(rows)
        for span in _windows(row, model.masked, window, stride)
    ]

    def run(codes: NDArray[np.uint8], numbers: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        found = token_log_probs(
            model, ids, batch_tokens=batch_tokens,
            record=lambda row: record(pieces[numbers[row]][0]),
        )  # fmt: skip
        return list(found.cpu().numpy())

    items = [rows[owner].codes[span.start : span.end] for owner, span in pieces]
    read = run_batched(items, run, batch_tokens=batch_tokens, pad=not model.masked)
    found = [np.full(len(row.codes), np.nan, np.float32) for row in rows]
    for (owner, span), values in zip(pieces, read, strict=True):
        found[owner][span.first : span.last] = span.part(values)
    both = zip(found, rows, strict=True)
    return [values[row.lead : len(values) - row.after] for values, row in both]


def _rows(
    options: _Options, batch_tokens: int, model: Loaded, sequences: list[Sequence]
) -> pl.DataFrame:
    """Give a row for each sequence; a masked model uses the context on both sides of it."""
    rows: list[_Row] = []
    for one in sequences:
        directions = (
            _Row(one.codes, one.context, one.after),
            _Row(reverse_complement(one.codes), one.after, one.context),
        )
        for strand, row in zip(STRANDS, directions, strict=False):
            if options.strands in (strand, "both"):
                # A causal model never reads what stands behind the bases it scores.
                stop = len(row.codes) - row.after
                rows.append(row if model.masked else _Row(row.codes[:stop], row.lead, 0))
    strands = 2 if options.strands == "both" else 1
    names = [one.name for one in sequences for _ in range(strands)]
    found = _log_probs(model, rows, options, batch_tokens, names.__getitem__)
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
            "name": one.name, "contig": place and place.contig, "start": place and place.start,
            "end": place and place.end, "strand": place and str(place.strand),
            "length": one.length, "scored": scored,
            "log_likelihood": total / strands if scored else None,
            "perplexity": float(np.exp(-total / scored)) if scored else None,
        }  # fmt: skip
        if options.per_base:
            count = known.sum(0)
            sums = np.where(known, stacked, 0).sum(0)
            record["log_probs"] = np.where(count > 0, sums / np.maximum(count, 1), np.nan)
        records.append(record)
    per_base: dict[str, Any] = {"log_probs": pl.List(pl.Float32)} if options.per_base else {}
    return pl.DataFrame(records, schema={**_COLUMNS, **per_base})

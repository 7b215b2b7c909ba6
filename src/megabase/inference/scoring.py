"""Log-likelihood and perplexity of sequences: in memory, or of a file into a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import polars as pl

from megabase.data.sources import Sequence, SequenceInput
from megabase.errors import InputError
from megabase.evaluate.score import ScoreOptions, Strands, score_table
from megabase.evaluate.sequences import as_codes, require_several
from megabase.genome.alphabet import warn_ambiguous
from megabase.inference.jobs import BATCH_TOKENS, RunOptions, Work, map_sequences
from megabase.inference.parts import Provenance
from megabase.inference.writers import merge_tables, require_suffix
from megabase.models.loading import Loaded, ModelSpec, load


@dataclass(frozen=True, repr=False)
class SequenceScores:
    """Scores of sequences (:func:`megabase.evaluate.score.score_table`), with their provenance."""

    table: pl.DataFrame
    provenance: Provenance

    @property
    def perplexity(self) -> float:
        """Perplexity over all scored bases of all sequences; NaN when none was scored."""
        known = self.table.filter(pl.col("scored") > 0)
        strands = 2 if self.provenance.options.get("strands") == "both" else 1
        total = known["log_likelihood"].sum() * strands
        return math.exp(-total / known["scored"].sum()) if known.height else math.nan

    def __repr__(self) -> str:
        return f"SequenceScores by {self.provenance.model}\n{self.table}"


def score(
    model: ModelSpec,
    sequences: Mapping[str, str] | Iterable[str | Sequence],
    *,
    strands: Strands = "forward",
    window: int | None = None,
    stride: int | None = None,
    per_base: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    device: str | None = None,
) -> SequenceScores:
    """Score sequences with a language model.

    Parameters
    ----------
    model
        A model, or the name of one; the packaged model when None. The mode of a model is restored.
    sequences
        DNA texts (named by their number from 0), names and texts, or
        :class:`~megabase.data.sources.Sequence` objects.
    strands, window, stride, per_base
        See :class:`megabase.evaluate.score.ScoreOptions`.
    batch_tokens, device
        See :class:`megabase.inference.jobs.PassOptions`.

    Raises
    ------
    GenomeError
        For a letter that is not a DNA letter.
    InputError
        When the model gives no probabilities to bases, or a window does not fit it.

    Examples
    --------
    >>> from megabase.inference import score
    >>> scores = score(None, {"one": "ACGTACGTACGT", "two": "AAAAAAAAAAAA"})
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


def score_file(
    model: ModelSpec,
    source: SequenceInput | str | Path,
    output: str | Path,
    *,
    strands: Strands = "forward",
    window: int | None = None,
    stride: int | None = None,
    per_base: bool = False,
    context: int = 0,
    **running: Unpack[RunOptions],
) -> Path:
    """Score the sequences of a FASTA file or a table, or the intervals of a BED file.

    Parameters
    ----------
    model
        Model folder, run folder, preset or Hub name; None for the packaged model; or a model.
    source
        What is read.
    output
        ``.parquet`` or ``.tsv``: a row for each sequence
        (:func:`megabase.evaluate.score.score_table`).
    strands, window, stride, per_base
        See :class:`megabase.evaluate.score.ScoreOptions`.
    context
        Bases read before (on the reverse strand: behind) an interval of a BED file.
    **running
        See :class:`megabase.inference.jobs.RunOptions`.
    """
    require_suffix(output)
    options = ScoreOptions(strands, window, stride, per_base)
    given = source if isinstance(source, SequenceInput) else SequenceInput(source)
    given.refuse_variants()
    if context < 0:
        raise InputError(f"context=... must be 0 or more, found {context}")
    if context and given.genome is None:
        raise InputError("context=... needs genome=...: a FASTA sequence has no DNA before it")
    # Which side is context depends on the strand that is read, so both sides are read.
    chunks = partial(SequenceInput.chunks, context=context)
    work = Work(
        partial(_rows, options, running.get("batch_tokens", BATCH_TOKENS)),
        partial(load, model, head="language"),
        chunks,
    )
    asked = {**asdict(options), "context": context}
    return map_sequences("score", work, given, output, lambda _: asked, merge_tables, **running)


def _rows(
    options: ScoreOptions, batch_tokens: int, model: Loaded, chunk: list[Sequence]
) -> pl.DataFrame:
    """Give a row for each sequence."""
    return score_table(model, chunk, options, batch_tokens)

"""Rank means: one score out of those of several methods or models."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from megabase.errors import InputError
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.scorer import VariantScores

_ALLELE = ("contig", "pos", "ref", "alt")
"""What names an allele in every table of scores."""


def rank_mean(
    *tables: pl.DataFrame | VariantScores, methods: Sequence[str] | None = None
) -> pl.DataFrame:
    """Rank alleles by several methods, of one or several models, and average the ranks.

    Every column is turned by the sign of its method, so that higher means more damaging, and
    ranked among the alleles that have all values; ties share the mean of their ranks. Gives
    ``contig``, ``pos``, ``ref``, ``alt`` and ``rank_mean``, the mean over the columns of rank /
    number of alleles, above 0 up to 1; null for an allele that lacks a value.

    Parameters
    ----------
    tables
        Scores of the same alleles in the same order: of :meth:`Model.score_variants`, or of a
        ``.parquet`` or ``.tsv`` that ``megabase variants`` wrote, as a frame.
    methods
        Columns to use; all methods that a table has when None.

    Raises
    ------
    InputError
        When the tables differ in their alleles, or have no column of a method.
    """
    frames = [one.table if isinstance(one, VariantScores) else one for one in tables]
    columns: list[pl.Series] = []
    for number, frame in enumerate(frames, start=1):
        names = [name for name in methods or METHODS if methods or name in frame.columns]
        missing = {*names, *_ALLELE} - {*frame.columns}
        unknown = {*names} - {*METHODS}
        if missing or unknown or not names:
            wrong = ", ".join(sorted(missing | unknown)) or "a method"
            raise InputError(
                f"table {number} has no scores of {wrong}; it has {', '.join(frame.columns)}"
            )
        if not frame.select(_ALLELE).equals(frames[0].select(_ALLELE)):
            raise InputError(f"table {number} has other alleles than table 1; score the same file")
        columns += [(frame[name] * METHODS[name].damaging).fill_nan(None) for name in names]
    if not columns:
        raise InputError("expected tables of scores, found none")
    turned = pl.DataFrame([one.alias(str(number)) for number, one in enumerate(columns)])
    known = pl.all_horizontal(pl.all().is_not_null())
    ranks = turned.select(pl.when(known).then(pl.all()).rank("average") / known.sum())
    return frames[0].select(*_ALLELE, ranks.mean_horizontal().alias("rank_mean"))

"""Scores of variants: what a language model says about ALT against REF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.sources import genome_store
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.evaluate.score import STRANDS, Strands
from megabase.genome.alphabet import T
from megabase.genome.interval import Variant, one_based
from megabase.genome.left_out import Reason
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import (
    VcfRecord,
    check_allele,
    check_record,
    find_contig,
    read_vcf_records,
)
from megabase.inference.variants.alleles import PLACEMENTS, Placed, Placement, place
from megabase.inference.variants.methods import (
    Need,
    Reading,
    default_methods,
    find_methods,
    require_methods,
)
from megabase.inference.variants.readers import choose_reader
from megabase.models.checkpoints.finite import require_finite
from megabase.models.loading import Loaded, load, require_length
from megabase.models.scored_model import ModelSpec

__all__ = ["AlleleScore", "VariantOptions", "VariantScorer", "VariantScores", "method_tuple",
           "score_variants", "variant_table"]  # fmt: skip

DEFAULT_WINDOW = 1_024


@dataclass(frozen=True)
class VariantOptions:
    """What changes a score.

    Parameters
    ----------
    window
        Bases of the window of each allele; 1,024, or fewer where the model takes fewer, when None.
    methods
        Names of methods (``METHODS`` of :mod:`.methods`); when None those that fit the model.
    strands
        ``"both"`` (the mean), ``"forward"`` or ``"reverse"``.
    placement
        ``"centred"``: each variant in the middle of a window of its own. ``"grid"``: in the middle
        half of a window that begins at a multiple of half its length, which neighbouring variants
        share; faster. See :mod:`megabase.inference.variants.alleles`.
    """

    window: int | None = None
    methods: tuple[str, ...] | None = None
    strands: Strands = "both"
    placement: Placement = "centred"

    def __post_init__(self) -> None:
        if self.methods is not None:
            require_methods(self.methods)
        if self.strands not in STRANDS:
            raise InputError(f"strands is one of {', '.join(STRANDS)}; found {self.strands!r}")
        if self.placement not in PLACEMENTS:
            raise InputError(
                f"placement is one of {', '.join(PLACEMENTS)}; found {self.placement!r}"
            )
        if self.window is not None and (self.window < 2 or self.window != int(self.window)):
            raise InputError(f"a window needs 2 bases or more, found {self.window}")

    def resolved(self, model: Loaded) -> VariantOptions:
        """Fill in what the model decides, and check it.

        Raises
        ------
        InputError
            When the window or a method does not fit the model.
        """
        window = self.window or min(DEFAULT_WINDOW, model.longest or DEFAULT_WINDOW)
        require_length(model, window, "a window")
        names = self.methods or default_methods(model.masked)
        find_methods(names, model.masked)
        return VariantOptions(window, tuple(names), self.strands, self.placement)


@dataclass(frozen=True, slots=True)
class AlleleScore:
    """Score of one alternative allele.

    Parameters
    ----------
    values
        One number for each method, NaN where there is none.
    reason
        Why there are none, or why one is missing; see :data:`megabase.genome.left_out.REASONS`.
    """

    values: tuple[float, ...]
    reason: Reason | None = None


@dataclass(frozen=True, repr=False)
class VariantScores:
    """Scores of variants, with where they come from.

    Parameters
    ----------
    table
        One row for each alternative allele, in input order; see :func:`variant_table`.
    provenance
        Model, genome and options.
    """

    table: pl.DataFrame
    provenance: Provenance

    def __repr__(self) -> str:
        return f"VariantScores by {self.provenance.model}\n{self.table}"


@dataclass
class VariantScorer:
    """Scores records with one model on one genome.

    Parameters
    ----------
    model
        The model.
    store
        The genome.
    options
        Window, methods and strands.
    batch_tokens
        Most positions of a batch.
    """

    model: Loaded
    store: GenomeStore
    options: VariantOptions
    batch_tokens: int = 1 << 16
    _contigs: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.options = self.options.resolved(self.model)
        names = self.options.methods or ()
        self.methods = find_methods(names, self.model.masked)
        self.reader = choose_reader(self.model, self.batch_tokens)

    def contig(self, name: str) -> int | None:
        """Index of a contig under its name or alias; None when the genome has none."""
        return find_contig(self.store, name, self._contigs)

    def score(self, records: Sequence[VcfRecord]) -> list[tuple[AlleleScore, ...]]:
        """Score records.

        Parameters
        ----------
        records
            The records, in any order.

        Returns
        -------
        list
            For each record one score for each alternative allele; a single one with a reason for
            a record without any.
        """
        window = self.options.window or DEFAULT_WINDOW
        wanted = STRANDS[:2] if self.options.strands == "both" else (self.options.strands,)
        none = (float("nan"),) * len(self.methods)
        places: list[Placed] = []
        plan: list[list[list[int] | Reason]] = []  # for each allele: its places, or the reason
        for record in records:
            contig = self.contig(record.contig)
            problem = check_record(record, self.store, contig)
            if problem is not None or contig is None:
                plan.append([problem or "UNKNOWN_CONTIG"] * max(1, len(record.alts)))
                continue
            view, alleles = self.store.view(contig), []
            for alt in record.alts:
                reason = check_allele(record.ref, alt)
                found: list[int] = []
                for strand in () if reason else wanted:
                    one = place(
                        view, record.position, record.ref, alt, window, strand == "reverse",
                        self.options.placement,
                    )  # fmt: skip
                    if isinstance(one, str):
                        reason = one
                        break
                    found.append(len(places))
                    name = f"{record.contig}:{one_based(record.position):,}:{record.ref}>{alt}"
                    places.append(replace(one, name=name))
                alleles.append(reason or found)
            plan.append(alleles)
        values = self._values(places)
        return [
            tuple(
                AlleleScore(none, one)
                if isinstance(one, str)
                else self._allele(values[one].mean(0))
                for one in alleles
            )
            for alleles in plan
        ]

    def _allele(self, values: np.ndarray) -> AlleleScore:
        missing = (m for m, value in zip(self.methods, values, strict=True) if np.isnan(value))
        return AlleleScore(
            tuple(values.tolist()), next((getattr(m, "lacks", None) for m in missing), None)
        )

    def _values(self, places: list[Placed]) -> np.ndarray:
        values = np.full((len(places), len(self.methods)), np.nan)
        needs: set[Need] = {method.need for method in self.methods}
        readings = self.reader.read(places, needs) if places else []
        for row, (one, (ref, alt)) in enumerate(zip(places, readings, strict=True)):
            self._require_finite(one.name, (one.ref, ref), (one.alt, alt))
            values[row] = [method.value(ref, alt, one) for method in self.methods]
        # Methods give NaN where they have no value for an allele; none gives infinity.
        require_finite(
            values, self.model.name, "scores", lambda row: places[row].name, ~np.isnan(values)
        )
        return values

    def _require_finite(self, name: str, *alleles: tuple[NDArray[np.uint8], Reading]) -> None:
        """Refuse readings that are not finite where the model was asked for a number."""
        for codes, reading in alleles:
            if (found := reading.log_probs) is not None:
                # N has no probability; nor has the first base of a window in a causal model.
                known = codes[len(codes) - len(found) :] <= T
                if not self.model.masked and len(found) == len(codes):
                    known[:1] = False
                require_finite(
                    found[None], self.model.name, "log-probabilities", lambda _: name, known[None]
                )
            for other in (reading.pooled, reading.masked):
                if other is not None:
                    require_finite(
                        np.atleast_1d(other)[None], self.model.name, "outputs", lambda _: name
                    )


def variant_table(
    records: Sequence[VcfRecord],
    scores: Sequence[tuple[AlleleScore, ...]],
    methods: Sequence[str],
    first_record: int = 0,
) -> pl.DataFrame:
    """Put scores into a table.

    Returns
    -------
    polars.DataFrame
        One row for each alternative allele (and one for a record without): contig, start, end (of
        REF, 0-based half-open), pos (1-based, as in VCF), ref, alt, id, record and allele (0-based
        numbers), one Float64 column for each method (null where there is no value), and reason
        (null where every method has a value).
    """
    rows: list[dict[str, Any]] = []
    for number, (record, alleles) in enumerate(zip(records, scores, strict=True), first_record):
        for allele, score in enumerate(alleles):
            rows.append(
                {
                    "contig": record.contig,
                    "start": record.position,
                    "end": record.position + len(record.ref),
                    "pos": one_based(record.position),
                    "ref": record.ref,
                    "alt": record.alts[allele] if record.alts else None,
                    "id": None if record.fields[2] == "." else record.fields[2],
                    "record": number,
                    "allele": allele,
                    **dict(zip(methods, score.values, strict=True)),
                    "reason": score.reason,
                }
            )
    text, number_type = pl.String, pl.Int64
    schema = {
        "contig": text, "start": number_type, "end": number_type, "pos": number_type,
        "ref": text, "alt": text, "id": text, "record": number_type, "allele": number_type,
        **dict.fromkeys(methods, pl.Float64), "reason": text,
    }  # fmt: skip
    frame = pl.DataFrame(rows, schema=schema)
    return frame.with_columns(pl.col(list(methods)).fill_nan(None))


def method_tuple(methods: Sequence[str] | None) -> tuple[str, ...] | None:
    """Give methods as a tuple; a single name is one of them."""
    if methods is None:
        return None
    return (methods,) if isinstance(methods, str) else tuple(methods)


def _records(variants: str | Path | Iterable[Variant | str]) -> list[VcfRecord]:
    if isinstance(variants, Path) or (isinstance(variants, str) and ":" not in variants):
        return list(read_vcf_records(variants))
    given = [variants] if isinstance(variants, str) else variants
    records = []
    for number, one in enumerate(given, start=1):
        if isinstance(one, str):
            one = Variant.parse(one)
        if not isinstance(one, Variant):
            raise InputError(
                f"a variant is a text such as 'chr1:1,001:A>G' or a Variant; found {one!r}"
            )
        fields = (one.contig, str(one_based(one.position)), ".", one.ref, one.alt, ".", ".", ".")
        records.append(VcfRecord(number, fields, one.contig, one.position, one.ref, (one.alt,)))
    return records


def score_variants(
    variants: str | Path | Iterable[Variant | str],
    genome: GenomeStore | str | Path,
    model: ModelSpec = None,
    *,
    window: int | None = None,
    methods: Sequence[str] | None = None,
    strands: Strands = "both",
    placement: Placement = "centred",
    batch_tokens: int = 1 << 16,
    device: str | None = None,
) -> VariantScores:
    """Score variants with a language model.

    Parameters
    ----------
    variants
        A VCF or BCF file, or variants: :class:`~megabase.genome.interval.Variant` objects or texts
        such as ``"chr1:1,001:A>G"`` (1-based).
    genome
        The genome, or a store or FASTA file.
    model
        A model, or the name of one; the packaged model when None. The mode of a model is restored.
    window, methods, strands, placement
        See :class:`VariantOptions`.
    batch_tokens
        Most positions of a batch: time and memory, not the result.
    device
        Where a model that is named goes; the CPU when None.

    Returns
    -------
    VariantScores
        What cannot be scored keeps its row, with the reason.

    Raises
    ------
    InputError
        When the file cannot be read.
    InputError, InputError
        When model, window and methods do not fit.
    """
    options = VariantOptions(window, method_tuple(methods), strands, placement)
    records = _records(variants)
    loaded = load(model, head="language", device=device)
    if isinstance(genome, GenomeStore):
        return _scored(records, genome, loaded, options, batch_tokens)
    with genome_store(genome) as store:
        return _scored(records, store, loaded, options, batch_tokens)


def _scored(
    records: list[VcfRecord],
    store: GenomeStore,
    model: Loaded,
    options: VariantOptions,
    batch_tokens: int,
) -> VariantScores:
    scorer = VariantScorer(model, store, options, batch_tokens)
    scores: list[tuple[AlleleScore, ...]] = []
    for low in range(0, len(records), 512):
        scores += scorer.score(records[low : low + 512])
    provenance = Provenance(
        "variants",
        model.name,
        model.digest,
        genome=store.name,
        genome_sha256=store.checksum,
        options=asdict(scorer.options),
    )
    return VariantScores(variant_table(records, scores, scorer.options.methods or ()), provenance)

"""Variant-effect scores: how a language model rates ALT against REF, and their rank mean.

Causal Hyena and Mamba models read REF once and ALT from the variant on
(:mod:`megabase.inference.variants.prefix`); any other model reads whole windows. The numbers are
computed batch by batch: no outputs are kept.

Shape suffixes: A variants, B bases, K distinct windows.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.sources import genome_store
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.genome.alphabet import T
from megabase.genome.consequences import Annotation, Consequence
from megabase.genome.interval import Variant, one_based
from megabase.genome.left_out import Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS, split_options
from megabase.inference.parts import Provenance
from megabase.inference.prediction import Predictor
from megabase.inference.scoring import STRANDS, Strands
from megabase.inference.variants.calibration import Calibration, columns, context_of
from megabase.inference.variants.methods import (
    METHODS,
    PLACEMENTS,
    AlleleWindows,
    Method,
    Need,
    Outputs,
    Pairs,
    Placement,
)
from megabase.inference.variants.prefix import HyenaPrefix, MambaPrefix, score_letters
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, ModelSpec, inference_mode, load, track_names
from megabase.options import CalibratedScoring, PassOptions

DEFAULT_WINDOW = 1_024
"""Long enough for what small models use of the context, and fast; models of 1k take no more."""
_EFFECTS = ("consequence", "gene", "transcripts")  # columns of consequences, where genes are given
_ALLELE = ("contig", "pos", "ref", "alt")  # what names an allele in every table of scores
_CHUNK = 512
"""Records scored at a time: enough for full batches, few enough to keep their outputs in memory."""
_CAUSAL_DEFAULT = ("llr_window", "llr_after", "llr_site")
"""Methods when none is named: one pass of a causal model gives all three."""
_MASKED_DEFAULT = ("masked",)
"""The same for a masked model, whose other likelihoods take one pass for each base."""
_TRACKS_DEFAULT = ("track_delta", "track_lfc")
"""The same for a model of tracks, which answers nothing else; one value for each track."""


@dataclass(frozen=True)
class VariantOptions:
    """Everything that changes a score: keywords of :class:`megabase.options.CalibratedScoring`."""

    window: int | None = None
    methods: Sequence[str] | None = None
    strands: Strands | None = None
    placement: Placement = "centered"
    calibration: str | Path | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.methods is not None:
            names = (self.methods,) if isinstance(self.methods, str) else tuple(self.methods)
            object.__setattr__(self, "methods", names)
            if not names or len(set(names)) < len(names):
                raise InputError(f"methods must be one or more different names, found {[*names]}")
            for name in names:
                if name not in METHODS:
                    raise InputError(f"there is no method {name!r}; expected {', '.join(METHODS)}")
        if self.strands not in (None, *STRANDS):
            raise InputError(f"strands is one of {', '.join(STRANDS)}; found {self.strands!r}")
        if self.placement not in PLACEMENTS:
            placements = ", ".join(PLACEMENTS)
            raise InputError(f"placement is one of {placements}; found {self.placement!r}")
        if self.window is not None and (self.window < 2 or self.window != int(self.window)):
            raise InputError(f"a window needs 2 bases or more, found {self.window}")
        if self.horizon is not None and (self.horizon < 1 or self.horizon != int(self.horizon)):
            raise InputError(f"a horizon is 1 base or more, found {self.horizon}")

    def resolved(self, model: Loaded) -> Self:
        """Fill in what depends on the model; InputError for what does not fit it."""
        window = self.window or min(DEFAULT_WINDOW, model.longest or DEFAULT_WINDOW)
        model.require_length(window, "a window")
        tracks, strands = track_names(model), self.strands or "both"
        if tracks:
            strands = self.strands or ("both" if model.both_strands else "forward")
            if strands == "reverse":
                raise InputError("tracks are read on the strand forward, or on both")
        usual = _MASKED_DEFAULT if model.masked else _CAUSAL_DEFAULT
        usual = _TRACKS_DEFAULT if tracks else usual
        names = self.methods or usual
        for name in names:
            if ("tracks" in METHODS[name].needs) != bool(tracks):
                kind = "a model of tracks" if tracks else "a language model"
                raise InputError(
                    f"method {name!r} does not fit {kind}, which {model.name} is; use "
                    f"{', '.join(usual)}"
                )
            if "masked" in METHODS[name].needs and not model.masked:
                raise InputError(
                    f"method {name!r} needs a model that predicts hidden bases; this one is causal "
                    f"(use {', '.join(_CAUSAL_DEFAULT)})"
                )
        return replace(self, window=window, methods=names, strands=strands)


class AlleleScore(NamedTuple):
    """Scores of one alternative allele."""

    values: tuple[float, ...]  # one number for each method, NaN where there is none
    reason: Reason | None = None
    """Why there is none, or why one is missing (:data:`megabase.genome.left_out.REASONS`)."""
    source: str = ""  # ``table`` or ``model`` where scores come from either


@dataclass(frozen=True, repr=False)
class VariantScores:
    """Scores of variants (:meth:`VariantScorer.table`), with their provenance."""

    table: pl.DataFrame
    provenance: Provenance

    def __repr__(self) -> str:
        return f"VariantScores by {self.provenance.model}\n{self.table}"


class VariantScorer:
    """Scores records with one model on one genome."""

    def __init__(
        self, model: Loaded, store: Genome, options: VariantOptions,
        batch_tokens: int = BATCH_TOKENS, genes: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.model, self.store, self.batch_tokens, self.genes = model, store, batch_tokens, genes
        self.annotation = None if genes is None else Annotation.read(genes, store)
        self.options = options.resolved(model)
        asked = {name: METHODS[name] for name in self.options.methods or ()}
        self.predictor: Predictor | None = None
        if tracks := track_names(model):
            strand: Any = self.options.strands
            self.predictor = Predictor(model, strands=strand, batch_tokens=batch_tokens)
            asked = {
                f"{name}_{track}": one._replace(description=f"{one.description}: {track}")
                for name, one in asked.items()
                for track in tracks
            }
        self.names, self.methods = list(asked), list(asked.values())
        given = self.options.calibration
        self.calibration = None
        if given is not None:
            self.calibration = Calibration.of(given, model, self.options, self.names)
        self.columns = columns(self.names, given is not None)
        """Names of the values of an allele."""

    @classmethod
    def load(
        cls, model: ModelSpec, genome: Genome | Path, *rest: Any, device: str | None = None,
        **more: Any,
    ) -> Self:  # fmt: skip
        """Load a language model or one of tracks, and open the genome; the rest as above."""
        loaded = load(model, head="own" if track_names(model) else "language", device=device)
        store = genome if isinstance(genome, Genome) else Genome(genome)
        return cls(loaded, store, *rest, **more)

    @property
    def placed(self) -> str:
        """Where windows lie, for headers of outputs."""
        horizon = self.options.horizon
        reach = "" if horizon is None else f", {horizon} bases behind the variant"
        return f"window of {self.options.window} bases, {self.options.placement}{reach}"

    def provenance(self, verb: str, **more: Any) -> Provenance:
        """Describe where scores come from; `more` are further options than those of a score."""
        options = {**asdict(self.options), **more}
        if self.options.horizon is None:
            del options["horizon"]
        del options["calibration"]
        if self.calibration is not None:
            made = self.calibration.provenance
            options["calibration"] = {"genome_sha256": made.genome_sha256, **made.options}
        return Provenance(
            verb, self.model.name, self.model.digest,
            genome=self.store.name, genome_sha256=self.store.checksum, options=options,
            inputs={} if self.genes is None else Provenance.digests(self.genes),
        )  # fmt: skip

    def score(self, records: Sequence[VcfRecord]) -> list[tuple[AlleleScore, ...]]:
        """Score records, in any order: one score for each alternative allele.

        A record without any has a single one, with a reason.
        """
        own: Strands = self.options.strands or "both"
        strands = STRANDS[:2] if own == "both" else (own,)
        strands = strands if self.predictor is None else ("forward",)  # it averages them itself
        windows: list[AlleleWindows] = []
        plan: list[list[int | Reason]] = []  # for each allele: its number, or the reason
        places: list[tuple[int, int]] = []  # context and class of each with a number
        for record in records:
            alleles: list[int | Reason] = []
            for contig, alt, reason in self._alleles(record):
                found = reason or self._windows(contig, record, alt, strands)
                if isinstance(found, str):
                    alleles.append(found)
                else:
                    alleles.append(len(places))
                    site = record.position, record.ref, alt
                    places.append(context_of(self.store.view(contig), *site))
                    windows += found
            plan.append(alleles)
        count = len(self.methods)
        if self.predictor is None:
            values = _compare_alleles(self.model, windows, self.methods, self.batch_tokens)
        else:
            each = [METHODS[name] for name in self.options.methods or ()]
            values = _compare_tracks(self.predictor, windows, each)
        values = values.reshape(len(places), len(strands), count).mean(1)
        values = np.where([method.absolute for method in self.methods], np.abs(values), values)
        if self.calibration is not None:
            context = np.array(places, dtype=np.int64).reshape(-1, 2)
            values = self.calibration.extend(self.names, values, *context.T)

        def score_of(one: int | Reason) -> AlleleScore:
            """Give the values of an allele with the reason of the first that is missing."""
            if isinstance(one, str):
                return AlleleScore((math.nan,) * len(self.columns), one)
            missing = np.flatnonzero(np.isnan(values[one]))
            reason: Reason | None = None
            if len(missing):
                first = int(missing[0])
                reason = self.methods[first].lacks if first < count else "NOT_CALIBRATED"
            return AlleleScore(tuple(values[one].tolist()), reason)

        return [tuple(map(score_of, alleles)) for alleles in plan]

    def _alleles(self, record: VcfRecord) -> Iterator[tuple[int, str, Reason | None]]:
        """Give contig, alternative alleles (``.`` without any) and what each cannot be used for."""
        contig = self.store.find_contig(record.contig)
        problem = record.check(self.store, contig)
        for alt in record.alts or (".",):
            yield -1 if contig is None else contig, alt, problem or record.check_allele(alt)

    def consequences(self, record: VcfRecord) -> list[list[Consequence]]:
        """Give what each alternative allele does to genes: nothing of one that is not bases."""
        if (genes := self.annotation) is None:
            return [[]] * max(1, len(record.alts))
        names, site = self.store.contigs, (record.position, record.ref)
        return [
            [] if reason else genes.consequences(names[contig].name, *site, alt)
            for contig, alt, reason in self._alleles(record)
        ]

    @staticmethod
    def effect(effects: Sequence[Consequence]) -> tuple[str | None, str | None, str | None]:
        """Give the most severe term, its gene, and all transcripts of an allele."""
        if not effects:
            return None, None, None
        first = effects[0]
        every = ",".join(map(str, effects)) if first.transcript else None
        return first.terms[0], first.gene or None, every

    def table(
        self, records: Sequence[VcfRecord], numbers: Iterable[int] | None = None
    ) -> pl.DataFrame:
        """Score records into a table: a row for each alternative allele, or a record without.

        Columns: contig, start, end (of REF, 0-based half-open), pos (1-based), ref, alt, id, record
        and allele (0-based numbers), one for each method (null where there is no value) and reason.
        With genes also the most severe consequence, its gene, and the consequences for all
        transcripts, commas between. `numbers` are those of the records in their file.
        """
        rows: list[tuple[Any, ...]] = []
        numbers = range(len(records)) if numbers is None else numbers
        for number, record, alleles in zip(numbers, records, self.score(records), strict=True):
            site = (record.contig, record.position, record.position + len(record.ref),
                    one_based(record.position), record.ref)  # fmt: skip
            name = None if record.fields[2] == "." else record.fields[2]
            effects = self.consequences(record)
            for allele, score in enumerate(alleles):
                alt = record.alts[allele] if record.alts else None
                row = (*site, alt, name, number, allele, *score.values, score.reason)
                rows.append((*row, *self.effect(effects[allele])) if self.annotation else row)
        text, integer = pl.String, pl.Int64
        schema = {
            "contig": text, "start": integer, "end": integer, "pos": integer, "ref": text,
            "alt": text, "id": text, "record": integer, "allele": integer,
            **dict.fromkeys(self.columns, pl.Float64), "reason": text,
            **dict.fromkeys(_EFFECTS if self.annotation else (), text),
        }  # fmt: skip
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        return frame.with_columns(pl.col(self.columns).fill_nan(None))

    def _windows(
        self, contig: int, record: VcfRecord, alt: str, strands: Sequence[Strands]
    ) -> list[AlleleWindows] | Reason:
        """Cut the windows of an allele on each strand, or give the reason why there are none."""
        name = f"{record.contig}:{one_based(record.position):,}:{record.ref}>{alt}"
        site = self.store.view(contig), record.position, record.ref, alt
        window, placement, found = self.options.window or 0, self.options.placement, []
        for strand in strands:
            one = AlleleWindows.cut(*site, window, strand == "reverse", placement)
            if isinstance(one, str):
                return one
            found.append(one.named(name, self.options.horizon))
        return found


def _records(variants: str | Path | Iterable[Variant | str]) -> list[VcfRecord]:
    if isinstance(variants, Path) or (isinstance(variants, str) and ":" not in variants):
        return list(VcfRecord.read(variants))
    given = [variants] if isinstance(variants, str) else variants
    records = []
    for number, one in enumerate(given, start=1):
        if isinstance(one, str):
            one = Variant.parse(one)
        if not isinstance(one, Variant):
            raise InputError(
                f"a variant is a text such as 'chr1:1,001:A>G' or a Variant; found {one!r}"
            )
        records.append(VcfRecord.of(number, one.contig, one.position, one.ref, one.alt))
    return records


def score_variants(
    model: ModelSpec, variants: str | Path | Iterable[Variant | str], genome: Genome | str | Path,
    **options: Unpack[CalibratedScoring],
) -> VariantScores:  # fmt: skip
    """Score variants with a language model or one of tracks, whose mode is restored.

    Variants are a VCF or BCF file, :class:`~megabase.genome.interval.Variant` objects, or texts
    such as ``"chr1:1,001:A>G"`` (1-based). What cannot be scored keeps its row, with the reason.
    `genes` is GFF3 or GTF, for columns of consequences.
    InputError when the file cannot be read, or model, window and methods do not fit.
    """
    own, run = split_options(options, CalibratedScoring)
    genes, records = own.pop("genes", None), _records(variants)
    run = {name: run[name] for name in PassOptions.__optional_keys__ & run.keys()}
    with genome_store(genome) as store:
        scorer = VariantScorer.load(model, store, VariantOptions(**own), genes=genes, **run)
        tables = [scorer.table([])]
        for low in range(0, len(records), _CHUNK):
            part = records[low : low + _CHUNK]
            tables.append(scorer.table(part, range(low, low + len(part))))
        return VariantScores(pl.concat(tables), scorer.provenance("variants"))


def rank_mean(
    *tables: pl.DataFrame | VariantScores, methods: Sequence[str] | None = None
) -> pl.DataFrame:
    """Rank alleles by several methods, of one or several models, and average the ranks.

    Tables are scores of the same alleles in the same order: of :meth:`Model.score_variants`, or of
    a file that ``megabase variants`` wrote, as a frame; `methods` are columns to use, all methods
    that a table has when None. Every column is turned by the sign of its method, so that higher
    means more damaging, and ranked among the alleles that have all values; ties share the mean of
    their ranks. Gives ``contig``, ``pos``, ``ref``, ``alt`` and ``rank_mean``, the mean over the
    columns of rank / number of alleles, above 0 up to 1; null for an allele that lacks a value.
    InputError when the tables differ in their alleles, or have no column of a method.
    """
    frames = [one.table if isinstance(one, VariantScores) else one for one in tables]
    columns: list[pl.Series] = []
    for number, frame in enumerate(frames, start=1):
        names = [name for name in methods or METHODS if methods or name in frame.columns]
        missing = {*names, *_ALLELE} - {*frame.columns}
        unknown = {*names} - {*METHODS}
        if missing or unknown or not names:
            wrong = ", ".join(sorted(missing | unknown)) or "a method"
            has = ", ".join(frame.columns)
            raise InputError(f"table {number} has no scores of {wrong}; it has {has}")
        if not frame.select(_ALLELE).equals(frames[0].select(_ALLELE)):
            raise InputError(f"table {number} has other alleles than table 1; score the same file")
        columns += [(frame[name] * METHODS[name].damaging).fill_nan(None) for name in names]
    if not columns:
        raise InputError("expected tables of scores, found none")
    turned = pl.DataFrame([one.alias(str(number)) for number, one in enumerate(columns)])
    known = pl.all_horizontal(pl.all().is_not_null())
    ranks = turned.select(pl.when(known).then(pl.all()).rank("average") / known.sum())
    return frames[0].select(*_ALLELE, ranks.mean_horizontal().alias("rank_mean"))


def _compare_alleles(
    model: Loaded, windows: Sequence[AlleleWindows], methods: Sequence[Method], batch_tokens: int
) -> NDArray[np.float64]:
    """Run a language model on both alleles of variants; give values, (windows, methods).

    NaN where a method has no value. InputError when hidden states are needed of a model that gives
    none, NotFiniteError when what it gives is not finite.
    """
    values = np.full((len(windows), len(methods)), np.nan)
    needs: set[Need] = {need for method in methods for need in method.needs}
    with inference_mode(model.model):
        for numbers, pairs in _passes(model, windows, needs, batch_tokens):
            found = torch.stack([method.value(pairs) for method in methods], 1).cpu().numpy()
            known = np.ones_like(found, dtype=bool)
            for column, method in enumerate(methods):
                if method.lacks == "NO_BASE_BEFORE":
                    known[:, column] = [one.offset > 0 for one in pairs.windows]
                elif method.lacks == "LENGTHS_DIFFER":
                    known[:, column] = [one.ref_bases == one.alt_bases for one in pairs.windows]
            own = pairs.windows
            require_finite(found, model.name, "scores", lambda row, own=own: own[row].name, known)
            values[numbers] = found
    return values


def _compare_tracks(
    ready: Predictor, windows: Sequence[AlleleWindows], methods: Sequence[Method]
) -> NDArray[np.float64]:
    """Compare the sums of predicted tracks over both windows: (windows, methods * tracks).

    Both begin at one base of the genome and are read up to one base of it: REF loses as many of its
    last bases as an insertion adds, ALT as many as a deletion takes. Bins are counted from the
    start of a window.
    """
    names: dict[bytes, str] = {}  # equal windows are read once
    pairs: list[list[bytes]] = []
    for one in windows:
        longer = one.alt_bases - one.ref_bases
        alleles = (one.ref[: one.stop - max(0, longer)], one.alt[: one.stop - max(0, -longer)])
        pairs.append([codes.tobytes() for codes in alleles])
        for key in pairs[-1]:
            names.setdefault(key, one.name)
    if not windows:
        return np.zeros((0, len(methods) * len(ready.classes)))
    means = ready.sequences([np.frombuffer(key, np.uint8) for key in names], [*names.values()])
    sums = {key: len(key) * mean for key, mean in zip(names, means, strict=True)}
    ref, alt = torch.from_numpy(np.array([[sums[key] for key in pair] for pair in pairs])).unbind(1)
    return torch.cat([method.value(ref, alt) for method in methods], 1).numpy()


def _passes(
    model: Loaded, windows: Sequence[AlleleWindows], needs: set[Need], batch_tokens: int
) -> Iterator[tuple[list[int], Pairs]]:
    """Give the outputs of all windows, some at a time with their numbers."""
    rest = list(range(len(windows)))
    for kind in (HyenaPrefix, MambaPrefix):
        if rest and kind.fits(model.model):
            prefix = kind(model, needs, batch_tokens, len(windows[0].ref))
            taken = [number for number in rest if prefix.takes(windows[number])]
            yield from prefix.read(windows, taken)
            rest = sorted({*rest} - {*taken})
    yield from _plain(model, windows, rest, needs, batch_tokens)


def _plain(
    model: Loaded, windows: Sequence[AlleleWindows], numbers: Sequence[int], needs: set[Need],
    batch_tokens: int,
) -> Iterator[tuple[list[int], Pairs]]:  # fmt: skip
    """Read whole windows, equal ones of a batch once; neighbors share theirs."""
    order = sorted(numbers, key=lambda n: (windows[n].stop, windows[n].ref.tobytes()))
    low = 0
    while low < len(order):
        stop, high = windows[order[low]].stop, low
        rows: dict[bytes, int] = {}
        names: list[str] = []
        while high < len(order) and windows[order[high]].stop == stop:
            one = windows[order[high]]
            if high > low and (len(rows) + 2) * stop > batch_tokens:
                break
            for codes in (one.ref, one.alt):
                if rows.setdefault(codes[:stop].tobytes(), len(names)) == len(names):
                    names.append(one.name)
            high += 1
        part = [windows[number] for number in order[low:high]]
        codes_KB = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, stop)
        given = _read(model, codes_KB, names, needs, batch_tokens)
        both = ([rows[getattr(one, x)[:stop].tobytes()] for one in part] for x in ("ref", "alt"))
        ref, alt = (Outputs(*(None if x is None else x[own] for x in given)) for own in both)
        masked = _hidden(model, part) if "masked" in needs else None
        yield order[low:high], Pairs(part, [0] * len(part), ref, alt, masked)
        low = high


def _read(
    model: Loaded, codes_KB: NDArray[np.uint8], names: list[str], needs: set[Need],
    batch_tokens: int,
) -> Outputs:  # fmt: skip
    codes = torch.from_numpy(codes_KB.copy()).to(model.device)
    ids, found = codes_to_ids(codes), Outputs()
    if "log_probs" in needs:
        logits_KB4 = predict_tokens(
            model.model, ids, "single" if model.masked else "causal",
            lambda logits, _: base_logits(logits),
            wanted_BL=codes <= T, batch_tokens=batch_tokens,
        )  # fmt: skip
        scores, known = score_letters(logits_KB4, codes), codes <= T
        if not model.masked:
            scores[:, :1], known[:, :1] = torch.nan, False
        require_finite(scores, model.name, "log-probabilities", names.__getitem__, known)
        found = Outputs(scores, logits_KB4)
    if "states" in needs:
        output: Any = model.model(input_ids=ids, output_hidden_states=True)
        if output.hidden_states is None:
            raise InputError(f"{model.name} gives no hidden states to compare")
        found = found._replace(states=output.hidden_states[-1].float())
    return found


def _hidden(model: Loaded, windows: Sequence[AlleleWindows]) -> Tensor:
    """Give the log-probabilities of both alleles, all bases hidden, (A, 2); NaN unless as long."""
    found = torch.full((len(windows), 2), torch.nan, dtype=torch.float64)
    same = [row for row, one in enumerate(windows) if one.ref_bases == one.alt_bases]
    if not same:
        return found
    codes = torch.from_numpy(np.stack([windows[row].ref[: windows[row].stop] for row in same]))
    hidden = torch.zeros(codes.shape, dtype=torch.bool)
    for at, row in zip(hidden, same, strict=True):
        at[windows[row].offset : windows[row].offset + windows[row].ref_bases] = True
    expected = predict_tokens(
        model.model, codes_to_ids(codes.to(model.device)), "together",
        lambda logits, _: base_logits(logits).log_softmax(-1), wanted_BL=hidden.to(model.device),
    ).cpu().double()  # fmt: skip
    for at, row in enumerate(same):
        one = windows[row]
        site = np.arange(one.offset, one.offset + one.ref_bases)
        for column, allele in enumerate((one.ref, one.alt)):
            found[row, column] = expected[at, site, allele[site].astype(np.int64)].sum()
    return found

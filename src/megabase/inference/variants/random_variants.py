"""Scores of random variants of a genome, kept as a calibration of the methods."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.regions import Regions
from megabase.data.sources import genome_store
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, BASES, T, decode
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import Work, map_file, split_options
from megabase.inference.parts import Provenance, require_suffix
from megabase.inference.variants.calibration import (
    CALIBRATION_FILE,
    CLASSES,
    Calibration,
    context_of,
)
from megabase.inference.variants.scorer import VariantOptions, VariantScorer
from megabase.models.auto import open_model
from megabase.models.loading import Loaded, ModelSpec
from megabase.options import CalibrationOptions

_CHUNK = 256  # records, most of three alleles: seconds of work
_COUNT = 30_000
"""Substitutions by default: twenty for each context of both strands, minutes of work."""
_LENGTHS = np.arange(1, 33)
"""Bases of random insertions and deletions, each length as frequent as its inverse."""
_LONGEST_MNV = 4  # bases of random longer substitutions at most, from two on
_PACKAGE = Path(__file__).resolve().parents[2]  # of the packaged model; nothing is written beside
_TRIES = 64  # rounds of draws before a region counts as one without bases


def calibrate_variants(
    model: ModelSpec, genome: str | Path, output: str | Path | None = None, *,
    regions: Sequence[str] = (), **options: Unpack[CalibrationOptions],
) -> Path:  # fmt: skip
    """Score random variants of a genome, and write mean, spread and quantiles (``.npz``).

    Substitutions lie at bases drawn uniformly over A, C, G and T, and all three alternatives are
    scored; without `output` the file lies in the folder of the model. InputError when there is no
    base to draw, or model, window and methods do not fit.
    """
    own, run = split_options(options, CalibrationOptions)
    draws = {"count": own.pop("count", _COUNT), "others": own.pop("others", 0),
             "seed": own.pop("seed", 0)}  # fmt: skip
    if min(draws["count"], draws["others"]) < 0 or not draws["count"] + draws["others"]:
        raise InputError(f"count and others are numbers of variants, found {draws}")
    if output is None:
        in_memory = isinstance(model, Loaded) or hasattr(model, "forward")
        folder = getattr(model, "folder", None) if in_memory else open_model(cast("str", model))[0]
        if folder is None or _PACKAGE in folder.resolve().parents:
            raise InputError("the model is not a folder of yours to keep a calibration in; "
                "name a file with -o, output=")  # fmt: skip
        output = Path(folder) / CALIBRATION_FILE
    require_suffix(output, (".npz",))
    with genome_store(genome) as store:
        kept = Regions.read(store, regions) if regions else Regions.whole(store.lengths)

        def describe(scorer: VariantScorer) -> Provenance:
            return scorer.provenance("calibrate", regions=list(regions), **draws)

        work = Work(
            _rows, partial(VariantScorer.load, model, store.path, VariantOptions(**own)),
            partial(_random_records, store.path, kept, **draws),
        )  # fmt: skip
        return map_file(work, output, describe, _merge, **run)


def _random_records(
    genome: str | Path, regions: Regions, *, count: int, others: int, seed: int
) -> Iterator[list[VcfRecord]]:
    """Draw random variants in the order of the genome, in chunks; the same ones at every call."""
    store, rng = Genome(Path(genome)), np.random.default_rng(seed)
    sites = -(-count // (len(BASES) - 1))
    kind = np.repeat(np.arange(len(CLASSES)), [sites, *[others] * (len(CLASSES) - 1)])
    contig, position = _draw_bases(store, regions, len(kind), rng)
    order = np.lexsort((kind, position, contig))
    drawn = zip(*(one[order].tolist() for one in (contig, position, kind)), strict=True)
    records = (_record(store, c, p, k, number, rng) for number, (c, p, k) in enumerate(drawn, 1))
    while chunk := list(islice(records, _CHUNK)):
        yield chunk


def _draw_bases(
    store: Genome, regions: Regions, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `count` positions that hold A, C, G or T: index of the contig, 0-based position."""
    ends = np.cumsum(regions.end - regions.start)
    found = np.empty((2, 0), dtype=np.int64)
    for _ in range(_TRIES if len(ends) else 0):
        drawn = rng.integers(0, ends[-1], count)
        row = np.searchsorted(ends, drawn, side="right")
        place = np.stack((regions.contig[row], regions.end[row] + drawn - ends[row]))
        known = np.zeros(count, dtype=bool)
        for index in np.unique(place[0]):
            own = place[0] == index
            known[own] = store.view(int(index))[place[1, own]] & np.uint8(BASE_BITS) <= T
        found = np.concatenate((found, place[:, known]), axis=1)
        if found.shape[1] >= count:
            return found[:, :count].astype(np.int64, copy=False)
    raise InputError(f"genome {store.name!r} has no base A, C, G or T in these regions to draw")


def _record(
    store: Genome, contig: int, position: int, kind: int, number: int, rng: np.random.Generator
) -> VcfRecord:
    """Make a record of a class of variants at a base."""
    view, what = store.view(contig), CLASSES[kind]
    size = int(rng.choice(_LENGTHS, p=1 / _LENGTHS / (1 / _LENGTHS).sum()))
    length = {"mnv": int(rng.integers(2, _LONGEST_MNV + 1)), "deletion": 1 + size}.get(what, 1)
    ref = decode(view[position : position + length] & np.uint8(BASE_BITS))
    alts = [base for base in BASES if base != ref]
    if what == "mnv":
        shifts = rng.integers(1, len(BASES), len(ref))
        alts = ["".join(BASES[(BASES.find(b) + s) % 4] for b, s in zip(ref, shifts, strict=True))]
    elif what != "snv":
        alts = [ref[0] if what == "deletion" else ref + "".join(rng.choice(list(BASES), size))]
    return VcfRecord.of(number, store.contigs[contig].name, position, ref, *alts)


def _rows(scorer: VariantScorer, records: list[VcfRecord]) -> pl.DataFrame:
    """Score a chunk: context, class and a column for each method."""
    rows: list[tuple[Any, ...]] = []
    for record, alleles in zip(records, scorer.score(records), strict=True):
        view = scorer.store.view(record.contig)
        for alt, score in zip(record.alts, alleles, strict=False):
            if score.reason is None or not np.isnan(score.values).all():
                rows.append((*context_of(view, record.position, record.ref, alt), *score.values))
    schema = {"context": pl.Int64, "class": pl.Int64, **dict.fromkeys(scorer.names, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
    table = pl.concat([pl.read_parquet(part) for part in parts])
    context, kind, *values = (table[name].to_numpy() for name in table.columns)
    names = table.columns[2:]
    Calibration.fit(names, np.column_stack(values), context, kind, provenance).write(target)

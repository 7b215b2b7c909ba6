"""Chromatin profiles (DeepSEA): many yes-or-no labels of a window, median AUROC by group.

Two ways in. Coordinates and labels as published: ``{train,val,test}*coords_targets.csv`` with
``Chr_No`` (0-based number), ``Start``, ``End`` and columns ``y_...``, over a genome store, lifted
over with a chain file if asked. Or peak files: the genome is cut into bins, and a bin has a label
when more than half of it is covered by that label's peaks.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase.benchmarking.config import BenchmarkConfig, ChromatinConfig
from megabase.benchmarking.suites import Suite, Task, published
from megabase.data.labeled import LabelTable, label_splits
from megabase.data.regions import Regions
from megabase.errors import InputError, MissingDependencyError
from megabase.genome import alphabet
from megabase.genome.interval import Interval
from megabase.genome.store import Genome

_INSTRUCTIONS = (
    "Give --chromatin.genome STORE and either --data with {train,val,test}_*_coords_targets.csv "
    "(Chr_No, Start, End, y_...; made from deepsea_train_bundle.v0.9 of "
    "deepsea.princeton.edu/help by the script of the HyenaDNA repository) or --chromatin.peaks "
    "'{GROUP:NAME: peaks.bed, ...}' with --chromatin.test and --chromatin.validation regions"
)
"""Shown to users whose genome or labels are missing."""
CHROMATIN_WINDOW = 1000
"""Bases of the windows in the tables of the chromatin profile (DeepSEA)."""
DEEPSEA_GROUPS = {"DHS": (0, 125), "TF": (125, 815), "HM": (815, 919)}
"""Columns of DeepSEA's 919 labels: group -> first and the one after its last."""
_PLACE = ("#contig", "#start", "#end")
"""Columns of a table of windows, 0-based half-open; the others are its labels, 0 or 1."""


def _read_coordinates(path: Path) -> pl.DataFrame:
    """Read windows from a table of coordinates, as published."""
    table = pl.read_csv(path, infer_schema_length=None)
    lacking = {"Chr_No", "Start", "End"} - set(table.columns)
    profiles = [name for name in table.columns if name.startswith("y_")]
    if lacking or not profiles:
        what = ", ".join(sorted(lacking)) or "y_... (a label)"
        raise InputError(f"{path} has no column {what}")
    contig, start, end = _PLACE
    try:
        return table.select(
            pl.format("chr{}", pl.col("Chr_No") + 1).alias(contig),
            pl.col("Start").cast(pl.Int64).alias(start),
            pl.col("End").cast(pl.Int64).alias(end),
            pl.col(profiles).cast(pl.Boolean).cast(pl.UInt8),
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: labels must be true and false, or 1 and 0 ({error})") from error


def _lift(windows: pl.DataFrame, chain: Path) -> pl.DataFrame:
    """Move windows to another assembly as published: both ends by themselves.

    Those whose ends do not map, or are not as far apart on one contig as before, are dropped.
    """
    package = MissingDependencyError.load("pyliftover", "suites", "lifting coordinates over")
    if not chain.is_file():
        raise InputError(f"there is no chain file {chain}")
    lifter: Any = package.LiftOver(str(chain))
    moved: dict[int, tuple[str, int, int]] = {}
    for row, (contig, start, end) in enumerate(windows.select(_PLACE).rows()):
        low, high = (lifter.convert_coordinate(contig, at) for at in (start, end))
        if not low or not high or low[0][0] != high[0][0]:
            continue
        if high[0][1] - low[0][1] == end - start:
            moved[row] = low[0][0], low[0][1], high[0][1]
    places = pl.DataFrame([*moved.values()], windows.select(_PLACE).schema, orient="row")
    return places.hstack(windows[[*moved]].drop(_PLACE))


def _bin_labels(
    peaks: Regions, contig: int, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Label bins (n,), 0 or 1: by the published rule, 1 when peaks cover more than half."""
    mine = peaks.contig == contig
    low, high = peaks.start[mine], peaks.end[mine]
    before = np.concatenate([[0], np.cumsum(high - low)])

    def covered(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Count covered positions below x."""
        number = np.searchsorted(low, x, side="right")
        inside = np.minimum(x, np.append(high, 0)[number - 1]) - np.append(low, 0)[number - 1]
        return np.where(number > 0, before[number - 1] + inside, 0)

    if not len(low):
        return np.zeros(len(start), dtype=np.uint8)
    return (2 * (covered(end) - covered(start)) > end - start).astype(np.uint8)


def _from_peaks(
    config: BenchmarkConfig, store: Genome
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    chosen = config.chromatin
    if not chosen.test:
        raise InputError("chromatin.test is empty; name the places of the test windows")
    split = Regions.split(
        store, include=chosen.regions, validation=chosen.validation, test=chosen.test
    )
    peaks: dict[str, Regions] = {}
    notes: list[str] = []
    for name in sorted(chosen.peaks, key=lambda name: (name.split(":")[0], name)):
        path = Path(chosen.peaks[name]).expanduser()
        peaks[name] = Regions.read(store, [path], strict=False)
        notes.append(f"{name}: {len(peaks[name]):,} peaks of {path.name}")
    found: dict[str, pl.DataFrame] = {}
    parts = {"train": split["train"], "valid": split["validation"], "test": split["test"]}
    for part, regions in parts.items():
        if not len(regions):
            continue
        windows = pl.concat([_bins(store, chosen, regions, i, peaks) for i in range(len(regions))])
        if chosen.keep_unlabeled < 1:
            some = np.asarray(windows.drop(_PLACE).to_numpy().any(axis=1))
            rng = np.random.default_rng(len(some))
            windows = windows.filter(some | (rng.random(len(some)) < chosen.keep_unlabeled))
        found[part] = windows
    notes.append(
        f"a label is 1 when more than half of the central {chosen.bin} bases are covered; a bin "
        f"every {chosen.stride} bases; windows of {chosen.length} bases lie whole in their split; "
        f"{chosen.keep_unlabeled:.0%} of the windows without a label are kept"
    )
    return found, notes


def _bins(
    store: Genome, chosen: ChromatinConfig, regions: Regions, row: int, peaks: dict[str, Regions]
) -> pl.DataFrame:
    contig, low, high = int(regions.contig[row]), int(regions.start[row]), int(regions.end[row])
    margin = (chosen.length - chosen.bin) // 2
    first = -(-(low + margin) // chosen.stride) * chosen.stride
    start = np.arange(first, high - margin - chosen.bin + 1, chosen.stride, dtype=np.int64)
    end = start + chosen.bin
    bad = np.concatenate([[0], np.cumsum((store.view(contig) & alphabet.BASE_BITS) > alphabet.T)])
    keep = 2 * (bad[end + margin] - bad[start - margin]) <= chosen.length
    start, end = start[keep], end[keep]
    names = [store.contigs[contig].name] * len(start)
    places = zip(_PLACE, (pl.Series(names, dtype=pl.String), start - margin, end + margin),
                 strict=True)  # fmt: skip
    labels = {name: _bin_labels(each, contig, start, end) for name, each in peaks.items()}
    return pl.DataFrame({**dict(places), **labels})


def _names(config: BenchmarkConfig) -> list[str]:
    if config.chromatin.genome is None or not (config.data or config.chromatin.peaks):
        raise InputError(f"chromatin needs a genome and labels. {_INSTRUCTIONS}")
    return ["chromatin-profile" if config.data else "peaks"]


def _load(config: BenchmarkConfig, name: str) -> Task:
    """Read or make the windows and their labels."""
    chosen = config.chromatin
    if chosen.length % 2 or chosen.length < chosen.bin:
        need = f"it must be even and at least {chosen.bin}"
        raise InputError(f"chromatin.length is {chosen.length}; {need}")
    store = Genome(str(chosen.genome))
    windows, notes = _from_tables(config) if config.data else _from_peaks(config, store)
    labels = tuple(windows["train"].drop(_PLACE).columns)
    texts: dict[str, LabelTable] = {}
    for part, mine in windows.items():
        if chosen.max_windows is not None and len(mine) > chosen.max_windows:
            rows = np.random.default_rng(0).permutation(len(mine))[: chosen.max_windows]
            notes.append(f"{chosen.max_windows:,} of {len(mine):,} {part} windows")
            mine = mine[np.sort(rows)]
        places = [Interval(*place) for place in mine.select(_PLACE).rows()]
        texts[part] = LabelTable(
            f"{part} windows of {store.path.name}",
            [alphabet.decode(store.fetch(place, pad="n")) for place in places],
            [tuple(map(str, row)) for row in mine.drop(_PLACE).rows()],
            labels,
            [f"{part} window {p.contig}:{p.start + 1:,}-{p.end:,}" for p in places],
        )
        rate = mine.drop(_PLACE).to_numpy().mean(axis=0)
        notes.append(f"{part}: {rate.min():.4f} to {rate.max():.4f} of the windows have a label")
    groups = _groups(labels)
    figures = published("chromatin", "chromatin-profile") if groups == DEEPSEA_GROUPS else ()
    return Task(
        "chromatin", name, label_splits(texts, "multi_label"), "auroc", ("auprc",), figures,
        official=bool(config.data) and chosen.max_windows is None, notes=tuple(notes),
        groups=groups, length=chosen.length,
    )  # fmt: skip


def _from_tables(config: BenchmarkConfig) -> tuple[dict[str, pl.DataFrame], list[str]]:
    chosen, notes = config.chromatin, []
    found: dict[str, pl.DataFrame] = {}
    tables: dict[str, Path] = {}
    for path in sorted(Path(config.data or "").expanduser().glob("*.csv")):
        for part, words in (("train", ("train",)), ("valid", ("val", "dev")), ("test", ("test",))):
            if path.name.lower().startswith(words):
                tables[part] = path
    if "train" not in tables or "test" not in tables:
        raise InputError(f"{config.data} lacks a train or test table. {_INSTRUCTIONS}")
    for part, path in tables.items():
        windows = _read_coordinates(path)
        if found and windows.columns != next(iter(found.values())).columns:
            raise InputError(f"{path} has other label columns than {tables['train']}")
        if chosen.chain is not None:
            before = len(windows)
            windows = _lift(windows, Path(chosen.chain).expanduser())
            notes.append(f"{part}: {before - len(windows):,} of {before:,} windows were not "
                         "lifted over")  # fmt: skip
        # int(x / 2) as in the published loader: towards zero when the window shrinks.
        margin = int((chosen.length - CHROMATIN_WINDOW) / 2)
        _, start, end = _PLACE
        found[part] = windows.with_columns(pl.col(start) - margin, pl.col(end) + margin)
    return found, notes


def _groups(labels: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Give the groups of the labels: DeepSEA's for 919 of them, else by the word before a colon."""
    if len(labels) == DEEPSEA_GROUPS["HM"][1]:
        return dict(DEEPSEA_GROUPS)
    owners = [name.split(":")[0] if ":" in name else "all" for name in labels]
    last = {group: number + 1 for number, group in enumerate(owners)}
    return {group: (owners.index(group), end) for group, end in last.items()}


SUITE = Suite(_names, _load)  # what the runner calls

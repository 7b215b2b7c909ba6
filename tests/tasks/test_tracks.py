"""Numbers learned from tracks and count tables: made-up signals, read back by other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from megabase.data.vocabulary import codes_to_ids
from megabase.errors import MegabaseError
from megabase.genome.alphabet import decode
from megabase.genome.store import Genome
from megabase.inference.prediction import TrackOptions, predict, predict_track
from megabase.inference.variants.scorer import score_variants
from megabase.models.auto import load_model
from megabase.settings import DeviceConfig, HeadConfig, OptimConfig
from megabase.tasks.config import FinetuneConfig, GenomeConfig, TableConfig, to_yaml
from megabase.tasks.finetune import finetune
from megabase.tasks.labeled_data import read_splits

pybigtools = pytest.importorskip("pybigtools")
pyBigWig = pytest.importorskip("pyBigWig")
SIZES = {"chr1": 20_480, "chr2": 4_096, "chr3": 4_096}
LENGTH = 256


def write_bigwig(path: Path, values: dict[str, np.ndarray]) -> None:
    file = pyBigWig.open(str(path), "w")
    file.addHeader(list(SIZES.items()))
    for name, numbers in values.items():
        file.addEntries(name, 0, values=numbers, span=1, step=1)
    file.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A genome whose GC content drifts, and two signals of the GC in the 16 bases up to a base."""
    folder = tmp_path_factory.mktemp("tracks")
    draws, fasta = np.random.default_rng(0), ""
    tracks: dict[str, dict[str, np.ndarray]] = {"gc": {}, "at": {}}
    for name, size in SIZES.items():
        likely = np.repeat(draws.uniform(0.2, 0.8, size // 64), 64)
        strong = draws.random(size) < likely
        letters = np.where(strong, draws.choice(list("GC"), size), draws.choice(list("AT"), size))
        fasta += f">{name}\n{''.join(letters)}\n"
        share = np.convolve(strong, np.full(16, 1 / 16))[:size]
        tracks["gc"][name] = 2 + 10 * share
        tracks["at"][name] = np.exp(4 * (1 - share))
    (folder / "g.fa").write_text(fasta)
    Genome.build(folder / "g.fa", folder / "g.mb")
    for name, values in tracks.items():
        write_bigwig(folder / f"{name}.bw", values)
    return folder


def settings(
    folder: Path, output: str, genome: dict[str, Any] | None = None, **options: Any
) -> Any:
    tracks = [f"{name}={folder / name}.bw" for name in ("gc", "at")]
    given: dict[str, Any] = {"tracks": tracks, "length": LENGTH, "test": ["chr3"]}
    common: dict[str, Any] = {
        "train": str(folder / "g.mb"), "genome": GenomeConfig(**{**given, **(genome or {})}),
        "family": "mamba", "overrides": {"d_model": 16, "n_layer": 1}, "epochs": 14,
        "table": TableConfig(validation_fraction=0), "global_batch": 8,
    }  # fmt: skip
    return FinetuneConfig(
        output=str(folder / output), optim=OptimConfig(lr=1e-2),
        devices=DeviceConfig(accelerator="cpu", devices=1), **{**common, **options},
    )  # fmt: skip


def learn(folder: Path, loss: str, size: int) -> Path:
    output = folder / f"{loss}-{size}"
    if not (output / "result.json").is_file():
        head: Any = {"loss": loss}
        epochs = 14 if size > 1 else 30
        config = settings(
            folder, output.name, {"bin": size}, head=HeadConfig(**head), epochs=epochs
        )
        finetune(config)
    return output


def truth(folder: Path, track: str, contig: str, size: int) -> np.ndarray:
    with pyBigWig.open(str(folder / f"{track}.bw")) as file:
        return np.array(file.values(contig, 0, SIZES[contig])).reshape(-1, size).mean(1)


@pytest.mark.parametrize(
    ("loss", "size"),
    [
        ("poisson", 16),
        pytest.param("mse", 1, marks=pytest.mark.slow),
        pytest.param("mse", 16, marks=pytest.mark.slow),
        pytest.param("poisson", 1, marks=pytest.mark.slow),
    ],
)
def test_signals_of_composition_are_learned(folder: Path, loss: str, size: int) -> None:
    run = learn(folder, loss, size)
    result = json.loads((run / "result.json").read_text())
    paths = predict_track(
        str(run), folder / "g.mb", folder / f"{loss}{size}.bw", regions=["chr3"], workers=1,
        options=TrackOptions(window=LENGTH, overlap=0),
    )  # fmt: skip
    assert [path.name for path in paths] == [f"{loss}{size}.{name}.bw" for name in ("gc", "at")]
    for track, path in zip(("gc", "at"), paths, strict=True):
        with pyBigWig.open(str(path)) as file:
            bases = np.array(file.values("chr3", 0, SIZES["chr3"]))
        said, true = bases.reshape(-1, size).mean(1), truth(folder, track, "chr3", size)
        pearson = np.corrcoef(said, true)[0, 1]
        assert pearson >= 0.95
        assert result["test"][f"pearson {track}"] == pytest.approx(pearson, abs=1e-5)
        # In the unit of the track: a prediction of the mean has a relative error of 1.
        assert np.square(said - true).mean() / true.var() < 0.15


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    return learn(folder, "poisson", 16)


def test_predictions_are_those_of_the_model_base_for_base(folder: Path, learned: Path) -> None:
    (folder / "some.bed").write_text("chr2\t100\t133\nchr3\t4000\t4096\n")
    paths = predict_track(
        str(learned), folder / "g.mb", folder / "some.bw", workers=1, overwrite=True,
        regions=[str(folder / "some.bed")], options=TrackOptions(window=LENGTH, overlap=0),
    )  # fmt: skip
    model: Any = load_model(learned)
    units, store = model.config.units, Genome(folder / "g.mb")
    for contig, start, end in (("chr2", 100, 133), ("chr3", 4000, 4096)):
        codes = torch.from_numpy(np.array(store.view(contig)))
        with torch.no_grad():
            rows = [codes_to_ids(part[None]) for part in codes.split(LENGTH)]
            raw = torch.cat([model(input_ids=row).logits[0] for row in rows]).double()
        for track, path in enumerate(paths):
            expected = np.full(end - start, np.nan)
            for base in range(start, end):
                mean = raw[base // 16 * 16 : base // 16 * 16 + 16, track].mean()
                expected[base - start] = units["center"][track] * float(mean.exp())
            with pyBigWig.open(str(path)) as file:
                np.testing.assert_allclose(file.values(contig, start, end), expected, rtol=1e-5)
                outside = np.array(file.values(contig, 0, SIZES[contig]))
            assert np.flatnonzero(~np.isnan(outside)).tolist() == list(range(start, end))
            found = pybigtools.open(str(path)).values(contig, start, end, fillna=None)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    for more in ({"calls": folder / "x.bed"}, {"shard": "1/2"}):
        with pytest.raises(MegabaseError, match=r"of one track; name it: gc, at"):
            predict_track(str(learned), folder / "g.mb", folder / "x.bw", **more)  # type: ignore[arg-type]
    (alone,) = predict_track(
        str(learned), folder / "g.mb", folder / "one.bw", workers=1, overwrite=True,
        regions=["chr3"], options=TrackOptions(output="at", window=LENGTH, overlap=0),
    )  # fmt: skip
    with pyBigWig.open(str(alone)) as file:
        row = predict(str(learned), [store.view("chr3")[:LENGTH]]).values[0, 1]
        assert row == pytest.approx(np.mean(file.values("chr3", 0, LENGTH)), rel=1e-5)


def test_a_variant_changes_the_track_as_the_signal_would_change(
    folder: Path, learned: Path
) -> None:
    bases = decode(Genome(folder / "g.mb").fetch("chr3:1-4096"))
    weak = [position for position in range(600, 3600, 37) if bases[position] in "AT"]
    variants = [f"chr3:{position + 1}:{bases[position]}>G" for position in weak]
    found = score_variants(learned, variants, folder / "g.mb", window=LENGTH).table
    # A base more of G or C is in 16 windows of 16 bases: 16 times 10 / 16 more of the signal.
    assert found["track_delta_gc"].to_numpy().mean() == pytest.approx(10, rel=0.25)
    assert (found["track_lfc_gc"].to_numpy() > 0).all()
    assert (found["track_delta_at"].to_numpy() < 0).all()


def test_metrics_are_also_by_chromosome(folder: Path) -> None:
    config = settings(
        folder, "parts", {"bin": 64, "test": ["chr2", "chr3:1-2048"], "statistic": "sum"},
        head=HeadConfig(scale="log1p", reverse_complement=0.5, strand_average=True), epochs=1,
    )  # fmt: skip
    run = finetune(config)
    assert run is not None
    paths = predict_track(
        config.output, folder / "g.mb", folder / "parts.bw", workers=1,
        options=TrackOptions(window=LENGTH, overlap=0),
    )  # fmt: skip
    for track, path in zip(("gc", "at"), paths, strict=True):
        both: list[tuple[np.ndarray, np.ndarray]] = []
        for contig, end in (("chr2", SIZES["chr2"]), ("chr3", 2048)):
            with pyBigWig.open(str(path)) as file:
                said = np.array(file.values(contig, 0, end)).reshape(-1, 64).sum(1)
            true = 64 * truth(folder, track, contig, 64)[: end // 64]
            both.append((said, true))
            ranks = [pl.Series(x.astype(np.float32)).rank().to_numpy() for x in (said, true)]
            for name, pair in (("pearson", (said, true)), ("spearman", ranks)):
                value = np.corrcoef(*pair)[0, 1]
                assert run.test[f"{name} {track} {contig}"] == pytest.approx(value, abs=2e-3)
        overall = np.corrcoef(*map(np.concatenate, zip(*both, strict=True)))[0, 1]
        assert run.test[f"pearson {track}"] == pytest.approx(overall, abs=1e-3)


def test_counts_of_a_table(folder: Path) -> None:
    draws = np.random.default_rng(0)
    share = draws.uniform(0.1, 0.9, 400)
    rows = ["".join(np.where(draws.random(40) < x, "G", "A")) for x in share]
    reads = draws.poisson([row.count("G") * 20 for row in rows])
    table = pl.DataFrame({"sequence": rows, "reads": reads, "constant": [3.5] * 400})
    config = settings(
        folder, "table", {"tracks": [], "test": [], "length": None}, epochs=6,
        train=str(folder / "train.csv"), test=str(folder / "test.csv"),
        table=TableConfig(label=["reads", "constant"], validation_fraction=0),
        head=HeadConfig(loss="poisson"),
    )  # fmt: skip
    for name, part in (("train", table[:300]), ("test", table[300:])):
        part.write_csv(folder / f"{name}.csv")
        part.write_csv(folder / f"{name}.tsv", separator="\t")
        part.write_parquet(folder / f"{name}.parquet")
    splits = read_splits(config)
    for ending in ("tsv", "parquet"):
        other = replace(config, train=str(folder / f"train.{ending}"), test=None)
        np.testing.assert_array_equal(read_splits(other)["train"].labels, splits["train"].labels)
    run = finetune(config)
    assert run is not None
    said = predict(run.run, rows[300:])
    assert said.classes == ("reads", "constant")
    pearson = np.corrcoef(said.values[:, 0], reads[300:])[0, 1]
    assert pearson > 0.95
    assert run.test["pearson reads"] == pytest.approx(pearson, abs=1e-5)
    assert said.values[:, 0].mean() == pytest.approx(reads[300:].mean(), rel=0.2)
    np.testing.assert_allclose(said.values[:, 1], 3.5, rtol=0.2)
    # The constant column has no correlation, so the mean over columns is that of the reads.
    assert run.test["pearson"] == pytest.approx(pearson, abs=1e-5)


@pytest.mark.parametrize(
    ("genome", "options", "message"),
    [
        ({"bin": 16, "length": 100}, {}, "genome.length is 100; bins of 16 bases need a multiple"),
        ({"tracks": [], "bin": 4, "length": 64}, {}, "only genome.tracks are measured in bins"),
        ({"features": ["x.bed"]}, {}, "genome.tracks and genome.features are both given"),
        ({}, {"head": HeadConfig(crop=0.5)}, "take no table.truncate, head.crop"),
        ({}, {"head": HeadConfig(label_smoothing=0.1)}, "label_smoothing are not for tracks"),
        ({}, {"table": TableConfig(kind="classes")}, "gives tracks"),
        ({}, {"metrics": ["auroc"]}, "auroc is not a metric of tracks"),
        ({}, {"family": "cnn", "overrides": {}}, "no model for labels of nucleotides"),
    ],
)
def test_refusals(folder: Path, genome: Any, options: Any, message: str) -> None:
    with pytest.raises(MegabaseError, match=message):
        finetune(settings(folder, "refused", genome, **options))
    assert not (folder / "refused").exists()


def test_a_recipe_of_a_run_names_its_tracks_by_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    config = settings(folder, "recipe", {"tracks": ["gc=gc.bw", "x=none.bw"]})
    kept = yaml.safe_load(to_yaml(config))["genome"]["tracks"]
    assert kept == [f"gc={folder / 'gc.bw'}", "x=none.bw"]


@pytest.mark.parametrize(("option", "value"), [("loss", "poisson"), ("scale", "log1p")])
def test_counts_below_0_are_refused(folder: Path, option: str, value: Any) -> None:
    draws = np.random.default_rng(1)
    write_bigwig(
        folder / "low.bw", {name: draws.normal(9, 1, size) for name, size in SIZES.items()}
    )
    config = settings(folder, "low", {"tracks": [f"low={folder / 'low.bw'}"]})
    values = {name: np.ones(size) for name, size in SIZES.items()}
    values["chr1"][700] = -2
    write_bigwig(folder / "low.bw", values)
    head: Any = {option: value}
    config = replace(config, head=HeadConfig(**head))
    with pytest.raises(MegabaseError, match=r"chr1:513-768: low is -2; head\.loss poisson and"):
        finetune(config)
    (folder / "low.csv").write_text("sequence,label\nACGT,1.5\nAAAA,-0.5\n")
    config = replace(config, train=str(folder / "low.csv"), genome=GenomeConfig())
    with pytest.raises(MegabaseError, match=r"low\.csv, row 2: label is -0\.5; head\.loss poisson"):
        finetune(config)
    (folder / "named.csv").write_text("sequence,label\nACGT,x\nAAAA,y\n")
    config = replace(config, train=str(folder / "named.csv"), table=TableConfig(kind="classes"))
    with pytest.raises(MegabaseError, match="is for numbers, but the labels are classes"):
        finetune(config)


def test_a_run_that_begins_from_one_of_tracks_forgets_their_units(
    folder: Path, learned: Path
) -> None:
    (folder / "names.csv").write_text("sequence,label\n" + "ACGT,x\nAAAA,y\n" * 8)
    config = settings(
        folder, "after", {"tracks": [], "test": [], "length": None}, epochs=1,
        train=str(folder / "names.csv"), family=None, overrides={}, model=str(learned),
    )  # fmt: skip
    assert finetune(config) is not None
    assert "units" not in json.loads((folder / "after" / "last" / "config.json").read_text())
    assert predict(str(folder / "after"), ["ACGT"]).values.sum() == pytest.approx(1)

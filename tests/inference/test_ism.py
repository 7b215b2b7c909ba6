"""ISM: each substitution is the variant of the same name; matrices, tracks, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pybigtools
import pyBigWig
import pytest
import torch
from drawn import pictures

from megabase.cli.main import main
from megabase.genome.store import Genome
from megabase.inference.ism import Mutagenesis, ism
from megabase.inference.variants.scorer import score_variants
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "toy.fa"
    bases = "".join(np.random.default_rng(1).choice(list("ACGTacgt"), 300))
    path.write_text(f">chr1\n{bases[:55]}N{bases[56:]}\n>chr2\nACGT\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    config = HyenaDNAConfig(d_model=16, n_layer=2, filter_order=8, max_seq_len=130)
    folder = tmp_path_factory.mktemp("model")
    HyenaDNAForCausalLM(config).save_pretrained(folder)
    return folder


def test_each_substitution_is_the_variant_of_that_name(fasta: Path, model: Path) -> None:
    found = ism(str(model), "chr1:51-60", fasta, window=64, methods=["llr_window", "l2"])
    text = fasta.read_text().split("\n")[1].upper()
    assert found.ref == text[50:60]
    assert np.isnan(found.scores["l2"][5]).all()
    names, places = [], []
    for i, ref in enumerate(found.ref):
        for j, alt in enumerate("ACGT"):
            if ref == alt:
                assert found.scores["l2"][i, j] == 0
            elif ref != "N":
                names.append(f"chr1:{51 + i}:{ref}>{alt}")
                places.append((i, j))
    with_variants = score_variants(
        str(model), names, fasta, window=64, methods=["llr_window", "l2"]
    ).table
    for method in ("llr_window", "l2"):
        values = [found.scores[method][place] for place in places]
        np.testing.assert_allclose(values, with_variants[method], atol=1e-5)
    loss = -found.scores["llr_window"][0].sum() / 3
    assert found.importance("llr_window")[0] == pytest.approx(loss)


def test_matrix_track_and_picture_are_written(fasta: Path, model: Path, tmp_path: Path) -> None:
    command = ["ism", str(model), "chr1:101-140", str(fasta),
               "--window", "64", "--workers", "1"]  # fmt: skip
    tracks, picture = tmp_path / "track", tmp_path / "plot.png"
    with pictures() as seen:
        assert main([*command, "-o", str(tmp_path / "out.parquet"), "--bigwig", str(tracks),
                     "--plot", str(picture)]) == 0  # fmt: skip
    seen[0].check(marks=40, across=0.95)
    assert seen[0].panels[0].axes.get_xlim() == (100.5, 140.5)
    assert main([*command, "-o", str(tmp_path / "out.npz")]) == 0
    one, two = (Mutagenesis.read(tmp_path / name) for name in ("out.parquet", "out.npz"))
    assert (one.ref, one.interval) == (two.ref, two.interval)
    for name, matrix in one.scores.items():
        np.testing.assert_array_equal(matrix, two.scores[name])
    assert (
        '"region":"chr1:101-140"' in pl.read_parquet_metadata(tmp_path / "out.parquet")["megabase"]
    )
    assert picture.read_bytes()[:4] == b"\x89PNG"
    path = str(tmp_path / "track.llr_window.bw")
    with pyBigWig.open(path) as file:
        assert file.chroms()["chr1"] == 300
        np.testing.assert_allclose(
            file.values("chr1", 100, 140), one.importance("llr_window"), rtol=1e-6
        )
        assert np.isnan(file.values("chr1", 99, 100)[0])
    entries = list(pybigtools.open(path).records("chr1"))
    assert entries[0][0] == 100
    assert entries[0][2] == pytest.approx(one.importance("llr_window")[0], rel=1e-6)


@pytest.mark.parametrize(
    ("region", "options", "message"),
    [
        ("chr1:291-310", [], "reaches past the end"),
        ("chr7:1-10", [], "no contig 'chr7'"),
        ("chr1:20-10", [], "ends before it starts"),
        ("chr1:1-10", ["--window", "9000"], "longest input is"),
        ("chr1:1-10", ["--plot", "picture.txt"], "a heat map is drawn as"),
        ("chr1:1-10", ["--methods", "masked"], "predicts hidden bases"),
    ],
)
def test_bad_input_is_one_line(
    fasta: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    region: str, options: list[str], message: str,
) -> None:  # fmt: skip
    command = ["ism", str(model), region, str(fasta), *options]
    assert main([*command, "-o", str(tmp_path / "out.parquet")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_store_is_taken_as_it_is(fasta: Path, model: Path, tmp_path: Path) -> None:
    store = Genome.build(fasta, tmp_path / "g.mb")
    found = ism(str(model), "chr1:1-3", store, window=32, strands="forward")
    assert found.provenance is not None
    assert found.provenance.genome_sha256 == store.checksum
    # The first base has nothing before it: its own probability is unknown, what follows is not.
    assert np.isnan(found.scores["llr_site"][0]).sum() == 3
    assert not np.isnan(found.scores["llr_window"][0]).any()

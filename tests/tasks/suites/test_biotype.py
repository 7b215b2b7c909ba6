from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.benchmarking.config import BenchmarkConfig, BiotypeConfig, ModelEntry
from megabase.benchmarking.run import run_benchmark
from megabase.benchmarking.suites import biotype
from megabase.benchmarking.table import Tables
from megabase.errors import InputError
from megabase.report.benchmark_page import write_benchmark_page

pytest.importorskip("xgboost")


def genes(path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {"rich": [0.1, 0.4, 0.4, 0.1], "poor": [0.4, 0.1, 0.1, 0.4], "even": [0.25] * 4}
    records = []
    for i in range(61):
        name = ["rich", "poor", "even"][i % 3] if i < 60 else "rare"
        text = "".join(rng.choice(list("ACGT"), 40 + 10 * (i % 5), p=weights.get(name)))
        records.append(f">T{i} cdna chromosome:1 gene_biotype:{name} gene:G{i}\n{text}\n")
    path.write_text("".join(records))
    return path


def config(tmp_path: Path, **options: Any) -> BenchmarkConfig:
    tiny = {"overrides": {"d_model": 16, "n_layer": 1, "max_seq_len": 32}}
    given: dict[str, Any] = {
        "models": [ModelEntry(name="tiny", start="hyenadna", settings=tiny), "kmer:2"],
        "biotype": BiotypeConfig(top=3, trees=20),
        "seeds": [1, 2],
    }
    return BenchmarkConfig(
        suite="biotype", data=str(genes(tmp_path / "cdna.fa")), output=str(tmp_path / "out"),
        bootstrap=10, **{**given, **options},
    )  # fmt: skip


def test_trees_on_frozen_embeddings(tmp_path: Path) -> None:
    records = run_benchmark(config(tmp_path))
    assert [(r["model"], r["seed"]) for r in records] == [
        ("tiny", 1), ("tiny", 2), ("kmer:2", 1), ("kmer:2", 2),
    ]  # fmt: skip
    assert records[0]["classes"] == ["even", "poor", "rich"]
    assert records[0]["rows"] == {"train": 48, "test": 12}
    assert all(r["test"]["f1_weighted"] > 0.5 for r in records[2:])
    output = tmp_path / "out"
    tables = Tables(output, order=["tiny"], resamples=10)
    tables.write(output)
    assert "HyenaDNA 0.720" in (output / "results.md").read_text()
    assert "tiny" in write_benchmark_page(output, tables.lines, tables.of).read_text()
    again = run_benchmark(config(tmp_path, resume=True))
    assert again == records


def test_pieces_of_a_long_gene_are_averaged(tmp_path: Path) -> None:
    rows = biotype._read_genes(config(tmp_path))
    model = config(tmp_path).entries[0].open(("base",))
    whole = biotype._pieces(model, rows, BiotypeConfig(max_length=20))
    from megabase.inference.embedding import Embedder

    codes = rows.sequence(4)
    parts = [codes[i : i + 20] for i in range(0, len(codes), 20)]
    vectors, _ = Embedder(model).pooled(parts)
    np.testing.assert_allclose(whole[4], vectors.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 biotypes"):
        biotype._read_genes(config(tmp_path, biotype=BiotypeConfig(top=1)))
    with pytest.raises(InputError, match="holdout only"):
        biotype.SUITE.names(config(tmp_path, protocol="kfold"))


def test_transcripts_that_overlap_stay_on_one_side(tmp_path: Path) -> None:
    # Three transcripts of every gene: trees that met one of them know the other two.
    rng = np.random.default_rng(1)
    records = []
    for i in range(20):
        text = "".join(rng.choice(list("ACGT"), 90))
        for j in range(3):
            piece = text[10 * j : 10 * j + 70]
            records.append(f">T{i}.{j} gene_biotype:{'ab'[i % 2]}\n{piece}\n")
    (tmp_path / "iso.fa").write_text("".join(records))
    asked = BenchmarkConfig(
        suite="biotype", data=str(tmp_path / "iso.fa"), output=str(tmp_path / "out"),
        models="kmer:5", seeds=[1], bootstrap=0, biotype=BiotypeConfig(trees=20),
    )  # fmt: skip
    (easy,) = run_benchmark(asked)
    (fair,) = run_benchmark(replace(asked, together=0.3, output=str(tmp_path / "fair")))
    assert easy["test"]["f1_weighted"] > 0.9 > fair["test"]["f1_weighted"]
    assert fair["rows"] == {"train": 48, "test": 12}
    assert any("directly or through others" in note for note in fair["notes"])

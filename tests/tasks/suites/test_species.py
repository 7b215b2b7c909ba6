from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry, SpeciesConfig
from megabase.benchmarking.run import _finetune_settings, run_benchmark
from megabase.benchmarking.suites import species
from megabase.benchmarking.table import Tables
from megabase.errors import InputError, MegabaseError
from megabase.genome import alphabet
from megabase.report.benchmark_page import write_benchmark_page

RNG = np.random.default_rng(0)


def letters(n: int) -> str:
    return "".join(RNG.choice(list("ACGT"), n))


def config(**options: Any) -> BenchmarkConfig:
    chosen = {"train_bases": 4000.0, "eval_samples": 8, "lengths": [64]}
    given = SpeciesConfig(**{**chosen, **options.pop("species", {})})
    return BenchmarkConfig(suite="species", output="out", species=given, **options)


def fasta(path: Path, records: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    return path


def test_segments_come_from_their_own_end(tmp_path: Path) -> None:
    text = {"a": letters(3000), "b": letters(2000)}
    path = fasta(
        tmp_path / "all.fa",
        {"x1 Drosophila alpha chromosome 4": text["a"], "x2 Drosophila beta": text["b"]},
    )
    asked = config(data=str(path), species={"split": "segment"})
    assert species.SUITE.names(asked) == ["species-64"]
    task = species.SUITE.load(asked, "species-64")
    assert task.splits["train"].classes == ("Drosophila alpha", "Drosophila beta")
    assert {n: len(s) for n, s in task.splits.items()} == {"train": 62, "valid": 8, "test": 8}
    bounds = {"train": (0.0, 0.7), "valid": (0.7, 0.8), "test": (0.8, 1.0)}
    for part, rows in task.splits.items():
        for i in range(len(rows)):
            whole = text["ab"[int(rows.labels[i])]]
            place = whole.index(alphabet.decode(rows.sequence(i)))
            low, high = (round(share * len(whole)) for share in bounds[part])
            assert low <= place <= place + 64 <= high
    again = species.SUITE.load(asked, "species-64")
    assert np.array_equal(again.splits["test"].codes, task.splits["test"].codes)


def test_orthologous_blocks_share_their_split(tmp_path: Path) -> None:
    for name in ("human", "chimp"):
        fasta(tmp_path / f"{name}.fa", {f"{name}.{i} block={i}": letters(90) for i in range(60)})
    genomes = species._read_genomes(config(data=str(tmp_path)))
    parts = species._split_records(genomes, SpeciesConfig(split="block"))
    sizes = {name: [len(parts[name][p]) for p in parts[name]] for name in parts}
    assert sizes["human"] == sizes["chimp"]
    assert sum(sizes["human"]) == 60
    task = species.SUITE.load(
        config(data=str(tmp_path), species={"split": "block", "pool_records": True,
                                            "lengths": [200]}), "species-200",
    )  # fmt: skip
    assert all("N" in alphabet.decode(task.splits["test"].sequence(i)) for i in range(8))
    with pytest.raises(InputError, match="no segment of 200 bases fits; the longest part has 90"):
        species.SUITE.load(
            config(data=str(tmp_path), species={"split": "block", "lengths": [200]}), "species-200"
        )


def test_published_chromosomes(tmp_path: Path) -> None:
    for name in ("human", "mouse"):
        folder = tmp_path / name
        folder.mkdir()
        for chromosome in ("chr1", "chr2", "chr5", "chrX"):
            fasta(folder / f"{chromosome}.fa", {f"NC_{chromosome}": letters(300)})
    genomes = species._read_genomes(config(data=str(tmp_path)))
    parts = species._split_records(genomes, SpeciesConfig())
    assert {p: len(x) for p, x in parts["mouse"].items()} == {"train": 2, "valid": 1, "test": 1}
    (tmp_path / "mouse" / "chr5.fa").unlink()
    with pytest.raises(InputError, match="mouse has no record for test"):
        species._split_records(species._read_genomes(config(data=str(tmp_path))), SpeciesConfig())


def test_warm_up_becomes_stages(tmp_path: Path) -> None:
    path = fasta(tmp_path / "all.fa", {"a": letters(3000), "b": letters(3000)})
    asked = config(data=str(path), species={"split": "segment", "lengths": [256]})
    entry = ModelEntry(name="w", start="hyenadna", settings={"warmup": [64, 128, 512], "epochs": 8})
    task = species.SUITE.load(asked, "species-256")
    run = _finetune_settings(asked, task, entry, {})
    assert [(s.length, s.epochs) for s in run.stages] == [(64, 2.0), (128, 2.0), (256, 4.0)]


def test_longer_lengths_go_on_from_shorter_ones(tmp_path: Path) -> None:
    rich = {"a": [0.4, 0.1, 0.1, 0.4], "b": [0.1, 0.4, 0.4, 0.1]}
    path = fasta(
        tmp_path / "all.fa",
        {name: "".join(RNG.choice(list("ACGT"), 3000, p=p)) for name, p in rich.items()},
    )
    shape = {"d_model": 8, "n_layer": 1, "filter_order": 8, "max_seq_len": 130}
    settings = {
        "overrides": shape, "epochs": 1, "optim.lr": 1e-2,
        "devices": {"accelerator": "cpu", "devices": 1},
    }  # fmt: skip
    entry = ModelEntry(name="longer", start="hyenadna", settings=settings, carry=True)
    lengths = {"split": "segment", "lengths": [32, 128]}
    asked = config(data=str(path), models=[entry], seeds=[1, 2], bootstrap=0, species=lengths)
    asked = replace(asked, output=str(tmp_path / "sweep"))
    first, other, longer, _ = run_benchmark(asked)
    assert [r["task"] for r in (first, other, longer)] == [
        "species-32",
        "species-32",
        "species-128",
    ]
    assert first["settings"]["model"] is None
    assert longer["settings"]["model"] == f"species-32 {first['folder']}"
    assert "longer continues its run of species-32" in longer["notes"]
    pytest.importorskip("matplotlib")
    tables = Tables(tmp_path / "sweep", order=["longer"], resamples=0)
    tables.write(tmp_path / "sweep")
    write_benchmark_page(tmp_path / "sweep", tables.lines, tables.of)
    assert "bases of a sequence" in (tmp_path / "sweep" / "lengths.svg").read_text()
    # With no further step the weights below the head are those of the shorter run.
    frozen = replace(entry, settings={**settings, "head.freeze": True})
    folder = tmp_path / "frozen"
    run_benchmark(replace(asked, output=str(folder), models=[frozen], seeds=[1]))
    short, long = (
        load_file(next(folder.glob(f"runs/species.species-{n}/*/best/model.safetensors")))
        for n in (32, 128)
    )
    below = [name for name in short if not name.startswith("score")]
    assert below
    assert all(np.array_equal(short[name], long[name]) for name in below)
    # What is finished is found again, wherever the folder lies.
    (tmp_path / "sweep").rename(tmp_path / "moved")
    again = run_benchmark(replace(asked, output=str(tmp_path / "moved"), resume=True))
    assert again[2] == longer
    with pytest.raises(MegabaseError, match="tune and carry"):
        replace(asked, models=[replace(entry, tune={"epochs": [1, 2]})])


def test_too_few_species(tmp_path: Path) -> None:
    path = fasta(tmp_path / "one.fa", {"a": letters(100)})
    with pytest.raises(InputError, match="found 1 species"):
        species._read_genomes(config(data=str(path)))
    with pytest.raises(InputError, match="NCBI"):
        species._read_genomes(config())

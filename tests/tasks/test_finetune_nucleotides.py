"""A class for every nucleotide, from a table and from a genome with its features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from megabase.errors import MegabaseError
from megabase.genome.store import Genome
from megabase.models.auto import load_model
from megabase.settings import DeviceConfig, HeadConfig, OptimConfig
from megabase.tasks.config import FinetuneConfig, GenomeConfig, TableConfig
from megabase.tasks.finetune import finetune
from megabase.tasks.labeled_data import read_splits

TINY: dict[str, Any] = {"d_model": 16, "n_layer": 1, "filter_order": 8, "embed_dropout": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "hyenadna": TINY,
    "gpt": {"d_model": 16, "n_layer": 1, "num_heads": 2},
    "mamba": {"d_model": 16, "n_layer": 1},
    "caduceus": {"d_model": 16, "n_layer": 1, "rcps": True},
}


def settings(output: Path, train: Path, **options: Any) -> FinetuneConfig:
    given: dict[str, Any] = {"family": "hyenadna", "overrides": TINY, "epochs": 6}
    return FinetuneConfig(
        train=str(train),
        output=str(output),
        **{"global_batch": 8, **given, **options},
        optim=OptimConfig(lr=1e-2, warmup_fraction=0.0),
        devices=DeviceConfig(accelerator="cpu", devices=1),
    )


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two contigs; stretches rich in A and T are features, on either strand, of both kinds."""
    folder = tmp_path_factory.mktemp("genome")
    rng = np.random.default_rng(0)
    fasta, rows = [], []
    for name in ("a", "b"):
        letters = []
        for i in range(40):
            inside = bool(i % 2)
            weights = [0.45, 0.05, 0.05, 0.45] if inside else [0.05, 0.45, 0.45, 0.05]
            letters.append("".join(rng.choice(list("ACGT"), size=40, p=weights)))
            if inside:
                strand = "+-"[i // 2 % 2]
                span = f"{40 * i + 1}\t{40 * i + 40}"
                rows.append(f"{name}\tx\tCDS\t{span}\t.\t{strand}\t0\tID={name}{i}")
        fasta.append(f">{name}\n{''.join(letters)}")
    (folder / "g.fa").write_text("\n".join(fasta) + "\n")
    (folder / "g.gff").write_text("\n".join(rows) + "\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    return folder / "g.mb", folder / "g.gff"


def windows(gff: Path, **options: Any) -> GenomeConfig:
    given: dict[str, Any] = {"types": ["CDS=coding"], "background": "other", "test": ["b"]}
    return GenomeConfig(features=[str(gff)], length=64, **{**given, **options})


def test_learns_from_a_genome(tmp_path: Path, genome: tuple[Path, Path]) -> None:
    store, gff = genome
    result = finetune(
        settings(
            tmp_path / "run",
            store,
            genome=windows(gff),
            predictions=True,
            head=HeadConfig(reverse_complement=0.5, strand_average=True),
        )
    )
    assert result is not None
    assert (result.kind, result.classes) == ("nucleotides", ["other", "coding"])
    assert result.rows == {"train": 23, "valid": 3, "test": 25}
    assert result.test["auroc"] > 0.9
    assert result.test["auprc"] > 0.85
    assert result.notes == []
    best = tmp_path / "run" / "best"
    config = json.loads((best / "config.json").read_text())
    assert config["architectures"] == ["HyenaDNAForTokenClassification"]
    assert config["id2label"] == {"0": "other", "1": "coding"}
    table = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert table.columns == ["contig", "position", "label", "p_other", "p_coding"]
    assert table["contig"].unique().to_list() == ["b"]
    assert table["position"].to_list() == list(range(1600))
    truth = ["coding" if i // 40 % 2 else "other" for i in range(1600)]
    assert table["label"].to_list() == truth
    said = np.where(table["p_coding"].to_numpy() > 0.5, "coding", "other")
    assert (said == truth).mean() == pytest.approx(result.test["accuracy"])


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_every_family_with_a_head_for_bases(
    tmp_path: Path, genome: tuple[Path, Path], family: str
) -> None:
    store, gff = genome
    config = settings(
        tmp_path / "run", store, family=family, overrides=SHAPES[family], epochs=1, steps=2,
        genome=windows(gff),
    )  # fmt: skip
    result = finetune(config)
    assert result is not None
    model = load_model(tmp_path / "run")
    assert type(model).__name__.endswith("ForTokenClassification")
    tensors = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert tensors["score.weight"].shape[0] == 2
    ids = torch.tensor([[7, 8, 9, 10, 10, 7, 8, 8]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        turned = model(input_ids=(17 - ids).flip(1)).logits.flip(1)
    assert logits.shape == (1, 8, 2)
    if family == "caduceus":
        torch.testing.assert_close(logits, turned)


def test_a_table_of_label_strings(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = ["seq,label"]
    for _ in range(30):
        letters = "".join(rng.choice(list("ACGT"), size=rng.integers(10, 30)))
        rows.append(f"{letters},{''.join('1' if x in 'GC' else '0' for x in letters)}")
    path = tmp_path / "train.csv"
    path.write_text("\n".join(rows) + "\n")
    table = TableConfig(kind="nucleotides")
    result = finetune(settings(tmp_path / "run", path, test=str(path), table=table))
    assert result is not None
    assert result.test["accuracy"] > 0.9
    assert result.rows == {"train": 27, "valid": 3, "test": 30}


def test_splits_of_a_genome(tmp_path: Path, genome: tuple[Path, Path]) -> None:
    store, gff = genome
    splits = read_splits(settings(tmp_path, store, genome=windows(gff, train=["a:1-800"])))
    assert {name: str((s.text.intervals or ())[0]) for name, s in splits.items()} == {
        "train": "a:1-64", "valid": "a:721-784", "test": "b:1-64"
    }  # fmt: skip
    assert sum(splits["train"].class_counts().values()) == 720
    named = read_splits(settings(tmp_path, store, genome=windows(gff, valid=["a:1-64"])))
    assert len(named["valid"]) == 1
    other = read_splits(
        settings(tmp_path, store, test=str(store), genome=windows(gff, train=["a"], test=["b:1-9"]))
    )
    assert other["test"].lengths.tolist() == [9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genome": {"types": ["exon"]}}, "no row of .* is of the type 'exon'"),
        ({"genome": {"train": ["a:1-40"]}, "table": TableConfig(validation_fraction=0)},
         "no training base of .* is of the class 'coding'"),
        ({"genome": {"strand": "forward"}, "head": HeadConfig(strand_average=True)},
         "such labels belong to one strand"),
        ({"head": HeadConfig(pooling="max")}, "every base answers for itself"),
        ({"family": "cnn", "overrides": {}}, "no model for labels of nucleotides; take one of"),
        ({"tokenizer": "3mer"}, "need one token for each base"),
        ({"genome": {"test": []}, "predictions": True}, "with test places"),
        ({"metrics": ["pearson"]}, "pearson is not a metric of nucleotides"),
        ({"overrides": {**TINY, "max_seq_len": 40}}, r"g\.mb, a:1-64: the sequence has 64 tokens"),
    ],
)  # fmt: skip
def test_refusals(
    tmp_path: Path, genome: tuple[Path, Path], options: dict[str, Any], message: str
) -> None:
    store, gff = genome
    given = {**options, "genome": windows(gff, **options.get("genome", {}))}
    with pytest.raises(MegabaseError, match=message):
        finetune(settings(tmp_path / "run", store, **given), dry_run=True)
    assert not (tmp_path / "run").exists()


def test_intervals_of_one_file_are_divided_by_places(
    tmp_path: Path, genome: tuple[Path, Path]
) -> None:
    store, gff = genome
    rows = []
    for line in gff.read_text().splitlines():
        contig, _, _, start, end, *_ = line.split("\t")
        rows.append(f"{contig}\t{int(start) - 1}\t{end}\tcoding")
        rows.append(f"{contig}\t{int(start) - 41}\t{int(end) - 40}\tother")
    bed = tmp_path / "x.bed"
    bed.write_text("\n".join(rows) + "\n")
    places = GenomeConfig(store=str(store), length=30, test=["b"], valid=["a:1-320"])
    result = finetune(settings(tmp_path / "run", bed, genome=places))
    assert result is not None
    assert result.kind == "classes"
    assert result.rows == {"train": 32, "valid": 8, "test": 40}
    assert result.classes == ["coding", "other"]
    assert result.test["accuracy"] > 0.9
    again = read_splits(
        settings(tmp_path, bed, test=str(bed), genome=GenomeConfig(store=str(store)))
    )
    assert len(again["test"]) == 80
    assert again["test"].lengths.tolist() == [40] * 80

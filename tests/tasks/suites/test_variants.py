"""Labeled variants in each published layout, and one table of baselines, models and methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import megabase as mb
from megabase.benchmarking.config import VariantsConfig
from megabase.benchmarking.suites.variants import _read_table
from megabase.cli.main import main
from megabase.errors import InputError, InputWarning, LeftOutWarning
from megabase.genome.store import Genome
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

Row = tuple[str, int, str, str, bool]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    rng = np.random.default_rng(5)
    contigs = {name: "".join(rng.choice(list("ACGT"), 2000)) for name in ("chr1", "chr2")}
    fasta = "".join(f">{name}\n{text}\n" for name, text in contigs.items())
    (folder / "toy.fa").write_text(fasta)
    Genome.build(folder / "toy.fa", folder / "toy.mb")
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=8, n_layer=1, filter_order=8, max_seq_len=66)
    HyenaDNAForCausalLM(config).eval().save_pretrained(folder / "model")
    genes = [
        f"{name}\tx\t{kind}\t301\t600\t.\t+\t{phase}\tID={kind};Parent=t1"
        for name, kind, phase in (("chr1", "exon", "."), ("chr1", "CDS", "0"))
    ]
    transcript = "chr1\tx\tmRNA\t301\t600\t.\t+\t.\tID=t1"
    (folder / "genes.gff3").write_text("\n".join(["##gff-version 3", transcript, *genes]) + "\n")
    return folder


@pytest.fixture(scope="module")
def rows(place: Path) -> list[Row]:
    """SNVs as (contig, 0-based position, ref, alt, label), of three the first positive."""
    store, rng = Genome(place / "toy.mb"), np.random.default_rng(0)
    found: list[Row] = []
    for number in range(60):
        name = ("chr1", "chr2")[number % 2]
        at = int(rng.integers(40, 1900))
        ref = "ACGT"[store.view(name)[at] & 7]
        alt = str(rng.choice([base for base in "ACGT" if base != ref]))
        found.append((name, at, ref, alt, number % 3 == 0))
    return found


def written(path: Path, columns: dict[str, list[Any]]) -> Path:
    frame = pl.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="," if path.suffix == ".csv" else "\t")
    return path


def layout_file(layout: str, rows: list[Row], folder: Path) -> Path:
    """Write rows as a layout is published; those with other labels stand between them."""
    chrom, at, ref, alt, label = (list(column) for column in zip(*rows, strict=True))
    pos = [one + 1 for one in at]
    group = [str(number // 3) for number in range(len(rows))]
    kinds = ["missense_variant", "intron_variant"] * (len(rows) // 2)
    plain = {"ref": ref, "alt": alt}
    if layout == "traitgym":  # mendelian_traits_matched_9/test.parquet
        return written(folder / "test.parquet", {
            "chrom": [name.removeprefix("chr") for name in chrom], "pos": pos, **plain,
            "OMIM": ["x"] * len(rows), "consequence": kinds, "label": label, "match_group": group,
        })  # fmt: skip
    if layout == "clinvar":
        names = {True: ["Pathogenic", "Likely_pathogenic"], False: ["Benign", "Likely_benign"]}
        reviews = ["criteria_provided,_single_submitter", "reviewed_by_expert_panel",
                   "criteria_provided,_multiple_submitters,_no_conflicts"]  # fmt: skip
        lines = [
            f"{c.removeprefix('chr')}\t{p}\t{n}\t{r}\t{a}\t.\t.\tALLELEID={n};"
            f"CLNREVSTAT={reviews[n % 3]};CLNSIG={names[y][n % 2]};"
            f"MC=SO:0001627|intron_variant{',SO:0001583|missense_variant' * (n % 2)}"
            for n, (c, p, r, a, y) in enumerate(zip(chrom, pos, ref, alt, label, strict=True))
        ]
        others = [
            lines[0].replace("CLNSIG=Pathogenic", "CLNSIG=Uncertain_significance"),
            lines[0].replace(reviews[0], "no_assertion_criteria_provided"),
        ]
        path = folder / "clinvar.vcf"
        head = "##fileformat=VCFv4.1\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        path.write_text(head + "\n".join([*lines, *others]) + "\n")
        return path
    again = {key: [*values, values[0]] for key, values in plain.items()}
    pos, chrom = [*pos, pos[0]], [*chrom, chrom[0]]
    if layout == "brca1":
        classes = [("LOF" if y else ("FUNC", "INT")[n % 2]) for n, y in enumerate(label)] + [None]
        return written(folder / "brca1.csv", {
            "gene": ["BRCA1"] * len(pos), "chromosome": [c.removeprefix("chr") for c in chrom],
            "position (hg19)": pos, "reference": again["ref"], "alt": again["alt"],
            "consequence": [*kinds, "Missense"], "function.score.mean": [-0.5] * len(pos),
            "func.class": classes,
        })  # fmt: skip
    if layout == "brca2":
        classes = ["P strong" if y else "B moderate" for y in label] + ["VUS"]
        return written(
            folder / "b.parquet", {"chrom": chrom, "pos": pos, **again, "class": classes}
        )
    alleles = {"var.allele1": again["ref"], "var.allele2": again["alt"]}
    if layout == "caqtl":
        return written(folder / "caqtl.tsv", {
            "var.chr": chrom, "var.pos_hg38": pos, **alleles,
            "var.isused": ["True"] * len(label) + ["False"],
            "obs.beta": [0.1] * len(pos), "obs.label": [float(y) for y in label] + [1.0],
        })  # fmt: skip
    return written(folder / "dsqtl.tsv", {
        "var.chrom": chrom, "var.pos": pos, **alleles,
        "var.label": [1 if y else -1 for y in label] + [2], "obs.estimate": [0.1] * len(pos),
    })  # fmt: skip


@pytest.mark.filterwarnings("ignore::megabase.errors.ContigAliasWarning")
@pytest.mark.parametrize("layout", ["traitgym", "clinvar", "brca1", "brca2", "caqtl", "dsqtl"])
def test_published_layouts(layout: str, place: Path, rows: list[Row], tmp_path: Path) -> None:
    path, store = layout_file(layout, rows, tmp_path), Genome(place / "toy.mb")
    found = _read_table(path, store, VariantsConfig(layout=layout))  # type: ignore[arg-type]
    read = [(r.contig, r.position, r.ref, r.alts[0]) for r in found.records]
    assert read == [row[:4] for row in rows]
    assert found.frame["label"].to_list() == [row[4] for row in rows]
    if layout in ("traitgym", "brca1", "clinvar"):
        expected = ["missense_variant", "intron_variant"] * 30
        expected = expected if layout != "clinvar" else [expected[1], expected[0]] * 30
        assert found.frame["subset"].to_list() == expected
    if layout == "traitgym":
        assert found.frame["match_group"].to_list() == [str(n // 3) for n in range(60)]
    if layout in ("clinvar", "brca1", "brca2", "dsqtl"):
        assert found.notes == ["1 rows with other labels are left out"]


def own_table(path: Path, rows: list[Row], **more: list[Any]) -> Path:
    chrom, at, ref, alt, label = (list(column) for column in zip(*rows, strict=True))
    pos = [one + 1 for one in at]
    plain = {"chrom": chrom, "pos": pos, "ref": ref, "alt": alt, "label": [int(y) for y in label]}
    return written(path, {**plain, **more})


def test_alleles_that_are_exchanged(place: Path, rows: list[Row], tmp_path: Path) -> None:
    store = Genome(place / "toy.mb")
    turned = [(c, p, a, r, y) if n < 20 else (c, p, r, a, y)
              for n, (c, p, r, a, y) in enumerate(rows)]  # fmt: skip
    path = own_table(tmp_path / "t.csv", turned)
    with pytest.warns(InputWarning, match="20 of 60 rows have REF and ALT exchanged"):
        found = _read_table(path, store, VariantsConfig())
    assert [(r.ref, r.alts[0]) for r in found.records] == [row[2:4] for row in rows]
    with pytest.raises(InputError, match=r"row 1: the genome has ALT .* exchanged"):
        _read_table(path, store, VariantsConfig(swapped="refuse"))
    zero = own_table(tmp_path / "z.csv", [(c, p - 1, r, a, y) for c, p, r, a, y in rows])
    found = _read_table(zero, store, VariantsConfig(zero_based=True))
    assert [r.position for r in found.records] == [row[1] for row in rows]
    with pytest.raises(InputError, match=r"one base beside, \d+ of them agree \(variants.zero"):
        _read_table(zero, store, VariantsConfig())
    odd = own_table(tmp_path / "o.csv", [*rows, ("chr9", 1, "A", "C", True)])
    with pytest.warns(LeftOutWarning, match="1 UNKNOWN_CONTIG"):
        assert len(_read_table(odd, store, VariantsConfig()).records) == 60
    for config, told in (
        (VariantsConfig(columns={"label": "class"}), "has no column class; it has chrom, pos"),
        (VariantsConfig(columns={"score": "x"}), "it is for chrom, pos"),
        (VariantsConfig(positive=["7"]), "found 0 positive ones"),
        (VariantsConfig(layout="caqtl"), "has no column var.chr"),
    ):
        with pytest.raises(InputError, match=told):
            _read_table(odd, store, config)


def test_one_table_the_same_twice(
    place: Path, rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = [f"g{n // 3}" for n in range(60)]
    subset = ["one", "two", "two"] * 20
    subset = [subset[n // 3] for n in range(60)]
    rng = np.random.default_rng(0)
    perfect = [row[4] + rng.random() / 2 for row in rows]
    table = own_table(
        tmp_path / "mine.csv", rows, match_group=group, subset=subset, CADD=perfect,
        worst=perfect,
    )  # fmt: skip
    words = ["benchmark", "variants", "--data", str(table), "--models",
             f"{place / 'model'},{place / 'model'}:scratch,kmer", "--bootstrap", "50",
             "--variants.genome", str(place / "toy.fa"), "--variants.window", "32",
             "--variants.genes", str(place / "genes.gff3"), "--variants.scores", "[CADD, -worst]",
             "--no-page"]  # fmt: skip
    texts = []
    for name in ("one", "two"):
        assert main([*words, "--output", str(tmp_path / name)]) == 0
        texts.append((tmp_path / name / "summary.parquet", capsys.readouterr().out))
    first, second = (pl.read_parquet(path) for path, _ in texts)
    kept = ["model", "metric", "mean", "low", "high", "protocol"]
    assert first[kept].equals(second[kept])
    titles = first["model"].to_list()
    assert titles[:8] == ["kind of change", "CpG transition", "Markov model, order 3",
                          "k-mer counts, k 4", "near an exon", "consequence rule", "CADD",
                          "worst"]  # fmt: skip
    assert sum("llr_site" in title for title in titles) == 4  # two models, with abs_llr_site
    best = first.row(titles.index("CADD"), named=True)
    assert (best["metric"], best["mean"], best["low"]) == ("auprc_by_chromosome", 1.0, 1.0)
    said = texts[0][1]
    assert "| CADD | zero-shot | 1.000 |  | 1.000 to 1.000 | 1 | 1.000 (1.000 to 1.000) |" in said
    assert "Worst: AUROC 0.000 (0.000 to 0.000) lies below 0.5: the sign" in said
    assert "AUPRC by chromosome" in said and "pairs in order" in said  # noqa: PT018
    store = Genome(place / "toy.mb")
    record = json.loads((tmp_path / "one/runs/variants.mine/near-an-exon/record.json").read_text())
    inside = [name == "chr1" and 300 <= at < 600 for name, at, *_ in rows]
    assert 0 < sum(inside) < 60
    scores = mb.load(place / "model").score_variants(
        [f"{c}:{p + 1}:{r}>{a}" for c, p, r, a, _ in rows], store, window=32, methods=["llr_site"]
    ).table["llr_site"].to_numpy()  # fmt: skip
    label = np.array([row[4] for row in rows])
    above = -scores[label][:, None] - -scores[~label]
    area = ((np.sign(above) + 1) / 2).mean()
    run = next((tmp_path / "one/runs/variants.mine").glob("*model-llr_site/record.json"))
    found = json.loads(run.read_text())
    assert found["test"]["auroc"] == pytest.approx(area)
    assert record["protocol"] == "zero-shot"

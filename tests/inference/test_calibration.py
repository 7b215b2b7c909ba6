"""Calibrated scores against slow sums over random variants; draws; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import megabase as mb
from megabase.cli.main import main
from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.genome.alphabet import encode
from megabase.genome.store import Genome
from megabase.inference.parts import Provenance
from megabase.inference.variants.calibration import (
    CLASSES,
    SUBSTITUTIONS,
    Calibration,
    _substitution_contexts,
    _toward,
    context_of,
)
from megabase.inference.variants.random_variants import _random_records
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

PAIRS = str.maketrans("ACGTN", "TGCAN")
METHOD = "llr_site"
ABOUT = Provenance("calibrate", "toy", "0" * 64, options={"strands": "both"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that mind the bases before, and a genome poor in CpG with a stretch of N."""
    place = tmp_path_factory.mktemp("calibration")
    rng = np.random.default_rng(3)
    text = "".join(rng.choice(list("ACGT"), 6000)).replace("CG", "TG")
    (place / "toy.fa").write_text(f">chr1\n{text[:3000]}{'N' * 500}{text[3000:].lower()}\n")
    Genome.build(place / "toy.fa", place / "toy.mb")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = HyenaDNAConfig(d_model=8, n_layer=1, filter_order=8, max_seq_len=66)
        model = HyenaDNAForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        model.save_pretrained(place / name)
    return place


def key(text: str, at: int, alt: str, both: bool = True) -> tuple[str, str]:
    """Context of a substitution as text, the same on both strands."""
    five = text[at - 2 : at + 3].upper()
    other = five.translate(PAIRS)[::-1], alt.translate(PAIRS)
    return min((five, alt), other) if both else (five, alt)


def test_contexts_are_those_of_the_text() -> None:
    text = "ACGTTGCAANACGGTACCATG"
    codes = encode(text)
    seen: dict[int, tuple[str, str]] = {}
    for at in range(len(text)):
        for alt in "ACGT":
            if alt == text[at] or text[at] == "N":
                continue
            number, kind = context_of(codes, at, text[at], alt)
            known = 2 <= at < len(text) - 2 and "N" not in text[at - 2 : at + 3]
            assert kind == 0
            assert (number >= 0) == known
            if known:
                assert seen.setdefault(number, key(text, at, alt, False)) == key(
                    text, at, alt, False
                )
                around = encode(text[at - 2 : at + 3])
                assert _substitution_contexts(around, np.arange(4))["ACGT".index(alt)] == number
    assert len(set(seen.values())) == len(seen)
    assert context_of(codes, 3, "TT", "TA") == context_of(codes, 4, "T", "A")
    for ref, alt, kind in (("T", "TAA", 1), ("TTG", "T", 2), ("TT", "AA", 3), ("TTG", "A", 3)):
        assert context_of(codes, 3, ref, alt) == (SUBSTITUTIONS + kind - 1, kind)


def test_a_fit_is_the_slow_sum() -> None:
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("ACG"), 900))
    codes = encode(text)
    rows = [(at, alt) for at in range(2, 898) for alt in "ACGT" if alt != text[at]]
    values = rng.normal(size=len(rows)) + np.array([text[at - 1] == "C" for at, _ in rows])
    contexts = np.array([context_of(codes, at, text[at], alt)[0] for at, alt in rows])
    found = Calibration.fit(
        [METHOD], values[:, None], contexts, np.zeros(len(rows), dtype=np.int64), ABOUT
    )
    level = values.mean()
    keys = [key(text, at, alt) for at, alt in rows]
    middles = [min((five[1:4], alt), (five[1:4].translate(PAIRS)[::-1], alt.translate(PAIRS)))
               for five, alt in keys]  # fmt: skip
    means: dict[object, float] = dict.fromkeys(middles, level)
    for names in (middles, keys):
        by_name = {name: [v for v, own in zip(values, names, strict=True) if own == name]
                   for name in names}  # fmt: skip
        above = {own: means[wide] for own, wide in zip(names, middles, strict=True)}
        # Both strands are counted: twice the draws in twice the contexts.
        within = sum(2 * np.var(v) * len(v) for v in by_name.values()) / (
            2 * len(values) - 2 * len(by_name)
        )
        between = (
            sum(len(v) * (np.mean(v) - above[name]) ** 2 for name, v in by_name.items())
            / len(by_name)
            - within
        )
        prior = within * len(values) / len(by_name) / between
        means = {
            name: above[name] + (np.mean(v) - above[name]) * len(v) / (len(v) + prior)
            for name, v in by_name.items()
        }
    apart = [((v - means[own]) / (1 - 1 / (len(by_name[own]) + prior))) ** 2
             for v, own in zip(values, keys, strict=True)]  # fmt: skip
    level2 = np.mean(apart)
    for names in (middles, keys):
        part = [a for a, own in zip(apart, names, strict=True) if own == names[100]]
        level2 = (sum(part) + 10 * level2) / (len(part) + 10)
    near = by_name[keys[100]]
    level = means[keys[100]], level2
    number = contexts[100]
    assert found.counts[number] == len(near)
    assert found.mean[0, number] == pytest.approx(level[0])
    assert found.spread[0, number] ** 2 == pytest.approx(level[1])
    asked = np.array([values[100], -9.0, np.median(values), 9.0, np.nan])
    where = np.full(5, number), np.zeros(5, dtype=np.int64)
    _, z, shares = found.extend([METHOD], asked[:, None], *where).T
    assert z[0] == pytest.approx((values[100] - level[0]) / level[1] ** 0.5)
    assert shares[1:4] == pytest.approx([0, 50, 100], abs=0.2)
    assert np.isnan(shares[4])
    other = found.extend([METHOD], asked[:, None], np.full(5, -1), np.ones(5, dtype=np.int64))
    assert np.isnan(other[:, 1:]).all()


def test_one_draw_of_each_group_says_nothing_about_groups() -> None:
    mean, share = _toward(np.array([1.0, 3.0]), np.array([0, 2]), np.full(4, 2.5))
    assert mean.tolist() == [2.5] * 4
    assert share.tolist() == [0.0] * 4


def test_draws_are_uniform_over_known_bases(folder: Path) -> None:
    store = Genome(folder / "toy.mb")
    regions = Regions.of([0, 0], [100, 2000], [1100, 4500])
    how = {"count": 6000, "others": 300, "seed": 5}
    chunks = list(_random_records(folder / "toy.mb", regions, **how))
    records = [one for chunk in chunks for one in chunk]
    again = [one for chunk in _random_records(folder / "toy.mb", regions, **how) for one in chunk]
    assert again == records
    at = [one.position for one in records]
    assert at == sorted(at)
    assert {100 <= p < 1100 or 2000 <= p < 4500 for p in at} == {True}
    snvs = [one for one in records if len(one.alts) == 3]
    assert len(snvs) == 2000
    share = np.mean([one.position < 1100 for one in snvs])
    assert share == pytest.approx(1000 / 3000, abs=0.04)  # 500 bases are N
    view = store.view("chr1")
    kinds = [context_of(view, r.position, r.ref, alt)[1] for r in records for alt in r.alts]
    assert [kinds.count(kind) for kind in range(len(CLASSES))] == [6000, 300, 300, 300]
    with pytest.raises(InputError, match="no base"):
        list(_random_records(folder / "toy.mb", Regions.of([0], [3000], [3400]), **how))


def test_held_out_random_variants_are_standard(folder: Path) -> None:
    model = mb.load(folder / "one")
    options = {"window": 32, "methods": ["llr_site", "llr_window"]}
    file = model.calibrate_variants(
        folder / "toy.mb", count=9000, others=400, workers=1, **options
    )  # fmt: skip
    assert file == folder / "one" / "variants.calibration.npz"
    assert mb.load(folder / "one").digest == model.digest
    store = Genome(folder / "toy.mb")
    chunks = _random_records(
        store.path, Regions.whole(store.lengths), count=6000, others=300, seed=1
    )
    vcf = folder / "held.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        + "".join("\t".join(one.fields) + "\n" for chunk in chunks for one in chunk)
    )
    table = model.score_variants(vcf, store, calibration="model", **options).table
    texts = [(store.view("chr1"), *row) for row in table.select("start", "ref", "alt").iter_rows()]
    table = table.with_columns(
        kind=np.array([context_of(*one)[1] for one in texts])
    ).with_row_index("row")
    for method in options["methods"]:
        snv = table.filter((pl.col("kind") == 0) & pl.col(f"{method}_z").is_not_null())
        assert snv.height > 5500
        z = snv[f"{method}_z"]
        assert z.mean() == pytest.approx(0, abs=0.06)
        assert z.std() == pytest.approx(1, abs=0.08)
        for change in ("A", "C", "G", "T"):
            own = snv.filter(pl.col("ref").str.to_uppercase() == change)[f"{method}_z"]
            assert own.mean() == pytest.approx(0, abs=0.1)
        context = np.array([context_of(*one)[0] for one in texts])[snv["row"].to_numpy()]
        apart: dict[str, float] = {}
        for name in (method, f"{method}_z"):
            own = snv[name].to_numpy()
            own = (own - own.mean()) / own.std()
            means = [own[context == number] for number in np.unique(context)]
            apart[name] = float(np.mean([len(part) * part.mean() ** 2 for part in means]))
        assert apart[method] > 1.8, apart  # one by chance: before, contexts differ
        assert apart[f"{method}_z"] < 1.6  # the means of the calibration are not exact either
        for kind in range(4):
            own = np.sort(table.filter(pl.col("kind") == kind)[f"{method}_percentile"].drop_nulls())
            gap = np.abs(own / 100 - (np.arange(len(own)) + 0.5) / len(own)).max()
            assert len(own) > 200
            assert gap < 1.63 * len(own) ** -0.5 + 0.08
    edge = model.score_variants(
        ["chr1:3,500:N>A", "chr1:2,999:A>C"], store, calibration="model", **options
    ).table  # fmt: skip
    assert edge["reason"][0] == "REF_NOT_BASES"


def test_command_and_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [str(folder / "one"), "--calibrate", str(folder / "toy.mb"), "--window", "32"]
    file = str(folder / "snv.npz")
    assert main(["variants", *where, "--count", "300", "--workers", "1", "-o", file]) == 0
    again = str(folder / "again.npz")
    assert main(["variants", *where, "--count", "300", "--workers", "2", "-o", again]) == 0
    one, two = Calibration.read(file), Calibration.read(again)
    assert np.array_equal(one.mean, two.mean, equal_nan=True)
    assert one.provenance == two.provenance
    assert one.counts.sum() > 500
    text = Genome(folder / "toy.mb").fetch("chr1:101-110")
    bases = "".join("ACGTN"[code & 7] for code in text)
    other = "ACGT"[("ACGT".index(bases[0]) + 1) % 4]
    vcf = folder / "in.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"chr1\t101\t.\t{bases[0]}\t{other},{bases[0]}A\t.\t.\t.\n"
    )
    named = [str(vcf), str(folder / "toy.mb"), "--window", "32", "--calibration", file]
    out = folder / "out.vcf"
    assert main(["variants", str(folder / "one"), *named, "-o", str(out), "--workers", "1"]) == 0
    header, line = out.read_text().split("#CHROM")
    info = dict(item.split("=") for item in line.split("\t")[-1].split(";"))
    assert "ID=MB_LLR_SITE_PERCENTILE,Number=A,Type=Float" in header
    assert info["MB_REASON"].strip() == ".,NOT_CALIBRATED"
    z = info["MB_LLR_SITE_Z"].split(",")
    assert z[1] == "."
    assert 0 <= float(info["MB_LLR_SITE_PERCENTILE"].split(",")[0]) <= 100
    raw = float(info["MB_LLR_SITE"].split(",")[0])
    contig = Genome(folder / "toy.mb").view("chr1")
    context = np.array([context_of(contig, 100, bases[0], other)[0]])
    wanted = one.extend(["llr_site"], np.array([[raw]]), context, np.zeros(1, dtype=np.int64))
    assert float(z[0]) == pytest.approx(wanted[0, 1], rel=1e-4)
    for changed, told in (
        ([str(folder / "two"), *named], "made with model one"),
        ([str(folder / "one"), *named, "--strands", "forward"], "strands both, not forward"),
        ([str(folder / "one"), *named, "--methods", "l2"], "without l2"),
        ([str(folder / "two"), *named[:-1], "model"], "has no variants.calibration.npz"),
        (["default", "--calibrate", str(folder / "toy.mb")], "not a folder of yours"),
        ([*where, "--prefix", "X"], "--prefix is not for --calibrate"),
        ([str(folder / "one"), str(vcf)], "GENOME and --output are missing"),
    ):
        place = (
            [] if "--calibrate" in changed or len(changed) == 2 else ["-o", str(folder / "n.vcf")]
        )
        assert main(["variants", *changed, *place]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(InputError, match="expected a file of megabase variants"):
        Calibration.read(vcf)

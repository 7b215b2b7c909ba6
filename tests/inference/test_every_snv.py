"""All substitutions in one pass against a pass for each base; the table; look-ups; tracks."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
import torch

from megabase.errors import InputError
from megabase.genome.store import Genome
from megabase.inference.variants import every_snv, score_table
from megabase.inference.variants.every_snv import score_all
from megabase.inference.variants.scorer import score_variants
from megabase.inference.variants.vcf_file import score_variants_file
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

IDS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
PAIRS = str.maketrans("ACGTN", "TGCAN")
WINDOW, CONTEXT = 48, 20


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    rng = np.random.default_rng(7)
    one = "".join(rng.choice(list("ACGTacgt"), 400))
    return {"chr1": one[:100] + "N" * 60 + one[160:], "short": "ACGTTGCAACGGTAC", "one": "A"}


@pytest.fixture(scope="module")
def genome(contigs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genome")
    text = "".join(f">{name}\n{bases}\n" for name, bases in contigs.items())
    (folder / "toy.fa").write_text(text)
    return Genome.build(folder / "toy.fa", folder / "toy.mb").path


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(2)
    small = {"d_model": 16, "n_layer": 2}
    hyena = HyenaDNAForCausalLM(HyenaDNAConfig(**small, filter_order=8, max_seq_len=66))
    gpt = GPTForCausalLM(GPTConfig(**small, max_position_embeddings=66))
    for parameter in (*hyena.parameters(), *gpt.parameters()):
        if parameter.dim() > 1:  # the first weights are small: make every base count
            parameter.data.mul_(4)
    return {"hyena": hyena.eval(), "gpt": gpt.eval()}


def rows_of(path: Path) -> list[tuple[str, ...]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[0].startswith("##megabase={")
    table = [tuple(line.split("\t")) for line in lines if not line.startswith("##")]
    assert table[0] == ("#Chrom", "Pos", "Ref", "Alt", "score", "percentile")
    return table[1:]


def expected(model: torch.nn.Module, bases: str, at: int, strand: str) -> dict[str, float] | None:
    """Score one base by a pass over no more than the window that answers for it."""
    if strand == "reverse":
        bases, at = bases.translate(PAIRS)[::-1], len(bases) - 1 - at
    if at == 0:
        return None
    start = max(0, (at - CONTEXT) // (WINDOW - CONTEXT)) * (WINDOW - CONTEXT)
    ids = torch.tensor([[IDS[base] for base in bases[start:at]]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1, 7:11].log_softmax(-1).tolist()
    values = {base: logits["ACGT".index(base)] for base in "ACGT"}
    if strand == "reverse":
        values = {base.translate(PAIRS): value for base, value in values.items()}
    own = bases[at] if strand == "forward" else bases[at].translate(PAIRS)
    return {base: value - values[own] for base, value in values.items()}


@pytest.mark.parametrize("name", ["hyena", "gpt"])
@pytest.mark.parametrize("strands", ["forward", "reverse", "both"])
def test_every_row_is_that_of_its_own_pass(
    name: str, strands: str, models: dict[str, torch.nn.Module], contigs: dict[str, str],
    genome: Path, tmp_path: Path,
) -> None:  # fmt: skip
    model, out = models[name], tmp_path / "all.tsv.gz"
    options = {"strands": strands, "window": WINDOW, "context": CONTEXT, "batch_tokens": 150}
    with pytest.warns(match="60 REF_NOT_BASES.* NO_BASE_BEFORE"):
        found = score_all(model, genome, out, workers=1, **options)
    rows = iter(rows_of(out))
    count = 0
    for contig, text in contigs.items():
        bases = text.upper()
        for at, ref in enumerate(bases):
            read = ["forward", "reverse"] if strands == "both" else [strands]
            if ref == "N":
                continue
            each = [expected(model, bases, at, strand) for strand in read]
            if None in each:
                continue
            for alt in "ACGT".replace(ref, ""):
                row = next(rows)
                assert row[:4] == (contig, str(at + 1), ref, alt)
                value = sum(one[alt] for one in each) / len(each)
                assert float(row[4]) == pytest.approx(value, abs=2e-5)
                count += 1
    assert next(rows, None) is None
    assert found == (count, [out, Path(f"{out}.tbi")])


def test_regions_workers_and_percentiles(
    models: dict[str, torch.nn.Module], genome: Path, tmp_path: Path
) -> None:
    options = {"window": WINDOW, "context": CONTEXT}
    with pytest.warns(match="have no substitutions"):
        score_all(models["hyena"], genome, tmp_path / "all.tsv.gz", workers=1, **options)
    rows = rows_of(tmp_path / "all.tsv.gz")
    score_all(
        models["hyena"], genome, tmp_path / "some.tsv.gz", regions=["chr1:211-260", "chr1:31-40"],
        workers=1, **options,
    )  # fmt: skip
    some = [
        row
        for row in rows
        if row[0] == "chr1" and int(row[1]) in (*range(31, 41), *range(211, 261))
    ]
    found = rows_of(tmp_path / "some.tsv.gz")
    assert [row[:4] for row in found] == [row[:4] for row in some]
    for column, last_digit in ((4, 1e-5), (5, 0.1)):  # their windows lie in smaller batches
        values = np.array([[float(row[column]) for row in each] for each in (found, some)])
        assert np.abs(np.diff(values, axis=0)).max() < 1.01 * last_digit
    scores = np.array([float(row[4]) for row in rows])
    percentiles = np.array([float(row[5]) for row in rows])
    assert (np.diff(percentiles[np.argsort(scores, kind="stable")]) >= 0).all()
    assert percentiles.min() >= 0
    assert percentiles.max() <= 100
    assert np.median(percentiles) > 20


def test_what_cannot_be(models: dict[str, torch.nn.Module], genome: Path, tmp_path: Path) -> None:
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    with pytest.raises(InputError, match="causal model; score a VCF"):
        score_all(masked, genome, tmp_path / "a.tsv.gz")
    with pytest.raises(InputError, match="context of 48"):
        score_all(models["hyena"], genome, tmp_path / "a.tsv.gz", window=48, context=48)


@pytest.fixture(scope="module")
def table(
    models: dict[str, torch.nn.Module], genome: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A table in blocks of a few rows, so that what belongs together lies in two."""
    path = tmp_path_factory.mktemp("table") / "all.tsv.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(every_snv, "_TEXT", 130)
        with pytest.warns(match="have no substitutions"):
            score_all(models["hyena"], genome, path, workers=1, window=WINDOW, context=CONTEXT)
    return path


def write_vcf(path: Path, records: list[tuple[str, int, str, str]]) -> Path:
    lines = [f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\tX=1" for c, p, r, a in records]
    head = "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##contig=<ID=short>\n"
    head += '##INFO=<ID=X,Number=1,Type=Integer,Description="x">\n'
    path.write_text(
        head + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "\n".join(lines) + "\n"
    )
    return path


def info_of(path: Path) -> list[dict[str, str]]:
    lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
    return [dict(x.split("=") for x in line.split("\t")[7].split(";")) for line in lines]


def test_every_substitution_is_found_in_any_order(
    models: dict[str, torch.nn.Module], genome: Path, table: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = rows_of(table)
    for name, order, steps in (("up", rows, 16), ("down", rows[::-1], 16), ("far", rows[::97], 1)):
        monkeypatch.setattr(score_table, "_STEPS", steps)
        asked = [(c, int(p), r, a) for c, p, r, a, _, _ in order]
        source = write_vcf(tmp_path / f"{name}.vcf", asked)
        out = tmp_path / f"{name}.out.vcf"
        score_variants_file(models["hyena"], source, genome, out, scores=table, workers=1)
        for found, (*_, score, percentile) in zip(info_of(out), order, strict=True):
            assert float(found["MB_LLR_SITE"]) == float(score)
            assert float(found["MB_LLR_SITE_PERCENTILE"]) == float(percentile)
            assert found["MB_SOURCE"] == "table"


def test_alleles_that_the_table_lacks(
    models: dict[str, torch.nn.Module], contigs: dict[str, str], genome: Path, table: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    bases = contigs["chr1"].upper()
    other = {base: "ACGT"["ACGT".index(base) - 1] for base in "ACGT"}
    one, two = bases[59], bases[60]
    records = [
        ("chr1", 1, bases[0], other[bases[0]]),  # nothing before it
        ("chr1", 60, one, f"{other[one]},{one}A"),
        ("chr1", 60, one + two, one + other[two]),  # a substitution, spelled longer
        ("chr1", 120, "N", "A"),
        ("chr2", 5, "A", "C"),
    ]
    source = write_vcf(tmp_path / "in.vcf", records)
    rows = {(c, int(p), a): float(s) for c, p, _, a, s, _ in rows_of(table)}
    found = {}
    for missing in ("leave", "score"):
        out = tmp_path / f"{missing}.vcf"
        with pytest.warns(match="have no score"):
            score_variants_file(
                models["hyena"], source, genome, out, scores=table, missing=missing, workers=1
            )
        found[missing] = info_of(out)
    assert [one.get("MB_REASON") for one in found["leave"]] == [
        "NOT_IN_TABLE", ".,NOT_IN_TABLE", None, "REF_NOT_BASES", "UNKNOWN_CONTIG",
    ]  # fmt: skip
    assert [one.get("MB_REASON") for one in found["score"]] == [
        "NO_BASE_BEFORE", None, None, "REF_NOT_BASES", "UNKNOWN_CONTIG",
    ]  # fmt: skip
    assert [one.get("MB_SOURCE") for one in found["score"]] == [
        None, "table,model", "table", None, None,
    ]  # fmt: skip
    first, second = map(float, found["score"][1]["MB_LLR_SITE"].split(","))
    assert first == rows["chr1", 60, other[one]]
    plain = score_variants(
        models["hyena"], [f"chr1:60:{one}>{one}A"], genome, window=WINDOW, methods=["llr_site"]
    )
    assert second == pytest.approx(plain.table["llr_site"][0], rel=1e-5)
    assert float(found["leave"][2]["MB_LLR_SITE"]) == rows["chr1", 61, other[two]]


def test_tables_of_something_else_are_refused(
    models: dict[str, torch.nn.Module], contigs: dict[str, str], genome: Path, table: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    source = write_vcf(tmp_path / "in.vcf", [("short", 5, contigs["short"][4], "A")])
    (tmp_path / "other.fa").write_text(f">short\n{contigs['short']}\n")
    other = Genome.build(tmp_path / "other.fa", tmp_path / "other.mb").path
    cut, again = tmp_path / "cut.tsv.gz", tmp_path / "again.tsv.gz"
    cut.write_bytes(table.read_bytes()[:-28])
    with pysam.BGZFile(str(again), "wb") as file:
        file.write(gzip.decompress(table.read_bytes()) * 40)

    def annotate(
        model: str = "hyena", store: Path = genome, scores: Path = table, **options: Any
    ) -> None:
        out = tmp_path / "out.vcf"
        score_variants_file(models[model], source, store, out, scores=scores, **options)

    for match, options in (
        ("model .*not GPT", {"model": "gpt"}), ("genome toy .*not other", {"store": other}),
        ("strands both, not forward", {"strands": "forward"}),
        ("window 48, not 32", {"window": 32}),
        ("methods .*, not .'l2'", {"methods": ["l2"]}), ("cut short|missing", {"scores": cut}),
        ("as megabase wrote them", {"scores": again}), ("expected a table", {"scores": source}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            annotate(**options)


def test_tracks_hold_the_scores_of_the_table(
    models: dict[str, torch.nn.Module], genome: Path, tmp_path: Path
) -> None:
    bigtools = pytest.importorskip("pybigtools")
    out, hub = tmp_path / "all.tsv.gz", tmp_path / "hub"
    options = {"window": WINDOW, "context": CONTEXT, "regions": ["chr1", "short"], "workers": 1}
    with pytest.raises(InputError, match="name its folder"):
        score_all(models["hyena"], genome, out, hub_genome="hg38", **options)
    with pytest.warns(match="have no substitutions"):
        _, written = score_all(
            models["hyena"],
            genome,
            out,
            bigwig=str(tmp_path / "x"),
            hub=hub,
            hub_genome="hg38",
            **options,
        )
    assert {path.name for path in hub.iterdir()} == {
        "A.bw", "C.bw", "G.bw", "T.bw", "hub.txt", "genomes.txt", "trackDb.txt",
    }  # fmt: skip
    assert len(written) == 2 + 4 + 7
    assert (hub / "genomes.txt").read_text() == "genome hg38\ntrackDb trackDb.txt\n"
    assert "email" not in (hub / "hub.txt").read_text()
    text = (hub / "trackDb.txt").read_text()
    assert "logo on" in text
    assert all(f"bigDataUrl {base}.bw" in text for base in "ACGT")
    rows = rows_of(out)
    expected = {(c, int(p) - 1, a): float(s) for c, p, _, a, s, _ in rows}
    refs = {(c, int(p) - 1): r for c, p, r, *_ in rows}
    for base in "ACGT":
        assert (hub / f"{base}.bw").read_bytes() == (tmp_path / f"x.{base}.bw").read_bytes()
        track = bigtools.open(str(hub / f"{base}.bw"))
        for contig, length in (("chr1", 400), ("short", 15)):
            for at, value in enumerate(track.values(contig, 0, length, fillna=None)):
                ref = refs.get((contig, at))
                if ref is None:
                    assert np.isnan(value)
                else:
                    wanted = 0 if ref == base else expected[contig, at, base]
                    assert value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.skipif(not shutil.which("tabix"), reason="needs tabix and bcftools")
def test_other_tools_read_the_table(table: Path, tmp_path: Path) -> None:
    rows = rows_of(table)
    found = subprocess.check_output(["tabix", table, "chr1:31-40", "short:3-3"], text=True)
    kept = [
        r for r in rows if r[:2] in {*(("chr1", str(n)) for n in range(31, 41)), ("short", "3")}
    ]
    assert found == "".join("\t".join(row) + "\n" for row in kept)
    header = tmp_path / "header.txt"
    header.write_text('##INFO=<ID=MB,Number=A,Type=Float,Description="llr_site">\n')
    asked = rows[4:600:7]
    source = write_vcf(tmp_path / "in.vcf", [(c, int(p), r, a) for c, p, r, a, *_ in asked])
    command = ["bcftools", "annotate", "-a", table, "-h", header, "-c", "CHROM,POS,REF,ALT,MB,-"]
    text = subprocess.check_output([*command, source], text=True)
    values = [x.rpartition("MB=")[2] for x in text.splitlines() if not x.startswith("#")]
    assert [float(x) for x in values] == pytest.approx([float(r[4]) for r in asked], abs=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_workers_do_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    (tmp_path / "toy.fa").write_text(">c\n" + "".join(rng.choice(list("ACGT"), 200_000)) + "\n")
    command = [sys.executable, "-m", "megabase", "variants", "default", "--all", "toy.fa"]
    for workers in "1", "2":
        subprocess.run(
            [*command, "-o", f"{workers}.tsv.gz", "--workers", workers], cwd=tmp_path, check=True
        )
    killed = subprocess.Popen([*command, "-o", "3.tsv.gz", "--workers", "2"], cwd=tmp_path)
    while not list(tmp_path.glob("3.tsv.gz.partial/part-*")):
        time.sleep(0.05)
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "3.tsv.gz").exists()
    subprocess.run([*command, "-o", "3.tsv.gz", "--resume"], cwd=tmp_path, check=True)
    first = (tmp_path / "1.tsv.gz").read_bytes()
    assert first == (tmp_path / "2.tsv.gz").read_bytes() == (tmp_path / "3.tsv.gz").read_bytes()

"""``megabase report`` with a region or variants, from the command line."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megabase.cli.main import main
from megabase.data.sources import genome_store
from megabase.evaluate.log_probs import base_probabilities, log_likelihood
from megabase.genome.alphabet import encode
from megabase.genome.interval import Interval
from megabase.inference.ism import ism
from megabase.inference.parts import Run, write_bigwig
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.loading import load

SITES = (100, 300, 305)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=66, initializer_range=0.5)
    HyenaDNAForCausalLM(config).save_pretrained("lm")
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 1000))
    Path("g.fa").write_text(f">chr1\n{text}\n")
    lines = ["##fileformat=VCFv4.2", "##contig=<ID=chr1>",
             '##INFO=<ID=LLR,Number=A,Type=Float,Description="x">',
             '##INFO=<ID=DP,Number=1,Type=Integer,Description="x">',
             "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]  # fmt: skip
    for site in SITES:
        ref = text[site]
        others = [base for base in "ACGT" if base != ref][:2]
        lines.append(f"chr1\t{site + 1}\t.\t{ref}\t{','.join(others)}\t.\t.\tLLR=-1.5,2.5;DP=3")
    Path("v.vcf").write_text("\n".join(lines) + "\n")
    return tmp_path


def _data(path: str) -> dict[str, Any]:
    found = re.search(r'id="page-data">(.*?)</script>', Path(path).read_text())
    assert found
    return json.loads(found.group(1))


def test_probabilities_are_those_of_a_plain_forward_pass(folder: Path) -> None:
    model = load("lm", head="language")
    with genome_store("g.fa") as store:
        found = base_probabilities(model, store, Interval("chr1", 200, 260), window=40)
        start = base_probabilities(model, store, Interval("chr1", 0, 30))
        codes = store.fetch(Interval("chr1", 160, 260))
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert start[0].tolist() == [0.25] * 4
    # The base at 215 is answered for by a window of 40 that begins at 180 (or 20 later, 200).
    ids = torch.tensor(codes[20:60].astype(np.int64) + 7)[None]
    with torch.no_grad():
        slow = model.model(input_ids=ids).logits[0, 34, 7:11].softmax(-1)
    np.testing.assert_allclose(found[15], slow.numpy(), atol=1e-5)
    own = log_likelihood(found, codes[40:])
    assert own[15] == pytest.approx(float(np.log(found[15, codes[55] & 7])), abs=1e-5)
    assert np.isnan(log_likelihood(np.full((1, 4), 0.25, np.float32), encode("N"))[0])


def test_a_region_and_its_variants(folder: Path) -> None:
    write_bigwig(Path("t.bw"), {"chr1": 1000}, [Run("chr1", 250, np.ones(9, np.float32))])
    Path("c.bed").write_text("chr1\t270\t290\tcalled\n")
    arguments = ["report", "lm", "--genome", "g.fa", "--region", "chr1:201-400", "--vcf", "v.vcf"]
    assert main([*arguments, "--track", "mine=t.bw", "c.bed", "-o", "p.html"]) == 0
    data = _data("p.html")
    assert data["locus"] == "chr1:201-400"
    names = [track["name"] for track in data["tracks"]]
    assert names == ["variants", "log-likelihood above uniform (nats)", "mine", "c"]
    cells = [row["cells"] for row in data["table"]["rows"]]
    assert [cell[1] for cell in cells] == [301, 301, 306, 306]
    assert [cell[-1] for cell in cells] == [-1.5, 2.5, -1.5, 2.5]
    assert [column["name"] for column in data["table"]["columns"]][-1] == "LLR"
    assert [logo["row"] for logo in data["variant_logos"]] == [0, 1, 2, 3]


def test_both_alleles_have_the_log_probabilities_of_a_plain_pass(folder: Path) -> None:
    text = Path("g.fa").read_text().split()[1]
    sites = [(100, 1, "other"), (300, 5, ""), (400, 1, "GATTACA"), (3, 2, ""), (995, 1, "AC")]
    lines = Path("v.vcf").read_text().splitlines()[:5]
    for site, size, more in sites:
        ref = text[site : site + size]
        alt = ref[0] + more if more != "other" else "ACGT"["ACGT".index(ref) - 1]
        lines.append(f"chr1\t{site + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    Path("w.vcf").write_text("\n".join(lines) + "\n")
    arguments = ["report", "lm", "--genome", "g.fa", "--vcf", "w.vcf", "--window", "60"]
    assert main([*arguments, "--flank", "9", "-o", "p.html"]) == 0
    found = _data("p.html")["overlays"]
    assert [one["row"] for one in found] == list(range(len(sites)))
    model = load("lm", head="language").model
    for one, line, (site, size, _) in zip(found, lines[5:], sites, strict=True):
        ref, alt = line.split("\t")[3:5]
        after = min(len(text), site + size + 24)
        begin = max(0, site - (60 - max(size, len(alt)) - (after - site - size)))
        first = max(begin, site - 24)
        assert one["start"] == first
        for name, allele, own in zip(("ref", "alt"), (ref, alt), one["alleles"], strict=True):
            whole = text[begin:site] + allele + text[site + size : after]
            ids = torch.tensor([["ACGT".index(base) + 7 for base in whole]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :, 7:11].double().log_softmax(-1)
            values = [np.log(0.25), *(float(logits[i - 1, ids[0, i] - 7]) for i in
                                      range(1, len(whole)))]  # fmt: skip
            assert one["before"] + own + one["after"] == whole[first - begin :]
            packed = one[name]
            steps = np.frombuffer(base64.b64decode(packed["data"]), dtype="<u2")
            width = packed["high"] - packed["low"]
            shown = packed["low"] + steps * width / 65534
            np.testing.assert_allclose(shown, values[first - begin :], atol=1e-4)
        # The allele has only what differs: the shared first base of an indel is before it.
        assert not {*map(len, one["alleles"])} - {0, 1, 2, 4, 7}


def test_substitutions_of_a_stretch(folder: Path) -> None:
    arguments = ["report", "lm", "--genome", "g.fa", "--region", "chr1:201-400", "-o", "p.html"]
    assert main([*arguments, "--ism", "chr1:301-320", "--window", "60"]) == 0
    data = _data("p.html")
    assert data["tracks"][-1]["name"].startswith("mean effect of a substitution")
    segment = data["tracks"][-1]["segments"][0]
    logo = next(logo for logo in data["logos"] if logo["kind"] == "effects")
    assert (segment["start"], logo["start"], logo["length"]) == (300, 300, 20)
    found = ism("lm", "chr1:301-320", "g.fa", window=60)
    scores = next(iter(found.scores.values()))
    assert segment["values"]["low"] == pytest.approx(float((scores.sum(1) / 3).min()), abs=1e-6)
    steps = np.frombuffer(base64.b64decode(logo["values"]["data"]), dtype="<u2").reshape(20, 4)
    own = ["ACGT".index(base) for base in found.ref]
    assert (steps[np.arange(20), own] == 65535).all()
    assert (steps == 65535).sum() == 20


def test_variants_alone_carry_what_is_around_them(folder: Path) -> None:
    arguments = ["report", "--genome", "g.fa", "--vcf", "v.vcf", "--flank", "20", "--no-model"]
    assert main([*arguments, "-o", "p.html", "--info", "DP"]) == 0
    data = _data("p.html")
    assert len(data["table"]["rows"]) == 6
    assert {row["cells"][-1] for row in data["table"]["rows"]} == {3.0}
    assert data["logos"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--region", "chr1:1-10"], "--genome is missing"),
        (["--genome", "g.fa", "--region", "chr9:1-10"], "no contig 'chr9'"),
        (["--genome", "g.fa", "--vcf", "v.vcf", "--region", "chr1:1-50"], "no variant"),
        (["--genome", "g.fa", "--region", "chr1:1-50", "--track", "v.bw"], "no track v.bw"),
        (["--genome", "g.fa", "--region", "chr1:1-50", "--ism", "chr1:40-60"], "not lie in"),
        ([], "name a run folder"),
    ],
)
def test_what_cannot_be_shown(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments, "-o", "p.html"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("p.html").exists()

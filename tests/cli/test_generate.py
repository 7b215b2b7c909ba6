from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megabase.cli.main import main
from megabase.genome.store import Genome
from megabase.inference.generation.generate import GenerateOptions, generate
from megabase.models.auto import load_model
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.checkpoints.checks import model_digest
from megabase.models.hyenadna import (
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("models")
    causal, labeled = HyenaDNAForCausalLM, HyenaDNAForSequenceClassification
    wanted = {
        "causal": (causal, {}),
        "two_sided": (causal, {"bidirectional": "two_sided"}),
        "labels": (labeled, {"num_labels": 2}),
    }
    save_tiny(folder, wanted, 120)
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    masked.save_pretrained(folder / "masked")
    return folder


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genome")
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 3_000))
    (folder / "g.fa").write_text(f">one\n{letters}\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    return folder / "g.mb"


def records(text: str) -> list[tuple[str, str]]:
    parts = [part.split("\n", 1) for part in text.split(">")[1:]]
    return [(head, body.replace("\n", "")) for head, body in parts]


def test_fasta_with_what_decides_it(models: Path, tmp_path: Path) -> None:
    (tmp_path / "p.fa").write_text(">a first\nACGTN\n>b\nGG\n")
    out = tmp_path / "o.fa"
    call = ["generate", str(models / "causal"), "-o", str(out), "--length", "100", "--seed", "3"]
    call += ["--prompts", str(tmp_path / "p.fa"), "--samples", "2", "--top-k", "3"]
    assert main(call) == 0
    model = load_model(models / "causal")
    options = GenerateOptions(length=100, samples=2, seed=3, top_k=3)
    wanted = generate(model, ["ACGTN", "GG"], options)
    found = records(out.read_text())
    assert [body for _, body in found] == [one.sequence for one in wanted]
    head = found[2][0]
    facts = "generated_2 |seed=3|number=2|top_k=3|prompt=b|written=100|stopped=length"
    for fact in (*facts.split("|"), f"model_sha256={model_digest(model)[:16]}"):
        assert fact in head
    assert max(len(line) for line in out.read_text().splitlines() if line[0] != ">") == 80
    assert main(call) == 2
    assert main([*call, "--overwrite", "--with-prompt"]) == 0
    assert records(out.read_text())[0][1] == "ACGTN" + wanted[0].sequence


def test_prompts_from_a_bed_file_and_the_check(
    models: Path, genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.bed").write_text(
        "one\t10\t30\tx\t0\t-\none\t5\t9\n".replace("5\t9", "5\t9\t.\t0\t+")
    )
    call = ["generate", str(models / "causal"), "--prompts", str(tmp_path / "p.bed")]
    call += ["--genome", str(genome), "--length", "60", "--with-prompt"]
    call += ["--check", str(genome), "--kmer", "2", "--findings", str(tmp_path / "c.json")]
    assert main(call) == 0
    said = capsys.readouterr()
    store = Genome(genome)
    (head, first), (_, second) = records(said.out)
    assert f" genome={store.name} genome_sha256={store.checksum[:16]} " in head
    assert first[:20] == _text(store, "one:11-30(-)")
    assert second[:4] == _text(store, "one:6-9")
    assert "longest exact match" in said.err
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["bases"] == 120
    assert found["genome_sha256"] == store.checksum
    assert found["options"]["length"] == 60
    assert found["model_sha256"] == model_digest(load_model(models / "causal"))
    assert 0 < found["kmer_distance"] < 1
    assert found["longest_copy"] == max(row["copy"]["length"] for row in found["sequences"])


def _text(store: Genome, place: str) -> str:
    from megabase.genome.alphabet import decode

    return decode(store.fetch(place))


def test_stop_and_letters(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["generate", str(models / "causal"), "--length", "100", "--letters", "at"]
    assert main([*call, "--stop", "tta", "AAA"]) == 0
    ((head, body),) = records(capsys.readouterr().out)
    assert body.endswith(("TTA", "AAA"))
    assert set(body) == {"A", "T"}
    assert f"stopped={body[-3:]}" in head


@pytest.fixture
def many(models: Path, tmp_path: Path) -> list[str]:
    """Give a call that has several chunks of prompts of several lengths."""
    rng = np.random.default_rng(1)
    lines = [f">p{n}\n{''.join(rng.choice(list('ACGT'), n % 3))}A\n" for n in range(21)]
    (tmp_path / "p.fa").write_text("".join(lines))
    call = ["generate", str(models / "causal"), "--prompts", str(tmp_path / "p.fa")]
    return [*call, "--length", "110", "--samples", "2", "--batch-size", "2"]


def test_the_number_of_processes_makes_no_difference(
    many: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for devices in ("1", "2"):
        out = str(tmp_path / f"{devices}.fa")
        assert main([*many, "-o", out, "--workers", devices]) == 0
    whole = (tmp_path / "1.fa").read_text()
    assert (tmp_path / "2.fa").read_text() == whole
    assert len(records(whole)) == 42
    capsys.readouterr()
    assert main(many) == 0
    assert capsys.readouterr().out == whole


def test_a_killed_run_goes_on_to_the_same_bytes(
    many: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [*many, "--workers", "1"]
    assert main([*call, "-o", str(tmp_path / "whole.fa")]) == 0
    out = tmp_path / "o.fa"
    parts = tmp_path / "o.fa.partial"
    process = subprocess.Popen(
        [sys.executable, "-m", "megabase", *call, "-o", str(out)], stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(parts.glob("part-*")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    kept = sorted(parts.glob("part-*"))
    assert kept
    assert not out.exists()
    (parts / ".1.part-00000009.jsonl").write_text("half of a part")
    before = kept[0].stat().st_mtime_ns
    assert main([*call, "-o", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*call, "-o", str(out), "--resume", "--seed", "1"]) == 2
    assert "options.seed: 0 then, 1 now" in capsys.readouterr().err
    assert kept[0].stat().st_mtime_ns == before
    assert main([*call, "-o", str(out), "--resume"]) == 0
    assert out.read_bytes() == (tmp_path / "whole.fa").read_bytes()
    assert not parts.exists()


def test_bgzip_that_samtools_reads(models: Path, tmp_path: Path) -> None:
    import pysam

    call = ["generate", str(models / "causal"), "--length", "100", "--prompt", "ACG"]
    assert main([*call, "-o", str(tmp_path / "o.fa.gz")]) == 0
    assert main([*call, "-o", str(tmp_path / "o.fa")]) == 0
    pysam.faidx(str(tmp_path / "o.fa.gz"))  # pyright: ignore[reportAttributeAccessIssue]
    with pysam.FastaFile(str(tmp_path / "o.fa.gz")) as found:
        assert found.fetch("generated_0") == records((tmp_path / "o.fa").read_text())[0][1]


@pytest.mark.parametrize(
    ("model", "more", "problem"),
    [
        ("causal", ["--length", "121"], "takes at most 120 positions"),
        ("causal", ["--length", "100", "--prompt", "A" * 21], "takes at most 120 positions"),
        ("causal", ["--length", "0"], "must be 1 or more"),
        ("causal", ["--prompt", "ACX"], "character 'X'"),
        ("causal", ["--prompts", "none.fa"], "there is no file none.fa"),
        ("causal", ["--prompt", "A", "--prompts", "p.fa"], "not both"),
        ("causal", ["--genome", "g.mb"], "--prompts is missing"),
        ("causal", ["--findings", "c.json"], "--check GENOME, which is missing"),
        ("causal", ["--check", "g.mb", "--kmer", "11"], "between 1 and 10"),
        ("causal", ["--check", "none.mb"], "there is no genome none.mb"),
        ("causal", ["--top-p", "0", "--letters", "ACU"], "top_p must lie.*letters must be"),
        ("two_sided", [], "bidirectional"),
        ("masked", [], "fills masked bases"),
        ("labels", [], "language-model head"),
        ("nothing", [], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    more: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [] if "--length" in more else ["--length", "5"]
    assert main(["generate", str(models / model), "-o", "o.fa", *short, *more]) == 2
    said = capsys.readouterr()
    assert re.search(problem, said.err)
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

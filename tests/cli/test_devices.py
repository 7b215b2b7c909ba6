"""Every verb writes the same bytes however many processes share its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megabase.cli.main import main
from megabase.models.hyenadna import (
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
)
from megabase.models.tokenizers.character import DNATokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, save_tiny: Callable[..., None]) -> Path:
    """Tiny models, and inputs of several chunks."""
    folder = tmp_path_factory.mktemp("devices")
    options = {"initializer_range": 0.5, "id2label": {0: "no", 1: "yes"}}
    families = {
        "lm": HyenaDNAForCausalLM,
        "whole": HyenaDNAForSequenceClassification,
        "bases": HyenaDNAForTokenClassification,
    }
    save_tiny(folder, {name: (family, options) for name, family in families.items()}, 66)
    for name in families:
        DNATokenizer(model_max_length=66).save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGTN"), n)) for n in rng.integers(4, 20, 4_200)]
    (folder / "many.fa").write_text("".join(f">s{n}\n{x}\n" for n, x in enumerate(texts)))
    (folder / "some.fa").write_text("".join(f">s{n}\n{x}\n" for n, x in enumerate(texts[:300])))
    contigs = ["".join(rng.choice(list("ACGT"), 300)) for _ in range(3)]
    (folder / "g.fa").write_text("".join(f">chr{n}\n{x}\n" for n, x in enumerate(contigs, 1)))
    return folder


@pytest.mark.parametrize(
    ("call", "output"),
    [
        ("embed lm many.fa --strands both", "o.parquet"),
        ("embed lm many.fa --pooling none", "o.npy"),
        ("predict whole many.fa --strands both", "o.tsv"),
        ("predict bases --genome g.fa --window 50", "o.bw"),
        ("predict bases --genome g.fa --window 50 --threshold 0.5", "o.bed"),
        ("ism lm chr1:1-300 g.fa --window 40", "o.npz"),
        ("attribute lm some.fa --steps 4", "o.parquet"),
    ],
)
def test_one_process_and_two_write_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, output: str
) -> None:
    monkeypatch.chdir(folder)
    for devices in ("1", "2"):
        (tmp_path / devices).mkdir()
        out = str(tmp_path / devices / output)
        assert main([*call.split(), "-o", out, "--workers", devices, "--device", "cpu"]) == 0
    assert (tmp_path / "1" / output).read_bytes() == (tmp_path / "2" / output).read_bytes()


def test_processes_end_with_the_one_that_began_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.tsv"
    command = [sys.executable, "-m", "megabase", "attribute", "lm", "many.fa", "-o",
               str(out.with_suffix(".parquet")), "--steps", "32", "--workers", "2"]  # fmt: skip
    parent = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    if not children.exists():
        parent.kill()
        parent.wait()
        pytest.skip("the system does not list the children of a process")
    parts = out.with_name("o.parquet.partial")
    found: list[str] = []
    while parent.poll() is None and not list(parts.glob("part-*")):
        found = children.read_text().split() or found
        time.sleep(0.01)
    assert len(found) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    waited = 0
    while any(_runs(pid) for pid in found) and waited < 1_000:
        time.sleep(0.01)
        waited += 1
    assert not any(_runs(pid) for pid in found)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_device_that_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "embed",
        "default",
        str(folder / "some.fa"),
        "-o",
        str(tmp_path / "o.npy"),
        "--device",
        "abacus",
    ]
    assert main(call) == 2
    said = capsys.readouterr().err
    assert said.startswith("megabase embed: error: --device abacus")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""Verbs of processes that share each sequence write what one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyBigWig
import pytest

from megabase.cli.main import main

SCRIPT = Path(__file__).with_name("verbs.py")

CLOSE = 2e-5
"""Largest difference in float32 of sums over 61 bases and of probabilities; 4e-6 is seen."""


def test_three_processes_write_what_one_does(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    files = sorted(tmp_path.glob("*-1.*"))
    assert len(files) == 13
    for one in files:
        other = one.with_name(one.name.replace("-1.", "-3."))
        if one.suffix == ".parquet":
            expected, found = (pl.read_parquet(path) for path in (one, other))
            assert expected.columns == found.columns
            assert expected.height == 4
            for name, kind in expected.schema.items():
                if kind.is_nested():
                    expected, found = (t.explode(name) for t in (expected, found))
                if kind.is_float() or kind.is_nested():
                    np.testing.assert_allclose(found[name], expected[name], atol=CLOSE)
                else:
                    assert found[name].equals(expected[name])
            said = [pl.read_parquet_metadata(path)["megabase"] for path in (one, other)]
            assert said[0] == said[1]
        elif one.suffix == ".bw":
            with pyBigWig.open(str(one)) as first, pyBigWig.open(str(other)) as second:
                values = [np.array(track.values("chr1", 0, 500)) for track in (first, second)]
            assert 300 < np.isfinite(values[0]).sum() < 500  # N has none
            np.testing.assert_allclose(*values, atol=CLOSE)
        elif one.suffix == ".json":
            overall = [json.loads(path.read_text())["overall"] for path in (one, other)]
            assert overall[1] == pytest.approx(overall[0], abs=CLOSE)
        else:
            called = [
                [line.split("\t")[:3] for line in path.read_text().splitlines()]
                for path in (one, other)
            ]
            assert called[0] == called[1] != []


@pytest.mark.slow
def test_torchrun_scores_as_one_process_does(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list("ACGT"), n)) for n in (48, 61, 300)]
    (tmp_path / "a.fa").write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
    call = ["score", "default", str(tmp_path / "a.fa"), "--device", "cpu", "-o"]
    one, two = (tmp_path / f"{name}.parquet" for name in ("one", "two"))
    assert main([*call, str(one), "--workers", "1"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]

    def shared() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun, "2", "-m", "megabase", *call, str(two), "--context-parallel"],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip

    first = shared()
    assert first.returncode == 0, first.stderr
    assert first.stderr.count(f"wrote {two}") == 1
    expected, found = (pl.read_parquet(path) for path in (one, two))
    names = ["log_likelihood", "perplexity"]
    assert found.drop(names).equals(expected.drop(names))
    np.testing.assert_allclose(found[names].to_numpy(), expected[names].to_numpy(), rtol=CLOSE)
    again = shared()  # refused by the first process, while the other waits for it
    assert again.returncode != 0
    for text in ("exists already and is not replaced", "another process ended before this one"):
        assert again.stderr.count(text) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "2"], "--workers is not for --context-parallel"),
        (["--resume", "--shard", "1/2"], "--shard, --resume are not for --context-parallel"),
        ([], "there is one; start them with: torchrun"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n")
    call = ["score", "default", str(tmp_path / "a.fa"), "-o", str(tmp_path / "a.tsv")]
    assert main([*call, "--context-parallel", *more]) == 2
    assert message in capsys.readouterr().err


def test_a_prompt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n")
    call = ["predict", "default", str(tmp_path / "a.fa"), "-o", str(tmp_path / "a.tsv")]
    assert main([*call, "--context-parallel", "--prompt", str(tmp_path)]) == 2
    assert "--prompt is not for --context-parallel" in capsys.readouterr().err

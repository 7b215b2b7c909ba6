"""Runs in processes of their own: killed at any moment, stopped, and two sharing a batch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megabase.training.checkpoint import Checkpoints

FINAL = Path("last/training_state")


def start(script: Path, **fields: Any) -> subprocess.Popen[str]:
    fields["output"] = str(fields["output"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, str(script), json.dumps(fields)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return json.loads(out.strip().splitlines()[-1])


def same_bytes(run: Path, other: Path) -> bool:
    names = ("model.safetensors", "optimizer.safetensors")
    return all((run / FINAL / n).read_bytes() == (other / FINAL / n).read_bytes() for n in names)


def test_killed_runs_end_as_if_nothing_had_happened(toy_script: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, resumed each time (benchmarks/kill_resume.py does many more)."""
    fields: dict[str, Any] = {"steps": 40, "checkpoint_every": 3, "keep": 1}
    finish(start(toy_script, output=tmp_path / "whole", **fields))
    draw = random.Random(4)
    run = tmp_path / "killed"
    for attempt in range(3):
        process = start(toy_script, output=run, resume=attempt > 0, pause=0.01, **fields)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # From before the first checkpoint to somewhere in the middle.
        time.sleep(draw.uniform(0.2, 1.2))
        process.kill()
        process.communicate()
        if not (run / "config.yaml").exists():
            run = tmp_path / f"killed{attempt}"  # killed before the folder was made
            finish(start(toy_script, output=run, **fields))
        for folder in Checkpoints(run).finished():
            load_file(folder / "training_state/model.safetensors")
            Checkpoints.progress_of(folder)
    finish(start(toy_script, output=run, resume=True, **fields))
    assert same_bytes(tmp_path / "whole", run)


def test_sigterm_saves_and_says_so_by_its_status(toy_script: Path, tmp_path: Path) -> None:
    process = start(toy_script, output=tmp_path, steps=400, pause=0.02, checkpoint_every=None)
    while not (tmp_path / "metrics.jsonl").exists() or (
        len((tmp_path / "metrics.jsonl").read_text().splitlines()) < 5
    ):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    stopped = finish(process, 143)["step"]
    assert 5 <= stopped < 400
    assert Checkpoints.progress_of(tmp_path / "last").step == stopped


@pytest.mark.parametrize("precision", ["fp32"])
def test_two_processes_agree_with_one(toy_script: Path, tmp_path: Path, precision: str) -> None:
    """20 steps over windows with varying numbers of valid tokens; dropout off, as it differs."""
    fields: dict[str, Any] = {"dropout": 0.0, "precision": precision}
    finish(start(toy_script, output=tmp_path / "one", **fields))
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "threads": 1}
    finish(start(toy_script, output=tmp_path / "two", devices=two, **fields))
    a = load_file(tmp_path / "one" / FINAL / "model.safetensors")
    b = load_file(tmp_path / "two" / FINAL / "model.safetensors")
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5

    def losses(run: str) -> list[float]:
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [line["loss"] for line in found if line["kind"] in ("train", "validation")]

    assert len(losses("one")) == 24
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)
    # A run begun by two continues with one, and ends within rounding of the same weights.
    folder = tmp_path / "two" / "checkpoints" / "step-00000020"
    assert Checkpoints.progress_of(folder).step == 20


def test_muon_in_two_processes_takes_the_steps_of_one(toy_script: Path, tmp_path: Path) -> None:
    """Its products are bfloat16: a step differs by their rounding, not by its direction."""
    fields: dict[str, Any] = {"hyena": 32, "eval_every": None, "optim": {"name": "muon"}}
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "threads": 1}
    finish(start(toy_script, output=tmp_path / "start", steps=1, **fields))
    finish(start(toy_script, output=tmp_path / "one", steps=4, **fields))
    finish(start(toy_script, output=tmp_path / "two", steps=4, devices=two, **fields))
    first, one, other = (
        load_file(tmp_path / name / FINAL / "model.safetensors") for name in ("start", "one", "two")
    )
    matrices = [name for name in one if name.endswith(("in_proj.weight", "fc1.weight"))]
    assert len(matrices) == 6
    for name in matrices:
        moved = (one[name] - first[name]).norm()
        assert moved > 0.01
        assert (one[name] - other[name]).norm() < 0.05 * moved


@pytest.mark.parametrize(
    ("devices", "replicas"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_shards_take_the_steps_of_one_process(
    toy_script: Path, tmp_path: Path, devices: int, replicas: int
) -> None:
    """Three steps of HyenaDNA with sharded blocks; one process continues their checkpoint."""
    fields: dict[str, Any] = {"hyena": 16, "steps": 3, "eval_every": None}
    finish(start(toy_script, output=tmp_path / "one", **fields))
    many = {"accelerator": "cpu", "devices": devices, "strategy": "fsdp", "replicas": replicas}
    finish(start(toy_script, output=tmp_path / "many", devices={**many, "threads": 1}, **fields))
    a = load_file(tmp_path / "one" / FINAL / "model.safetensors")
    b = load_file(tmp_path / "many" / FINAL / "model.safetensors")
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 5e-5
    more = {**fields, "steps": 4, "resume": True}
    assert finish(start(toy_script, output=tmp_path / "many", **more))["step"] == 4

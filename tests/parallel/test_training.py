"""Pretraining whose processes share each sequence, against one process; killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megabase.errors import ConfigError
from megabase.settings import DeviceConfig, Stage, TrainConfig
from megabase.tasks.config import FinetuneConfig

SCRIPT = Path(__file__).with_name("train.py")

CLOSE = 1e-5
"""Largest difference of a weight after ten steps in float32; what is seen is 1e-7."""


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_ten_steps_are_those_of_one_process_and_survive_a_kill(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    name = Path("last/training_state/model.safetensors")
    one, expected = load_file(tmp_path / "one" / name), records(tmp_path / "one")
    for run in ("two by two", "killed"):
        found = load_file(tmp_path / run / name)
        assert found.keys() == one.keys()
        assert max(float((found[key] - one[key]).abs().max()) for key in one) < CLOSE
        lines = [line for line in records(tmp_path / run) if line["kind"] != "checkpoint"]
        wanted = [line for line in expected if line["kind"] != "checkpoint"]
        assert len(lines) == len(wanted) == 12
        for line, other in zip(lines, wanted, strict=True):
            # Every target is counted once, whatever the processes share.
            assert (line["step"], line["count"]) == (other["step"], other["count"])
            assert line["loss"] == pytest.approx(other["loss"], abs=CLOSE)
            assert line["acgt_perplexity"] == pytest.approx(other["acgt_perplexity"], abs=1e-4)
    assert "context_parallel: 3" in (tmp_path / "killed" / "config.yaml").read_text()


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="strategy is fsdp"):
        DeviceConfig(context_parallel=2, strategy="fsdp")
    devices = DeviceConfig(context_parallel=2)
    with pytest.raises(ConfigError, match="they exclude each other"):
        TrainConfig(output="x", steps=1, stages=(Stage(length=8),), devices=devices, compile=True)
    with pytest.raises(ConfigError, match="only pretraining lets devices share"):
        FinetuneConfig(output="x", train="t.csv", model="default", devices=devices)

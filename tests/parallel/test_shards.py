"""A sequence on 2, 3 and 4 processes gives the loss, logits and gradients of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megabase.errors import ConfigError
from megabase.parallel import context_parallel

SCRIPT = Path(__file__).with_name("ranks.py")

EXACT = 1e-10
"""Largest difference in float64; what is seen is 1e-15."""


def test_processes_that_are_not_joined_are_an_error() -> None:
    with pytest.raises(ConfigError, match="not joined; start them with torchrun"):
        context_parallel(torch.nn.Linear(1, 1), None)


def run(folder: Path, cases: str) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), cases],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    found: dict[str, dict[str, float]] = {}
    for size in (2, 3, 4):
        for rank in range(size):
            for case, values in json.loads((folder / f"{size}-{rank}.json").read_text()).items():
                found[f"{size} processes, rank {rank}: {case}"] = values
    return found


def check(found: dict[str, dict[str, float]]) -> None:
    worst: dict[str, Any] = {
        case: values
        for case, values in found.items()
        if not all(value <= EXACT for key, value in values.items() if key != "scale")
    }
    assert not worst  # a difference that is not a number, too
    # Gradients that vanish would agree with anything.
    assert all(values["scale"] > 0.1 for values in found.values() if "scale" in values)


def test_loss_logits_and_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    found = run(tmp_path, "small")
    assert len(found) > 80
    check(found)


@pytest.mark.slow
def test_every_model_length_and_padding(tmp_path: Path) -> None:
    check(run(tmp_path, "every"))

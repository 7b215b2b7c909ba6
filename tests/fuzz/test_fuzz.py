"""A short run of the fuzzer: a few thousand mutated files of every kind, always the same ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read in /proc")
def test_only_errors_for_people_come_out_of_mutated_files(tmp_path: Path) -> None:
    for package in ("pybigtools", "tokenizers"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "tests.fuzz", "--count", "2000", "--seed", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2,000 inputs in" in done.stdout

"""The measurement of the selective scan compares before it reports, and covers what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.speed import scan
from benchmarks.speed.command import main
from benchmarks.speed.config import BenchError, ScanConfig
from benchmarks.speed.scan import in_child

from megabase.ops import kernels

SMALL: dict[str, Any] = {"length": 40, "channels": 8, "states": 4, "repeats": 1, "inner": 1}


def test_every_part_is_measured() -> None:
    found = scan.run_scan(ScanConfig(**SMALL))
    assert found["scan"]["reference, forward and backward"]["median"] > 0
    assert found["model"]["ratios"]["transformers over fast"] > 0
    assert found["model"]["largest_difference"] < 1e-4
    if kernels.package() is None:
        assert "not installed" in found["kernels"]
    else:
        assert found["equality"]["kernels"] < scan.TOLERANCE
        assert found["scan"]["ratios"]["forward over its exponentials"] > 0


def test_nothing_is_reported_when_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    both = scan._both_ways
    calls: list[int] = []

    def wrong(*given: Any) -> list[torch.Tensor]:
        calls.append(1)
        found = both(*given)
        return found if len(calls) % 2 else [x + 1e-9 for x in found]

    monkeypatch.setattr(scan, "_both_ways", wrong)
    with pytest.raises(BenchError, match="nothing is reported"):
        scan.run_scan(ScanConfig(**SMALL))


def test_memory_is_that_of_a_process_of_its_own() -> None:
    row = in_child("fast", 20_000, 16, 4, True)
    assert row["stored_bytes"] == 2 * 4 * 20_000 * (16 * 4 + 4 * 2)
    assert row["peak_bytes"] > row["stored_bytes"] // 2
    with pytest.raises(BenchError, match="expected one of"):
        in_child("triton", 20, 16, 4, True)


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.json"
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    assert main(["scan", *flags, "--transformers=false", "-o", str(path)]) == 0
    assert json.loads(path.read_text())["config"]["channels"] == 8
    assert "fast, forward" in capsys.readouterr().out
    assert main(["scan", *flags, "-o", str(path)]) == 2
    assert main(["scan", "--length=0"]) == 2

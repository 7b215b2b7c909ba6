"""The measurement of the selective scan compares before it reports, and covers what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import scan
from benchmarks.__main__ import main
from benchmarks.harness import BenchError, in_child
from benchmarks.scan import ScanConfig

from megabase.ops import kernels

SMALL: dict[str, Any] = {"length": 40, "channels": 8, "states": 4, "repeats": 1, "inner": 1}


def test_every_part_is_measured() -> None:
    found = scan.run_scan(ScanConfig(**SMALL), print)
    assert found["scan"]["times"]["reference, forward and backward"]["median"] > 0
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
        scan.run_scan(ScanConfig(**SMALL), print)


def test_memory_is_that_of_a_process_of_its_own() -> None:
    spec = {"length": 20_000, "channels": 16, "states": 4, "backward": True}
    row = in_child("benchmarks.scan:measure", backend="fast", **spec)
    assert row["stored_bytes"] == 2 * 4 * 20_000 * (16 * 4 + 4 * 2)
    assert row["peak_bytes"] > row["stored_bytes"] // 2
    wrong = in_child("benchmarks.scan:measure", backend="cuda", **spec)
    assert wrong["status"] == "unsupported"
    assert "expected one of" in wrong["reason"]


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.json"
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    assert main(["scan", *flags, "--transformers=false", "-o", str(path)]) == 0
    assert json.loads(path.read_text())["config"]["channels"] == 8
    assert "fast, forward" in capsys.readouterr().out
    assert main(["scan", "--length=0"]) == 2

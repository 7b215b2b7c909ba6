"""The campaign for a GPU runs at tiny sizes on a CPU, and loses no row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu, gpu_page
from benchmarks.__main__ import main
from benchmarks.harness import BenchError


def _rows(folder: Path, part: str, seconds: float = 100.0) -> Any:
    spec = {"rows": folder / "rows", "side": "plain", "small": True, "device": "cpu"}
    rows = gpu._Rows(spec)
    rows.part, rows.ends = part, time.monotonic() + seconds
    return rows


def _written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows").read_text().splitlines()]


def test_operators_are_compared_and_a_wrong_one_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _rows(tmp_path, "operators")
    gpu._operators(rows)
    assert len(_written(tmp_path)) == 8
    assert all(row["within"] for row in _written(tmp_path))
    x = gpu._cases(True)["long_conv"][0]
    wrong = lambda u, k, s: u * (1 if u.dtype == torch.float64 else 1.1) + k.sum() + s.sum()  # noqa: E731
    monkeypatch.setattr(gpu, "_cases", lambda _: {"wrong": (x, wrong)})
    gpu._operators(rows)
    assert not _written(tmp_path)[-1]["within"]


def test_what_fails_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    def fail(error: Exception) -> dict[str, Any]:
        raise error

    rows = _rows(tmp_path, "step")
    rows.run({}, lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried")))
    rows.run({}, lambda: fail(ImportError("No module named 'x'")))
    rows.run({}, lambda: fail(RuntimeError("first line\nsecond")))
    rows.run({}, dict, expected=1000.0)
    rows.run({}, lambda: {"seconds": 1.0})
    with pytest.raises(BenchError):
        rows.run({}, lambda: fail(RuntimeError("CUDA error: an illegal memory access")))
    found = _written(tmp_path)
    assert [row["status"] for row in found] == [
        "out of memory", "unsupported", "failed", "not run", "measured", "failed",
    ]  # fmt: skip
    assert found[2]["reason"] == "first line"


def test_shares_are_those_of_a_copy_and_a_product() -> None:
    done = {"status": "measured"}
    shape = {"part": "step", "side": "plain", "batch": 1, "length": 8, **done}
    rows: list[dict[str, Any]] = [
        {"part": "limits", "what": "copy", "bytes_per_second": 100.0, **done},
        {"part": "limits", "what": "product", "dtype": "float32", "flops_per_second": 50.0, **done},
        {**shape, "dtype": "float32", "seconds": 2.0, "product_flops": 10},
        {**shape, "what": "counted", "bytes": 60},
    ]
    gpu._shares(rows)
    assert rows[2]["share_of_copy"] == 0.3
    assert rows[2]["share_of_product"] == 0.1


@pytest.mark.slow
def test_the_whole_of_it_at_tiny_sizes(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--small", "true", "--backends", "[plain]", "-o", str(out)]
    assert main(["gpu", *options]) == 0
    found = json.loads(out.read_text())
    missed = [row for row in found["rows"] if row["status"] not in ("measured", "unsupported")]
    assert not missed
    sides = {(row["part"], row["side"]) for row in found["rows"]}
    assert sides == {
        (part, side) for side, parts in gpu.GpuConfig(backends=["plain"]).sides().items()
        for part in parts
    }  # fmt: skip
    page = out.with_suffix(".html").read_text()
    assert all(heading in page for heading in gpu_page._HEADINGS.values())
    assert "data:image/svg+xml" in page

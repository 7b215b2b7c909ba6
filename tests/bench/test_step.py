"""The measurements of a training step: what they compare, what they refuse, what they count."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.speed import step
from benchmarks.speed.command import main
from benchmarks.speed.config import BenchError, LoadConfig, MemoryConfig, StepConfig
from benchmarks.speed.load import run_load
from benchmarks.speed.plain import PlainHyenaDNA
from benchmarks.speed.point import build_model
from benchmarks.speed.runtime import Point
from benchmarks.speed.step import Limit, compare_gradients, product_sizes, run_memory, run_step

SMALL = StepConfig(
    batch=2, length=48, width=16, layers=2, repeats=1, as_it_comes=False, compare_length=48
)


def test_the_published_way_computes_the_same_model() -> None:
    torch.manual_seed(0)
    ours = build_model("hyenadna", 16, 2, 70).eval()
    plain = PlainHyenaDNA(ours.config).eval()
    plain.load_state_dict(ours.state_dict())
    ids = torch.randint(7, 11, (2, 61))
    torch.testing.assert_close(plain(ids), ours(input_ids=ids).logits)
    assert compare_gradients(SMALL)["largest_difference"] < 1e-5


def test_nothing_is_reported_when_gradients_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PlainHyenaDNA):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return 1.01 * super().forward(input_ids)

    monkeypatch.setattr(step, "PlainHyenaDNA", Wrong)
    with pytest.raises(BenchError, match="nothing is reported"):
        run_step(SMALL)


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_a_step_is_measured(precision: str) -> None:
    config = StepConfig(**{**SMALL.__dict__, "precision": precision})
    found = run_step(config)
    assert {"megabase", "plain", "products", "products_in_cache", "transforms"} == {
        *found["seconds"]
    }
    assert found["ratios"]["plain"] == found["seconds"]["plain"] / found["seconds"]["megabase"]
    assert found["share_of_limit"] > 0
    json.dumps(found)


def test_the_limit_counts_the_products_of_the_published_way() -> None:
    config = build_model("hyenadna", 16, 2, 70).config
    sizes = product_sizes(config, 128, 64)
    multiplications = sum(rows * inputs * outputs for rows, inputs, outputs in sizes)
    d, f = 16, 64
    layer = 128 * 12 * d * d + 64 * (5 * f + 2 * f * f + f * d)
    assert multiplications == 2 * layer + 128 * d * 16
    limit = Limit(config, 2, 64, torch.float32)
    assert min(limit.products(), limit.products_in_cache(), limit.transforms()) > 0
    assert [limit._is_filter(n) for n in (0, 3, 4, 7, 8, len(sizes) - 1)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_memory_is_set_beside_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "compare_gradients", lambda _: {
        "largest_difference": 0.0, "name": "loss"})  # fmt: skip
    specs: list[dict[str, Any]] = []

    def measure(spec: dict[str, Any], limit: int | None) -> Point:
        specs.append(spec)
        if spec["model"] == "plain":
            return Point("plain", False, spec["length"], "memory limit", "over 1 GiB")
        result = {"loaded_bytes": 5e8, "peak_bytes": 9e8, "seconds": 1.0, "parameters": 1000}
        return Point(spec["model"], False, spec["length"], "measured", None, result)

    found = run_memory(MemoryConfig(length=1000, width=16), measure_point=measure)
    assert found["sides"]["megabase"]["above_idle_bytes"] == 4e8
    assert "over 1 GiB" in found["sides"]["plain"]["failed"]
    assert found["estimate_to_peak"] == found["estimate"]["total"] / 9e8
    assert all(spec["optimizer"] and spec["repeats"] == 1 for spec in specs)
    config = MemoryConfig(length=1000, width=16, steps=1, checkpointing=True, stretch=2)
    small = run_memory(config, measure_point=measure)
    assert (specs[-2]["repeats"], specs[-2]["stretch"]) == (0, 2)
    assert small["estimate"]["activations"] < found["estimate"]["activations"]


def test_stretches_need_checkpointing() -> None:
    with pytest.raises(BenchError, match="stretch needs checkpointing"):
        MemoryConfig(stretch=2)


def test_the_data_path_is_measured() -> None:
    found = run_load(LoadConfig(bases=20_000, batch=3, length=100, repeats=2))
    assert set(found["seconds"]) == {"draw", "batch", "ids", "wait"}
    assert found["tokens_per_second"] > 0


def test_settings_are_checked_together() -> None:
    with pytest.raises(BenchError, match=r"batch must be 1.*precision is one of"):
        StepConfig(batch=0, precision="int8")
    with pytest.raises(BenchError, match="time_limit"):
        MemoryConfig(time_limit=0)
    with pytest.raises(BenchError, match="twice the length"):
        LoadConfig(bases=100)


@pytest.mark.parametrize("name", ["step", "memory", "load"])
def test_help_imports_no_torch(name: str) -> None:
    code = (
        "import sys\n"
        "from benchmarks.speed.command import main\n"
        "try:\n"
        f"    main(['{name}', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--overwrite" in done.stdout


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    options = ["--bases", "20000", "--length", "50", "--repeats", "1", "-o", str(out)]
    assert main(["load", *options]) == 0
    assert json.loads(out.read_text())["kind"] == "load"
    assert main(["load", *options]) == 2
    assert "exists already" in capsys.readouterr().err

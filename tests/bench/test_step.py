"""The measurements of a training step: what they compare, what they refuse, what they count."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from benchmarks import step
from benchmarks.data import LoadConfig, StoreConfig, run_load, run_store
from benchmarks.harness import BenchError, build_model
from benchmarks.plain import PlainHyenaDNA
from benchmarks.step import (
    MemoryConfig,
    StepConfig,
    bare_work,
    compare_gradients,
    linear_maps,
    run_memory,
    run_step,
)

from megabase.errors import ConfigError

SMALL = StepConfig(batch=2, length=48, width=16, layers=2, repeats=1, as_it_comes=False)


def test_the_published_way_computes_the_same_model() -> None:
    torch.manual_seed(0)
    ours = build_model("hyenadna", 16, 2, 70).eval()
    plain = PlainHyenaDNA(ours).eval()
    ids = torch.randint(7, 11, (2, 61))
    torch.testing.assert_close(plain(ids), ours(input_ids=ids).logits)
    assert compare_gradients(SMALL)["largest_difference"] < 1e-5


def test_nothing_is_reported_when_gradients_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PlainHyenaDNA):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return 1.01 * super().forward(input_ids)

    monkeypatch.setattr(step, "PlainHyenaDNA", Wrong)
    with pytest.raises(BenchError, match="nothing is reported"):
        run_step(SMALL, print)


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_a_step_is_measured(precision: str) -> None:
    config = StepConfig(**{**SMALL.__dict__, "precision": precision})
    found = run_step(config, print)
    assert {"megabase", "plain", "products", "products_in_cache", "transforms"} == {
        *found["seconds"]
    }
    assert found["ratios"]["plain"] == found["seconds"]["plain"] / found["seconds"]["megabase"]
    assert found["share_of_limit"] > 0
    json.dumps(found)


def test_the_limit_counts_the_products_of_the_published_way() -> None:
    config = build_model("hyenadna", 16, 2, 70).config
    maps = linear_maps(config, 2, 64, torch.bfloat16)
    multiplications = sum(rows * inputs * outputs for rows, inputs, outputs, _ in maps)
    d, f = 16, 64
    filters = 64 * (5 * f + 2 * f * f + f * d)
    assert multiplications == 2 * (128 * 12 * d * d + filters) + 128 * d * 16
    assert 2 * filters == sum(m * n * k for m, n, k, dtype in maps if dtype == torch.float32)
    for run in bare_work(config, 2, 64, torch.float32).values():
        run()


def test_memory_is_set_beside_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = {"largest_difference": 0.0, "name": "loss"}
    monkeypatch.setattr(step, "compare_gradients", lambda _: equal)
    specs: list[dict[str, Any]] = []

    def measure(_: str, **spec: Any) -> dict[str, Any]:
        specs.append(spec)
        if spec["model"] == "plain":
            return {"status": "memory limit", "reason": "over 1 GiB"}
        return {"status": "measured", "loaded_bytes": 5e8, "peak_bytes": 9e8, "seconds": 1.0,
                "parameters": 1000}  # fmt: skip

    monkeypatch.setattr(step, "in_child", measure)
    found = run_memory(MemoryConfig(length=1000, width=16), print)
    assert found["sides"]["megabase"]["above_idle_bytes"] == 4e8
    assert "over 1 GiB" in found["sides"]["the published way"]["failed"]
    assert found["estimate_to_peak"] == found["estimate"]["total"] / 9e8
    assert all(spec["optimizer"] and spec["repeats"] == 1 for spec in specs)
    config = MemoryConfig(length=1000, width=16, steps=1, checkpointing=True, stretch=2)
    small = run_memory(config, print)
    assert (specs[-2]["repeats"], specs[-2]["stretch"]) == (0, 2)
    assert small["estimate"]["activations"] < found["estimate"]["activations"]


def test_stretches_need_checkpointing() -> None:
    with pytest.raises(ConfigError, match="stretch needs checkpointing"):
        MemoryConfig(stretch=2)


def test_the_data_path_is_measured() -> None:
    found = run_load(LoadConfig(bases=20_000, batch=3, length=100, repeats=2), print)
    assert set(found["seconds"]) == {"draw", "batch", "ids", "wait"}
    assert found["tokens_per_second"] > 0
    assert 0 < found["share_of_step"] < 1


def test_a_store_is_measured() -> None:
    found = run_store(StoreConfig(bases=30_000, contigs=3, repeats=1), print)
    assert found["build"]["seconds"] > 0
    assert list(found["fetch_seconds"]) == [1024]
    assert found["fetch_seconds"][1024]["together"] > 0


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError, match=r"precision is one of.*|batch is 0.*"):
        StepConfig(batch=0, precision="int8")
    with pytest.raises(ConfigError, match="time_limit"):
        MemoryConfig(time_limit=0)
    with pytest.raises(ConfigError, match="twice the length"):
        LoadConfig(bases=100)

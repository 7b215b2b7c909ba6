"""The measurement of runtime: limits, what is recorded, and one real point."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import runtime
from benchmarks.harness import in_child
from benchmarks.runtime import RuntimeConfig, _draw, run_runtime, save_plots

from megabase.errors import ConfigError
from megabase.report.style import WIDE

_CONFIG = RuntimeConfig(
    models=("hyenadna", "gpt"), min_length=64, max_length=4096, checkpointing="off",
    time_limit=10.0, model_time_limit=1000.0,
)  # fmt: skip


def _times(spec: dict[str, Any]) -> float:
    length = spec["length"]
    return 1e-4 * length if spec["model"] == "hyenadna" else 2e-6 * length**2


def _fake(_: str, **spec: Any) -> dict[str, Any]:
    seconds = _times(spec)
    return {
        "status": "measured", "seconds": seconds, "forward": seconds / 3,
        "backward": 2 * seconds / 3, "passes": [seconds] * spec["repeats"], "warmed_up": True,
        "elapsed": 6 * seconds, "peak_bytes": 10**8, "loaded_bytes": 10**7, "parameters": 1,
    }  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "in_child", _fake)


def _spec(**settings: Any) -> dict[str, Any]:
    return {
        "model": "hyenadna", "length": 64, "checkpointing": False, "width": 8, "layers": 1,
        "batch": 1, "dtype": "float32", "device": "cpu", "threads": 1, "repeats": 2,
        "budget": 60.0, "seed": 0, "memory": 1 << 36, **settings,
    }  # fmt: skip


def test_one_pass_alone_counts() -> None:
    found = in_child("benchmarks.runtime:measure", **_spec(repeats=0))
    assert len(found["passes"]) == 1
    assert not found["warmed_up"]


def test_lengths_double() -> None:
    assert _CONFIG.lengths == [64, 128, 256, 512, 1024, 2048, 4096]
    assert RuntimeConfig().lengths[-1] == 1_048_576


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"repeats is.*models are.*found rnn.*checkpointing is"):
        RuntimeConfig(models=("rnn",), checkpointing="maybe", repeats=0)
    with pytest.raises(ConfigError, match="min_length"):
        RuntimeConfig(min_length=10, max_length=5)


@pytest.mark.usefixtures("fake")
def test_a_length_that_would_take_too_long_is_not_run() -> None:
    points = run_runtime(_CONFIG, print)["points"]
    gpt = {p["length"]: p for p in points if p["model"] == "gpt"}
    assert gpt[2048]["status"] == "measured"  # 8.4 s
    assert gpt[4096]["status"] == "not run"  # 33.6 s
    assert "would take about 34 s" in gpt[4096]["reason"]
    assert all(p["status"] == "measured" for p in points if p["model"] == "hyenadna")


@pytest.mark.usefixtures("fake")
def test_the_time_of_a_model_is_shared_by_its_points() -> None:
    config = replace(_CONFIG, models=("gpt",), model_time_limit=20.0, time_limit=1000.0)
    points = run_runtime(config, print)["points"]
    # 6 passes of 0.5 s and less up to 512 tokens, 12.6 s at 1024; then too little is left.
    assert [p["status"] for p in points] == ["measured"] * 5 + ["not run"] * 2
    assert "20 s for this model are used up" in points[5]["reason"]


def test_after_a_limit_nothing_longer_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def limited(function: str, **spec: Any) -> dict[str, Any]:
        started.append(spec["length"])
        if spec["length"] == 256:
            return {"status": "memory limit", "reason": "over 1 GiB"}
        return _fake(function, **spec)

    monkeypatch.setattr(runtime, "in_child", limited)
    points = run_runtime(replace(_CONFIG, models=("hyenadna",)), print)["points"]
    assert started == [64, 128, 256]
    assert [p["status"] for p in points[3:]] == ["not run"] * 4
    assert points[3]["reason"] == "memory limit at 256 tokens"


@pytest.mark.usefixtures("fake")
def test_the_summary_keeps_measured_and_extrapolated_apart() -> None:
    summary = run_runtime(_CONFIG, print)
    [series] = summary["series"]
    gpt = series["models"]["gpt"]
    assert 4096 not in gpt["seconds"]
    assert gpt["exponent"] == pytest.approx(2.0)
    assert gpt["extrapolated_seconds"] == {4096: pytest.approx(2e-6 * 4096**2)}
    assert series["models"]["hyenadna"]["extrapolated_seconds"] == {}
    compared = series["comparisons"]["gpt"]
    assert compared["longest_common"] == 2048
    assert compared["ratios"][2048] == pytest.approx(2e-2 * 2048)
    assert compared["reference_faster_from"] == 64
    json.dumps(summary)


def test_an_interrupted_measurement_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(function: str, **spec: Any) -> dict[str, Any]:
        if spec["length"] == 512:
            raise KeyboardInterrupt
        return _fake(function, **spec)

    monkeypatch.setattr(runtime, "in_child", interrupted)
    summary = run_runtime(_CONFIG, print)
    assert [p["length"] for p in summary["points"]] == [64, 128, 256]
    assert summary["series"][0]["comparisons"] == {}


@pytest.mark.usefixtures("fake")
def test_plots_show_extrapolation_as_such(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    summary = run_runtime(replace(_CONFIG, checkpointing="both"), print)
    from megabase.report.style import LIGHT

    _draw(summary, "time", figure, LIGHT, WIDE)
    assert len(figure.axes) == 2
    styles = {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}
    assert styles["HyenaDNA"] == styles["GPT"] == "-"
    [dashed] = [label for label, style in styles.items() if style == "--"]
    assert dashed == "GPT: extrapolated, not run (length^2.00)"
    files = save_plots(summary, tmp_path / "bench.json")
    assert [file.name for file in files] == ["bench-time.svg", "bench-memory.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_one_real_point_in_a_process_of_its_own() -> None:
    point = in_child("benchmarks.runtime:measure", **_spec(checkpointing=True))
    assert point["status"] == "measured", point["reason"]
    assert point["peak_bytes"] >= point["loaded_bytes"] > 10**7
    assert point["seconds"] > 0
    assert point["warmed_up"]


def test_a_point_over_its_limits_is_ended() -> None:
    slow = {"length": 4096, "width": 64, "repeats": 10_000}
    point = in_child("benchmarks.runtime:measure", **_spec(**slow, memory=1 << 20))
    assert point["status"] == "memory limit"
    assert "GiB" in point["reason"]
    late = in_child("benchmarks.runtime:measure", **_spec(length=1 << 19, width=32, budget=0.05))
    assert late["status"] == "time limit"

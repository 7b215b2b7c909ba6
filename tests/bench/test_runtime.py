"""The measurement of runtime: limits, what is recorded, and one real point."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed.config import BenchError, RuntimeConfig
from benchmarks.speed.point import measure
from benchmarks.speed.runtime import (
    Point,
    prepare_output,
    run_point,
    run_runtime,
    summarize,
    write_runtime,
)

_CONFIG = RuntimeConfig(
    models=("hyenadna", "gpt"), min_length=64, max_length=4096, checkpointing="off",
    time_limit=10.0, model_time_limit=1000.0,
)  # fmt: skip


def _times(spec: dict[str, Any]) -> float:
    length = spec["length"]
    return 1e-4 * length if spec["model"] == "hyenadna" else 2e-6 * length**2


def _fake(spec: dict[str, Any], memory_limit: int | None) -> Point:
    seconds = _times(spec)
    result = {
        "seconds": seconds, "forward": seconds / 3, "backward": 2 * seconds / 3,
        "passes": [seconds] * spec["repeats"], "warmed_up": True,
        "elapsed": 6 * seconds, "peak_bytes": 10**8, "loaded_bytes": 10**7,
        "parameters": 1, "threads": 1,
    }  # fmt: skip
    return Point(
        spec["model"], spec["checkpointing"], spec["length"], "measured", None, result, 0.1
    )


def _spec(**settings: Any) -> dict[str, Any]:
    return {
        "model": "hyenadna", "length": 64, "checkpointing": False, "width": 8, "layers": 1,
        "batch": 1, "dtype": "float32", "device": "cpu", "threads": 1, "repeats": 2,
        "budget": 60.0, "seed": 0, **settings,
    }  # fmt: skip


def test_one_pass_alone_counts() -> None:
    found = measure(_spec(repeats=0))
    assert len(found["passes"]) == 1
    assert not found["warmed_up"]


def test_lengths_double() -> None:
    assert _CONFIG.lengths == (64, 128, 256, 512, 1024, 2048, 4096)
    assert RuntimeConfig().lengths[-1] == 1_048_576


def test_bad_settings_are_reported_together() -> None:
    with pytest.raises(BenchError, match=r"models are.*found rnn.*checkpointing is.*repeats must"):
        RuntimeConfig(models=("rnn",), checkpointing="maybe", repeats=0)
    with pytest.raises(BenchError, match="min_length"):
        RuntimeConfig(min_length=10, max_length=5)


def test_a_length_that_would_take_too_long_is_not_run() -> None:
    points = run_runtime(_CONFIG, measure_point=_fake)
    gpt = {p.length: p for p in points if p.model == "gpt"}
    assert gpt[2048].status == "measured"  # 8.4 s
    assert gpt[4096].status == "not run"  # 33.6 s
    assert "would take about 34 s" in str(gpt[4096].reason)
    assert all(p.status == "measured" for p in points if p.model == "hyenadna")


def test_the_time_of_a_model_is_shared_by_its_points() -> None:
    config = replace(_CONFIG, models=("gpt",), model_time_limit=20.0, time_limit=1000.0)
    points = run_runtime(config, measure_point=_fake)
    # 6 passes of 0.5 s and less up to 512 tokens, 12.6 s at 1024; then too little is left.
    assert [p.status for p in points] == ["measured"] * 5 + ["not run"] * 2
    assert "20 s for this model are used up" in str(points[5].reason)


def test_after_a_limit_nothing_longer_is_started() -> None:
    started = []

    def fake(spec: dict[str, Any], memory_limit: int | None) -> Point:
        started.append(spec["length"])
        if spec["length"] == 256:
            return Point(spec["model"], spec["checkpointing"], 256, "memory limit", "over 1 GiB")
        return _fake(spec, memory_limit)

    config = replace(_CONFIG, models=("hyenadna",))
    points = run_runtime(config, measure_point=fake)
    assert started == [64, 128, 256]
    assert [p.status for p in points[3:]] == ["not run"] * 4
    assert points[3].reason == "memory limit at 256 tokens"


def test_the_summary_keeps_measured_and_extrapolated_apart(tmp_path: Path) -> None:
    points = run_runtime(_CONFIG, measure_point=_fake)
    summary = summarize(_CONFIG, points)
    [series] = summary["series"]
    gpt = series["models"]["gpt"]
    assert 4096 not in gpt["seconds"]
    assert gpt["fit"]["exponent"] == pytest.approx(2.0)
    assert gpt["extrapolated_seconds"] == {4096: pytest.approx(2e-6 * 4096**2)}
    assert series["models"]["hyenadna"]["extrapolated_seconds"] == {}
    assert summary["disturbed_points"] == 0
    busy = summarize(_CONFIG, [replace(points[0], other_cores=0.5), *points[1:]])
    assert busy["disturbed_points"] == 1
    compared = series["comparisons"]["gpt"]
    assert compared["longest_common"] == 2048
    assert compared["ratio_at_longest_common"] == pytest.approx(2e-2 * 2048)
    assert compared["reference_overtakes"]["how"] == "from the start"
    path = prepare_output(tmp_path / "out", overwrite=False)
    write_runtime(path, summary)
    assert json.loads(path.read_text())["points"][0]["model"] == "hyenadna"
    with pytest.raises(BenchError, match=r"exists already.*--overwrite"):
        prepare_output(tmp_path / "out", overwrite=False)
    assert prepare_output(tmp_path / "out", overwrite=True) == path


def test_plots_show_extrapolation_as_such(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.speed.runtime_plot import draw_runtime, save_runtime_plots

    config = replace(_CONFIG, checkpointing="both")
    summary = json.loads(json.dumps(summarize(config, run_runtime(config, measure_point=_fake))))
    axes = draw_runtime(summary).axes
    assert len(axes) == 2
    styles = {line.get_label(): line.get_linestyle() for line in axes[0].lines}
    assert styles["HyenaDNA"] == styles["GPT"] == "-"
    [dashed] = [label for label, style in styles.items() if style == "--"]
    assert dashed == "GPT: extrapolated, not run (length^2.00)"
    files = save_runtime_plots(summary, tmp_path)
    assert all(file.stat().st_size > 1000 for file in files)
    assert len(files) == 4


def test_one_real_point_in_a_process_of_its_own() -> None:
    point = run_point(_spec(checkpointing=True), None)
    assert point.status == "measured", point.reason
    assert point.result is not None
    assert point.result["peak_bytes"] >= point.result["loaded_bytes"] > 10**7
    assert point.result["seconds"] > 0
    assert point.result["warmed_up"]


def test_a_point_over_its_memory_is_ended() -> None:
    point = run_point(_spec(), memory_limit=1 << 20)
    assert point.status == "memory limit"
    assert "GiB" in str(point.reason)

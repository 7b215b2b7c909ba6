"""Memory of a training step: the terms of the formula."""

from __future__ import annotations

from typing import Any

from megabase.models.describe import step_memory
from megabase.ops.kernels import KEEP_BYTES


def _estimate(length: int, micro_batch: int, fused: bool = False, **step: Any) -> dict[str, int]:
    shape = {name: step.pop(name) for name in ("parameters", "layers", "width", "columns")}
    return step_memory({**shape, "piecewise": fused}, micro_batch, length, **step)


def test_terms_grow_with_what_they_depend_on() -> None:
    shape = {"parameters": 1000, "layers": 2, "width": 8, "columns": 16, "micro_batch": 4}
    one = _estimate(**shape, length=100)
    two = _estimate(**shape, length=200)
    assert two["activations"] == 2 * one["activations"]
    assert two["workspace"] == 2 * one["workspace"]
    assert one["parameters"] == one["gradients"] == 4000
    assert one["optimizer"] == 8000
    assert _estimate(**shape, length=100, half=True)["activations"] < one["activations"]
    assert _estimate(**shape, length=100, shards=4)["optimizer"] == 2000
    deep = {**shape, "layers": 12}
    checked = _estimate(**deep, length=100, segment=1)
    assert checked["activations"] < _estimate(**deep, length=100)["activations"] / 3
    assert one["total"] == sum(
        (
            one["parameters"],
            one["gradients"],
            one["optimizer"],
            one["activations"],
            one["workspace"],
            one["process"],
        )
    )
    assert _estimate(**shape, length=100, on_cpu=False)["process"] == 0


def test_piecewise_models_keep_running_sums_and_filters() -> None:
    shape = {"parameters": 1000, "layers": 2, "width": 64, "columns": 16, "micro_batch": 1}
    one = _estimate(**shape, length=1000, fused=True)
    assert one["activations"] == 4 * 64 * 1000 * (6 + 16 + 3) + 24 * 16 * 1000
    assert one["workspace"] == 8 * 1000 * 64 + 40 * 1000 * 64
    assert one["total"] < _estimate(**shape, length=1000)["total"]
    batch = _estimate(**{**shape, "micro_batch": 3}, length=1000, fused=True)
    # The filter belongs to the length, not to the sequences.
    assert batch["activations"] == 3 * one["activations"] - 2 * 4 * 64 * 1000 * 3
    deep = {**shape, "layers": 12}
    checked = _estimate(**deep, length=1000, fused=True, segment=1)
    assert checked["activations"] < _estimate(**deep, length=1000, fused=True)["activations"]
    # What operators compute of their inputs is kept of short ones only.
    length = KEEP_BYTES // (4 * 64) + 1
    long = _estimate(**shape, length=length, fused=True)
    assert long["activations"] == 4 * 64 * length * (6 + 3) + 24 * 16 * length
    # Of 12 layers in segments of 3, 4 + 2 inputs are alive in place of 12.
    stretched = _estimate(**deep, length=length, fused=True, segment=3)
    whole = _estimate(**deep, length=length, fused=True, segment=1)
    assert whole["activations"] - stretched["activations"] == 4 * 64 * length * 6

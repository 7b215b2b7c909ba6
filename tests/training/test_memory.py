"""Memory: the formula's terms, and every limit of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from megabase.ops.hyena_mixer import kernel
from megabase.training import memory


def test_terms_grow_with_what_they_depend_on() -> None:
    shape = {"parameters": 1000, "layers": 2, "width": 8, "columns": 16, "micro_batch": 4}
    one = memory.estimate(**shape, length=100)
    two = memory.estimate(**shape, length=200)
    assert two.activations == 2 * one.activations
    assert two.workspace == 2 * one.workspace
    assert one.parameters == one.gradients == 4000
    assert one.optimizer == 8000
    assert memory.estimate(**shape, length=100, half=True).activations < one.activations
    assert memory.estimate(**shape, length=100, shards=4).optimizer == 2000
    deep = {**shape, "layers": 12}
    checked = memory.estimate(**deep, length=100, checkpointing=True)
    assert checked.activations < memory.estimate(**deep, length=100).activations / 3
    assert one.total == sum(
        (one.parameters, one.gradients, one.optimizer, one.activations, one.workspace, one.process)
    )
    assert memory.estimate(**shape, length=100, on_cpu=False).process == 0


def test_piecewise_models_keep_running_sums_and_filters() -> None:
    shape = {"parameters": 1000, "layers": 2, "width": 64, "columns": 16, "micro_batch": 1}
    one = memory.estimate(**shape, length=1000, fused=True)
    assert one.activations == 4 * 64 * 1000 * (6 + 2 + 3) + 24 * 16 * 1000
    assert one.workspace == 8 * 1000 * 64 + 40 * 1000 * 64
    assert one.total < memory.estimate(**shape, length=1000).total
    batch = memory.estimate(**{**shape, "micro_batch": 3}, length=1000, fused=True)
    # The filter belongs to the length, not to the sequences.
    assert batch.activations == 3 * one.activations - 2 * 4 * 64 * 1000 * 3
    deep = {**shape, "layers": 12}
    checked = memory.estimate(**deep, length=1000, fused=True, checkpointing=True)
    assert checked.activations < memory.estimate(**deep, length=1000, fused=True).activations
    # The long convolution's result is kept of short inputs only.
    assert memory.KEEP_BYTES == kernel.KEEP_BYTES
    length = memory.KEEP_BYTES // (4 * 64) + 1
    long = memory.estimate(**shape, length=length, fused=True)
    assert long.activations == 4 * 64 * length * (6 + 3) + 24 * 16 * length
    # Of 12 layers in stretches of 3, 4 + 2 inputs are alive in place of 12.
    stretched = memory.estimate(**deep, length=length, fused=True, checkpointing=True, stretch=3)
    whole = memory.estimate(**deep, length=length, fused=True, checkpointing=True)
    assert whole.activations - stretched.activations == 4 * 64 * length * 6


def test_this_machine_has_memory() -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert 2**20 < found < sys.maxsize
    assert memory.resident_mb(torch.device("cpu")) > 50


@pytest.mark.parametrize(("limit", "room"), [("max\n", None), ("1000\n", 600), ("100\n", 0)])
def test_room_under_a_limit(tmp_path: Path, limit: str, room: int | None) -> None:
    (tmp_path / "limit").write_text(limit)
    (tmp_path / "usage").write_text("400\n")
    assert memory._room(tmp_path / "limit", tmp_path / "usage") == room
    assert memory._room(tmp_path / "none", tmp_path / "usage") is None

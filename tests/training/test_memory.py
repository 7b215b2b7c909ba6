"""Memory: every limit of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from megabase import memory
from megabase.training import engine


def test_this_machine_has_memory() -> None:
    found = memory.available_bytes(torch.device("cpu"))
    assert 2**20 < found < sys.maxsize
    assert engine._resident_mb(torch.device("cpu")) > 50


@pytest.mark.parametrize(("limit", "room"), [("max\n", None), ("1000\n", 600), ("100\n", 0)])
def test_room_under_a_limit(tmp_path: Path, limit: str, room: int | None) -> None:
    (tmp_path / "limit").write_text(limit)
    (tmp_path / "usage").write_text("400\n")
    assert memory._room(tmp_path / "limit", tmp_path / "usage") == room
    assert memory._room(tmp_path / "none", tmp_path / "usage") is None

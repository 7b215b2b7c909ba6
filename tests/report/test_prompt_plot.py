"""The picture of a figure against the length of a prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megabase.report.plots import save_prompt_lengths

pytest.importorskip("matplotlib")
SERIES = {"answer by head": [(8, 0.75), (0, 0.7), (128, 0.8)], "answer by label tokens": [(0, 0.5)]}


def test_lines_ticks_and_reference(tmp_path: Path) -> None:
    path = tmp_path / "lengths.svg"
    save_prompt_lengths(path, SERIES, "test accuracy", ("full fine-tuning", 0.85))
    shown = re.findall(r">([^<>]+)</text>", path.read_text())
    for word in ("answer by head", "answer by label tokens", "full fine-tuning", "test accuracy"):
        assert word in shown
    assert {"0", "8", "128"} <= set(shown)
    save_prompt_lengths(path, SERIES, "accuracy")
    assert "full fine-tuning" not in path.read_text()


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lengths.svg"
    path.write_text("old")
    save_prompt_lengths(path, SERIES)
    assert "<svg" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["lengths.svg"]

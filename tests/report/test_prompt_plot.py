"""The picture of a figure against the length of a prompt."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from megabase.report.plots import _draw_prompt_lengths, save_prompt_lengths
from megabase.report.style import as_svg

pytest.importorskip("matplotlib")
SERIES = {"answer by head": [(8, 0.75), (0, 0.7), (128, 0.8)], "answer by label tokens": [(0, 0.5)]}


def test_lines_ticks_and_reference() -> None:
    text = as_svg(
        partial(_draw_prompt_lengths, SERIES, "test accuracy", ("full fine-tuning", 0.85))
    )
    shown = re.findall(r">([^<>]+)</text>", text)
    for word in ("answer by head", "answer by label tokens", "full fine-tuning", "test accuracy"):
        assert word in shown
    assert {"0", "8", "128"} <= set(shown)
    assert "full fine-tuning" not in as_svg(partial(_draw_prompt_lengths, SERIES, "accuracy", None))


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lengths.svg"
    path.write_text("old")
    save_prompt_lengths(path, SERIES)
    assert "<svg" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["lengths.svg"]

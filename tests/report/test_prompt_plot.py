"""The picture of a figure against the length of a prompt."""

from __future__ import annotations

import re
from functools import partial

import pytest

from megabase.report.plots import draw_lengths
from megabase.report.style import as_svg

pytest.importorskip("matplotlib")
SERIES = {
    "answer by head": [(8, 0.75, None), (0, 0.7, None), (128, 0.8, None)],
    "answer by label tokens": [(0, 0.5, None)],
}


def test_lines_and_ticks() -> None:
    svg = as_svg(partial(draw_lengths, SERIES, ("learnable vectors", "test accuracy")))
    shown = re.findall(r">([^<>]+)</text>", svg)
    for word in ("answer by head", "answer by label tokens", "test accuracy"):
        assert word in shown
    assert {"0", "8", "128"} <= set(shown)

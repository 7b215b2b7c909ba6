"""Plots: what they show, that they stand alone, that they come out the same twice."""

from __future__ import annotations

import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from megabase.errors import MissingDependencyError
from megabase.report.plots import (
    best_baseline,
    draw_baselines,
    draw_context_curve,
    draw_learning_curve,
    save_plots,
)
from megabase.report.style import (
    DARK,
    LIGHT,
    NARROW,
    WIDE,
    Size,
    Theme,
    as_svg,
    require_matplotlib,
)

Record = dict[str, Any]


def words(svg: str) -> str:
    root = ET.fromstring(svg)
    return " ".join(text.strip() for text in root.itertext() if text.strip())


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_plot_is_drawn_for_every_page(
    metrics: list[Record], evaluation: Record, theme: Theme, size: Size
) -> None:
    for svg in (
        as_svg(partial(draw_learning_curve, metrics), theme, size),
        as_svg(partial(draw_context_curve, evaluation), theme, size),
        as_svg(partial(draw_baselines, evaluation), theme, size),
    ):
        root = ET.fromstring(svg)
        assert root.get("viewBox") == f"0 0 {size.width} {size.height}"
        assert theme.ink not in {LIGHT.ink, DARK.ink} - {theme.ink}
        assert theme.model in svg
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_learning_curve_names_axes_lines_and_stages(metrics: list[Record]) -> None:
    shown = words(as_svg(partial(draw_learning_curve, metrics)))
    for text in ("tokens seen", "perplexity", "training", "validation", "64", "256", "1,024"):
        assert text in shown


def test_learning_curve_without_validation_or_with_one_step(metrics: list[Record]) -> None:
    train = [record for record in metrics if record["kind"] == "train"]
    assert "validation" not in words(as_svg(partial(draw_learning_curve, train)))
    assert "training" in words(as_svg(partial(draw_learning_curve, train[:1])))


def test_context_curve_names_context_and_best_baseline(evaluation: Record) -> None:
    shown = words(as_svg(partial(draw_context_curve, evaluation)))
    for text in ("context before the base (bases)", "model 3.322", "Markov order 12,", "512"):
        assert text in shown


def test_baselines_show_both_rates_and_the_model(evaluation: Record) -> None:
    shown = words(as_svg(partial(draw_baselines, evaluation)))
    for text in ("Markov, fixed rate", "Markov, fitted rates", "model 3.337", "uniform 4"):
        assert text in shown


def test_best_baseline_is_that_of_the_targets_asked_for(evaluation: Record) -> None:
    found = best_baseline(evaluation)
    assert found is not None
    assert found["name"] == "Markov order 12, fitted"
    evaluation["baselines"][3]["context_measure"]["nats_acgt"] = 0.5
    found = best_baseline(evaluation, "context_measure")
    assert found is not None
    assert found["name"] == "Markov order 2"
    assert best_baseline({"baselines": []}) is None


def test_labels_never_overlap(evaluation: Record) -> None:
    for name in range(1, len(evaluation["baselines"])):
        evaluation["baselines"][name]["measure"]["perplexity_acgt"] = 3.3371
    svg = as_svg(partial(draw_baselines, evaluation))
    chosen = re.findall(r"translate\(([\d.]+) ([\d.]+)\)[^>]*>(?:Markov|model|uniform)", svg)
    if not chosen:
        chosen = re.findall(
            r'<text[^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>(?:Markov|model|uniform)', svg
        )
    heights = sorted(float(y) for _, y in chosen)
    assert len(heights) == 4
    assert all(b - a >= WIDE.text for a, b in pairwise(heights))


def test_the_same_records_give_the_same_bytes(evaluation: Record) -> None:
    assert as_svg(partial(draw_baselines, evaluation)) == as_svg(
        partial(draw_baselines, evaluation)
    )


def test_files_are_written_whole_on_white(evaluation: Record, tmp_path: Path) -> None:
    paths = save_plots(evaluation, tmp_path)
    assert [path.name for path in paths] == ["evaluation-context.svg", "evaluation-baselines.svg"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert f'fill="{LIGHT.background}"' in paths[0].read_text()
    evaluation["context"], evaluation["baselines"] = [], evaluation["baselines"][:1]
    assert save_plots(evaluation, tmp_path) == []


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'megabase\[plots\]'"):
        require_matplotlib()

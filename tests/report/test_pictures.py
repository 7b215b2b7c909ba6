"""Every plot shows its data, also where the data are odd: marks, texts and ticks are looked at."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from drawn import Picture, pictures

from megabase.report import benchmark_page, plots
from megabase.report.plots import save_embedding_plot, save_nucleotide_plot
from megabase.report.style import NARROW, WIDE, Size, as_svg

RNG = np.random.default_rng(0)
LONG = "a model with a name that is far too long for any legend or axis of a picture"


def drawn_by(draw: Any, *args: Any, size: Size = WIDE) -> Picture:
    with pictures() as seen:
        as_svg(partial(draw, *args), size=size)
    return seen[0]


def bar(model: str, mean: float, published: float | None = None, **more: Any) -> dict[str, Any]:
    return {"model": model, "mean": mean, "spread": 0.01, "published": published, "metric": "mcc",
            **more}  # fmt: skip


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_plots_of_a_run_show_their_points(
    metrics: list[dict[str, Any]], evaluation: dict[str, Any], size: Size
) -> None:
    # The steep fall of the first steps is left above the axis on purpose.
    drawn_by(plots.draw_learning_curve, metrics, size=size).check(marks=100, outside=40)
    drawn_by(plots.draw_context_curve, evaluation, size=size).check(marks=5)
    drawn_by(plots.draw_baselines, evaluation, size=size).check(marks=20, outside=10)


def test_a_short_run_shows_each_validation_where_it_was() -> None:
    once = {"kind": "train", "step": 10, "tokens": 38_400, "stage": 0, "length": 80, "loss": 0.6}
    checks = [{"kind": "validation", "step": step, "loss": 0.7} for step in (5, 10)]
    seen = drawn_by(plots.draw_learning_curve, [*checks, once], size=WIDE)
    seen.check(marks=3)
    drawn = [np.asarray(line.get_xdata()) for line in seen.figure.axes[0].lines]
    assert any(np.array_equal(x, [19_200, 38_400]) for x in drawn)


def test_steps_without_a_finite_loss_are_left_out(metrics: list[dict[str, Any]]) -> None:
    spoiled = [
        {**record, "loss": math.nan} if i % 7 == 3 and "loss" in record else record
        for i, record in enumerate(metrics)
    ]
    drawn_by(plots.draw_learning_curve, spoiled, size=WIDE).check(marks=80, outside=40)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_bars_of_any_sign_and_name(size: Size) -> None:
    for lines in (
        [bar("one", 0.8), bar("kmer", 0.4, 0.9)],
        [bar("one", -0.3), bar("two", -0.1)],
        [bar(f"{LONG} {i}", 0.5) for i in range(12)],
        [bar("$a$ and $b$", 0.5), bar("_x", 0.6)],
        [bar("one", math.nan)],
    ):
        picture = drawn_by(benchmark_page._draw_bars, lines, size=size)
        picture.check(marks=2 * len(lines))
    assert "no model has a result" in picture.texts
    names = drawn_by(benchmark_page._draw_bars, [bar("$a$ and $b$", 0.5)], size=size).texts
    assert "$a$ and $b$" in names


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_legends_keep_every_name_inside(size: Size) -> None:
    truth = RNG.integers(0, 2, 40)
    scores = RNG.normal(size=40) + truth
    series = [(name, scores, truth) for name in ("_hidden", LONG, "$kmer$")]
    picture = drawn_by(benchmark_page._draw_curves, series, size=size)
    picture.check(marks=60)
    assert {" _hidden", "$kmer$"} <= set(picture.texts)
    prompts = {"_head": [(0, 0.7, None), (8, 0.75, None), (128, 0.8, None)]}
    picture = drawn_by(plots.draw_lengths, prompts, ("vectors", "accuracy"), size=size)
    picture.check(marks=3)
    assert " _head" in picture.texts


def test_a_confusion_matrix_and_lengths_show_all_cells() -> None:
    table = RNG.integers(0, 999, (5, 5))
    names = [f"long class name {i}" for i in range(5)]
    drawn_by(benchmark_page._draw_confusion, table, names).check(marks=24)
    lines = {name: [(2**k, 0.5, 0.01) for k in (8, 10, 12)] for name in ("one", "_two")}
    picture = drawn_by(plots.draw_lengths, lines, ("bases", "mcc"))
    picture.check(marks=6)
    assert " _two" in picture.texts


def test_positions_along_a_genome_are_whole_and_1_based(tmp_path: Path) -> None:
    import polars as pl

    place = np.arange(999_995, 1_000_025)
    table = pl.DataFrame({
        "contig": ["c"] * 30, "position": place, "label": ["off"] * 15 + ["on"] * 15,
        "p_off": np.linspace(1, 0, 30), "p_on": np.linspace(0, 1, 30),
    })  # fmt: skip
    table.write_parquet(tmp_path / "predictions.parquet")
    with pictures() as seen:
        save_nucleotide_plot(tmp_path / "predictions.parquet", "c", tmp_path / "c.png")
    seen[0].check(marks=30)
    assert seen[0].panels[0].axes.get_xlim() == (999_995.5, 1_000_025.5)


def test_a_map_of_embeddings_shows_every_point(tmp_path: Any) -> None:
    vectors = RNG.normal(size=(60, 8))
    labels = [f"_{i % 25} {LONG}" for i in range(60)]
    with pictures() as seen:
        save_embedding_plot(tmp_path / "m.png", vectors, labels, title=LONG, how="pca")
        save_embedding_plot(tmp_path / "s.svg", np.ones((5, 3)), title="all equal", how="pca")
    seen[0].check(marks=60)
    assert seen[1].cut == []
    assert seen[1].panels[0].inside >= 5  # all in one place, and inside
    assert seen[1].panels[0].outside == 0

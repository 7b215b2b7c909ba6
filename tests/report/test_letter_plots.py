"""Logos and heat maps of letters: every position stands inside the picture, at its own number."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("logomaker")

from drawn import Picture, pictures
from matplotlib.patches import PathPatch

from megabase.errors import ReportError
from megabase.report.logos import (
    LETTER_COLORS,
    _own_heights,
    check_logo,
    save_heat_map,
    save_logo,
)

RNG = np.random.default_rng(0)


def heat_map(folder: Path, ref: str, scores: Any, first: int, title: str = "here") -> Picture:
    with pictures() as seen:
        save_heat_map(folder / "s.svg", ref, scores, title=title, label="llr", first=first)
    return seen[0]


def logo(
    folder: Path, letters: Any, first: int = 1, title: str = "one", end: str = "png"
) -> Picture:
    with pictures() as seen:
        save_logo(folder / f"l.{end}", letters, title=title, ylabel="height", first=first)
    return seen[0]


def letters_of(picture: Picture) -> list[tuple[float, float, str]]:
    """Position, height with its sign, and letter of everything that a logo draws."""
    names = {color: letter for letter, color in LETTER_COLORS.items()}
    found: list[tuple[float, float, str]] = []
    for patch in picture.panels[0].axes.patches:
        assert isinstance(patch, PathPatch)
        box = patch.get_path().get_extents()
        color = "#" + "".join(f"{round(255 * c):02x}" for c in patch.get_facecolor()[:3])
        place = (box.x0 + box.x1) / 2
        found.append((round(place), box.y1 if box.y1 > 1e-9 else box.y0, names[color]))
    return sorted(found)


@pytest.mark.parametrize("first", [1, 1001, 1_000_001, 248_000_001])
def test_a_heat_map_shows_its_positions_and_no_others(tmp_path: Path, first: int) -> None:
    ref = "".join(RNG.choice(list("ACGT"), 40))
    scores = RNG.normal(-1, 0.3, (40, 4))
    picture = heat_map(tmp_path, ref, scores, first)
    picture.check(marks=80, across=0.95)
    top, bottom = (panel.axes for panel in picture.panels)
    assert top.get_xlim() == bottom.get_xlim() == (first - 0.5, first + 39.5)
    assert [letter for _, _, letter in letters_of(picture)] == list(ref)
    np.testing.assert_array_equal(bottom.images[0].get_array(), scores.T)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.full((12, 4), np.nan), "all heights are zero or unknown"),
        (np.zeros((12, 4)), "all heights are zero or unknown"),
        (np.full((12, 4), 2.0), ""),  # a gain everywhere: letters below the line only
        (np.where(np.arange(48).reshape(12, 4) < 24, np.nan, -1e-9), ""),
        (np.where(np.arange(48).reshape(12, 4) < 24, np.inf, -1e30), ""),
    ],
    ids=["unknown", "zero", "gains", "half", "infinite"],
)
def test_a_heat_map_of_odd_scores_shows_what_is_known(
    tmp_path: Path, scores: Any, words: str
) -> None:
    picture = heat_map(tmp_path, "ACGTNACGTACG", scores, 5000, title="$a$ " * 80)
    assert picture.panels[0].words == words
    picture.check()


def test_one_base_is_a_heat_map(tmp_path: Path) -> None:
    heat_map(tmp_path, "A", np.array([[0, -1, -2, -3.0]]), 1_000_001).check()


def test_too_long_a_heat_map_names_the_page(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"1 to 300 positions, found 301.*megabase report --ism"):
        check_logo(tmp_path / "s.png", 301, what="a heat map")


@pytest.mark.parametrize(("first", "count"), [(25, 20), (1, 30), (999_990, 12), (7, 1)])
def test_ticks_of_a_logo_are_whole_positions(tmp_path: Path, first: int, count: int) -> None:
    picture = logo(tmp_path, RNG.normal(size=(count, 4)), first)
    picture.check(marks=4 * count)
    (low, high) = picture.panels[0].axes.get_xlim()
    ticks = picture.panels[0].axes.get_xticks()
    assert (low, high) == (first - 0.5, first + count - 0.5)
    assert [t for t in ticks if low < t < high]
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_a_logo_of_what_stands_there_spells_the_sequence(tmp_path: Path) -> None:
    values = np.array([0.5, -1.0, 2.0, 0.25, 3.0])
    picture = logo(tmp_path, _own_heights("TANAC", values), first=31)
    expected = [(31, 0.5, "T"), (32, -1.0, "A"), (34, 0.25, "A"), (35, 3.0, "C")]
    for (place, height, letter), wanted in zip(letters_of(picture), expected, strict=True):
        assert (place, letter) == (wanted[0], wanted[2])
        assert height == pytest.approx(wanted[1])


@pytest.mark.parametrize("end", ["png", "svg", "pdf"])
def test_odd_logos_are_drawn_whole(tmp_path: Path, end: str) -> None:
    for number, letters in enumerate(
        (np.zeros((5, 4)), np.full((5, 4), np.nan), np.full((5, 4), -3e-7), np.eye(4)[[0, 1]] * 1e9)
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        logo(folder, letters, title="chr_$x$_" * 60, end=end).check()
        (file,) = folder.iterdir()
        assert file.stat().st_size > 1000


def test_names_stand_above_their_letters_and_apart(tmp_path: Path) -> None:
    spans = [
        (0, 5, "MA0001.1 LONGNAME"),
        (6, 12, "AP1"),
        (13, 18, "MA0002.1 OTHER"),
        (58, 64, "EDGE"),
    ]
    with pictures() as seen:
        save_logo(
            tmp_path / "n.svg", RNG.normal(size=(60, 4)), title="one", ylabel="height", first=2,
            spans=[*spans, (80, 90, "OUTSIDE")],
        )  # fmt: skip
    (picture,) = seen
    picture.check(marks=60)
    axes = picture.panels[0].axes
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 2]
    # Positions count from 1, and those shown are 2 to 61.
    assert [list(bar) for bar in bars] == [[1.5, 5.5], [6.5, 12.5], [13.5, 18.5], [58.5, 61.5]]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert list(boxes) == [name for _, _, name in spans]
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.overlaps(other)
    letters = max(patch.get_path().get_extents().y1 for patch in axes.patches)
    assert min(line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 2) > letters
    left, right = axes.get_window_extent().intervalx
    assert all(left - 1 <= box.x0 and box.x1 <= right + 1 for box in boxes.values())

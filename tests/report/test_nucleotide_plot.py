from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from megabase.errors import OutputError, ReportError
from megabase.report.plots import (
    _draw_nucleotides,
    _read_predictions,
    save_nucleotide_plot,
)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    said = np.linspace(0, 1, 100, dtype=np.float32)
    label = ["on" if 20 <= i < 40 or i >= 70 else "off" for i in range(100)]
    frame = pl.DataFrame(
        {"contig": ["c"] * 100, "position": range(500, 600), "label": label,
         "p_off": 1 - said, "p_on": said}
    )  # fmt: skip
    path = tmp_path / "predictions.parquet"
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    return path


def test_a_place_is_read_in_order(predictions: Path) -> None:
    assert len(_read_predictions(predictions, "c")) == 100
    part = _read_predictions(predictions, "c:511-520")  # 1-based, both ends included
    assert part["position"].to_list() == list(range(510, 520))
    with pytest.raises(ReportError, match="no base of d; it has bases of c"):
        _read_predictions(predictions, "d")
    with pytest.raises(ReportError, match="no base of c:1-9"):
        _read_predictions(predictions, "c:1-9")


def test_the_line_is_the_prediction_and_the_bars_are_the_truth(predictions: Path) -> None:
    pytest.importorskip("matplotlib")
    table = _read_predictions(predictions, "c")
    from matplotlib.figure import Figure

    figure = Figure()
    _draw_nucleotides(table, figure)
    axes = figure.axes[0]
    line = axes.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(501, 601))
    np.testing.assert_allclose(line.get_ydata(), table["p_on"])
    bars = [path.get_extents().x0 for path in axes.collections[0].get_paths()]
    ends = [path.get_extents().x1 for path in axes.collections[0].get_paths()]
    assert list(zip(bars, ends, strict=True)) == [(520.5, 540.5), (570.5, 600.5)]


def test_written_whole_and_never_over_another(predictions: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "x.png"
    save_nucleotide_plot(predictions, "c", path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError, match="exists already"):
        save_nucleotide_plot(predictions, "c", path)
    save_nucleotide_plot(predictions, "c", path, overwrite=True)
    with pytest.raises(ReportError, match=r"drawn as \.svg, \.png, \.pdf"):
        save_nucleotide_plot(predictions, "c", tmp_path / "x.gif")

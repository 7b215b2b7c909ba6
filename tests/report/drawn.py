"""What a picture shows, measured on the figure that was saved: marks, pixels, ticks, texts.

``with pictures() as seen`` collects every figure saved inside the block; ``seen[0].check()`` fails
for a picture that is blank, squeezed, cut off, or whose ticks say something else than where they
stand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

_EDGE = 1.5  # pixels that a mark or a text may lie beyond an edge: half a line's width


@dataclass
class Panel:
    """One pair of axes of a picture."""

    axes: Axes
    inside: int
    outside: int
    across: float
    """Share of the axes' width that the marks inside span."""
    ink: float
    """Share of the axes' pixels that differ from the background."""
    together: list[str] = field(default_factory=list[str])
    """Tick labels that run into each other."""
    wrong: list[str] = field(default_factory=list[str])
    """Tick labels that are a number other than the place of their tick."""
    words: str = ""
    """Texts that stand inside the axes."""


@dataclass
class Picture:
    """A figure and what was measured on it."""

    figure: Figure
    panels: list[Panel]
    cut: list[str]
    """Texts that reach beyond the picture."""
    texts: list[str]

    def check(self, *, marks: int = 1, outside: int = 0, across: float = 0.3) -> None:
        """Fail for a picture that does not show its data."""
        assert self.panels
        assert self.cut == []
        for panel in self.panels:
            assert panel.together == []
            assert panel.wrong == []
            if not panel.words.strip() or panel.inside:
                assert panel.inside >= marks, f"{panel.inside} marks inside the axes"
                assert panel.outside <= outside, f"{panel.outside} marks outside the axes"
                assert panel.across >= across, f"marks span {panel.across:.0%} of the width"
            assert panel.ink > 0.001, f"{panel.ink:.2%} of the pixels are drawn"


@contextlib.contextmanager
def pictures() -> Iterator[list[Picture]]:
    """Collect the figures that are saved in the block, measured as they were then."""
    seen: list[Picture] = []
    save = Figure.savefig

    def watched(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        seen.append(measure(self))

    with mock.patch.object(Figure, "savefig", watched):
        yield seen


def measure(figure: Figure) -> Picture:
    """Draw a figure on pixels and measure it."""
    figure.set_facecolor("white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)  # from the lower left
    panels = [_panel(axes, pixels) for axes in figure.axes if not hasattr(axes, "_colorbar")]
    whole = figure.bbox
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    cut: list[str] = []
    for text in texts:
        if _hidden_tick(text, figure):
            continue
        box = text.get_window_extent()
        if (box.x0 < -_EDGE or box.y0 < -_EDGE or box.x1 > whole.x1 + _EDGE
                or box.y1 > whole.y1 + _EDGE):  # fmt: skip
            cut.append(text.get_text())
    return Picture(figure, panels, cut, [t.get_text() for t in texts])


def _hidden_tick(text: Text, figure: Figure) -> bool:
    """Whether a text is the label of a tick that is not drawn (outside the limits, or shared)."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if text in (tick.label1, tick.label2):
                    return text not in _shown_labels(axis)
    return False


def _shown_labels(axis: Any) -> list[Text]:
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * max(abs(low), abs(high))
    if not axis.get_visible() or not axis.axes.axison:
        return []
    return [
        tick.label1
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        if low - room <= tick.get_loc() <= high + room
        and tick.label1.get_visible()
        and tick.label1.get_text().strip()
    ]


def _panel(axes: Axes, pixels: np.ndarray) -> Panel:
    points = _marks(axes)
    box = axes.get_window_extent()
    known = points[np.isfinite(points).all(1)]
    inside = (
        (known[:, 0] >= box.x0 - _EDGE) & (known[:, 0] <= box.x1 + _EDGE)
        & (known[:, 1] >= box.y0 - _EDGE) & (known[:, 1] <= box.y1 + _EDGE)
    )  # fmt: skip
    x = known[inside, 0]
    part = pixels[max(0, int(box.y0)) : int(box.y1) + 1, max(0, int(box.x0)) : int(box.x1) + 1]
    panel = Panel(
        axes, int(inside.sum()), int((~inside).sum()),
        float(np.ptp(x) / box.width) if len(x) else 0.0,
        float((np.abs(part - 255).max(2) > 8).mean()) if part.size else 0.0,
        words=" ".join(t.get_text() for t in axes.texts),
    )  # fmt: skip
    for axis, first in ((axes.xaxis, "x0"), (axes.yaxis, "y0")):
        labels = _shown_labels(axis)
        last = first.replace("0", "1")
        boxes = sorted(
            ((label.get_window_extent(), label.get_text()) for label in labels),
            key=lambda pair: getattr(pair[0], first),
        )
        turned = any(label.get_rotation() % 90 for label in labels)
        for (a, one), (b, two) in pairwise([] if turned else boxes):
            if getattr(b, first) < getattr(a, last) - 1:
                panel.together.append(f"{one} | {two}")
        for tick in axis.get_major_ticks():
            text = tick.label1.get_text().replace(",", "").replace("\N{MINUS SIGN}", "-")
            if tick.label1 in labels and _is_number(text):
                digits = len(text.partition(".")[2])
                if abs(float(text) - tick.get_loc()) > 0.001 * 10**-digits + 1e-9 * abs(
                    tick.get_loc()
                ):
                    panel.wrong.append(f"{text} at {tick.get_loc():g}")
    return panel


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _marks(axes: Axes) -> np.ndarray:
    """Places of everything drawn from data, in pixels (n, 2)."""
    found: list[np.ndarray] = []
    for line in axes.lines:
        if np.size(line.get_xydata()) and not _constant(line, axes):
            found.append(line.get_transform().transform(line.get_xydata()))
    for patch in axes.patches:
        box = patch.get_window_extent()
        found.append(np.array([[box.x0, (box.y0 + box.y1) / 2], [box.x1, (box.y0 + box.y1) / 2]]))
    for image in axes.images:
        x0, x1, y0, y1 = image.get_extent()
        ends = axes.transData.transform([(x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2)])
        shown = np.ma.asarray(image.get_array()).count()
        found.append(np.repeat(ends, max(1, shown // 2), axis=0) if shown else ends[:0])
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            offsets = np.ma.filled(np.ma.asarray(collection.get_offsets(), dtype=float), np.nan)
            found.append(collection.get_offset_transform().transform(offsets))
            continue
        for path in collection.get_paths():
            found.append(collection.get_transform().transform(path.vertices))
    return np.concatenate(found) if found else np.empty((0, 2))


def _constant(line: Any, axes: Axes) -> bool:
    """Whether a line is one of axhline or axvline, which goes from edge to edge."""
    return line.get_transform() != axes.transData and line.get_transform() in (
        axes.get_yaxis_transform(which="grid"),
        axes.get_xaxis_transform(which="grid"),
    )

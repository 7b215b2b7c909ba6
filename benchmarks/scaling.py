"""A scaling law of pretraining: loss against parameters and tokens, and what it says of long runs.

The runs are ordinary ones, for example of sweeps over the tokens at several sizes, each with its
own whole decay of the rate. The law is ``loss = c * parameters^-p * tokens^-q`` (nats a base): a
line in the logarithms, the least that has both, since runs on a CPU are few. It has no floor, and
so says too little of runs far longer than those that it was fitted to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import BenchError, OtherWork, Say, record
from megabase.genome.files import write_whole
from megabase.report.style import Size, Theme, as_svg
from megabase.settings import Settings
from megabase.untrusted import parsing, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = Size(860, 480, 12)
"""Room for five lines, their labels and the runs that are foretold."""
_UNITS = 1e6
"""Parameters and tokens are counted in millions while fitting."""


class Point(NamedTuple):
    """What a run came to."""

    name: str
    parameters: int
    tokens: int
    loss: float
    """Nats a base on the validation windows."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(Settings):
    """Fitting loss against parameters and tokens of pretraining runs, and predicting long ones."""

    runs: tuple[str, ...]
    """Run folders, or folders of sweeps."""
    predict: tuple[str, ...] = ()
    """Run folders that are left out of the fit, and compared with what it says."""
    points: tuple[tuple[int, int, float], ...] = ()
    """More runs to compare with: parameters, tokens, validation perplexity."""
    below: float = math.inf
    """Perplexity up to which a run is fitted. Short runs learn short words alone; then their loss
    falls by a step that no power of the tokens describes."""

    _limits: ClassVar[Mapping[str, str]] = {}

    def _problems(self) -> Iterator[str]:
        if not self.runs:
            yield "runs names no folder"


def run_scaling(config: ScalingConfig, say: Say) -> dict[str, Any]:
    """Fit; see :class:`ScalingConfig`.

    Returns
    -------
    dict
        Ready for JSON: the runs with what the law says of them, also of each one when it is left
        out of the fit, the law, and the predictions with their relative errors.
    """
    others = OtherWork()
    known = list(itertools.chain.from_iterable(map(_points, config.runs)))
    points = [point for point in known if math.exp(point.loss) <= config.below]
    if len(points) <= len(LAW):
        raise BenchError(f"a law of {len(LAW)} unknowns needs more than {len(points)} runs")
    law = fit(points)
    rows = []
    for at, point in enumerate(points):
        without = fit(points[:at] + points[at + 1 :])
        left_out = float(predicted(without, [point])[0])
        rows.append(_row(point, law) | {"left_out_error": left_out / point.loss - 1})
    short = [_row(point, law) for point in known if point not in points]
    ahead = list(itertools.chain.from_iterable(map(_points, config.predict)))
    ahead += [Point("", n, d, math.log(perplexity)) for n, d, perplexity in config.points]
    found = [_row(point, law) for point in ahead]
    for row in short + rows + found:
        say(
            f"{row['parameters']:>10,} parameters {row['tokens']:>12,} tokens  loss "
            f"{row['loss']:.4f}  law {row['law']:.4f}  error {row['error']:+.2%}"
        )
    named = dict(zip(LAW, map(float, law), strict=True))
    say("  ".join(f"{name} {value:.4g}" for name, value in named.items()))
    return record("scaling", config, others, law=named, runs=rows, short=short, predictions=found)


LAW = ("c", "p", "q")
"""Unknowns; parameters and tokens in millions, so that c is the loss at one million of both."""


def fit(points: Sequence[Point]) -> NDArray[np.float64]:
    """Fit the law to the logarithms of the losses by least squares; give its unknowns."""
    sizes = -np.log(_sizes(points))
    rows = np.column_stack([np.ones(len(points)), sizes])
    c, p, q = np.linalg.lstsq(rows, np.log([point.loss for point in points]))[0]
    return np.array([np.exp(c), p, q])


def predicted(law: NDArray[np.float64], points: Sequence[Point]) -> NDArray[np.float64]:
    """Give the losses that the law says."""
    return law[0] * (_sizes(points) ** -law[1:]).prod(axis=1)


def _sizes(points: Sequence[Point]) -> NDArray[np.float64]:
    return np.array([[point.parameters, point.tokens] for point in points]) / _UNITS


def _row(point: Point, law: NDArray[np.float64]) -> dict[str, Any]:
    said = float(predicted(law, [point])[0])
    return {**point._asdict(), "law": said, "error": said / point.loss - 1}


def _points(folder: str) -> list[Point]:
    """Read a run, or all runs of a sweep."""
    results = sorted(Path(folder).glob("result.json")) or sorted(Path(folder).glob("*/result.json"))
    if not results:
        raise BenchError(f"{folder} holds no finished run: expected result.json in it")
    found = []
    for path in results:
        with parsing(path, BenchError, "expected a run of pretraining with validation"):
            known = read_json(path, BenchError)
            sizes = int(known["trained_parameters"]), int(known["trained_tokens"])
            name = f"{path.parent.parent.name}/{path.parent.name}"
            found.append(Point(name, *sizes, float(known["valid"]["loss"])))
    return found


def save_plot(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Write loss against tokens as SVG beside the JSON, a line for each size."""
    path = output.with_suffix(".svg")
    write_whole(path, as_svg(partial(_draw, summary), size=_SIZE), True)
    return [path]


def _draw(summary: Mapping[str, Any], figure: Figure, theme: Theme, size: Size) -> None:
    """Draw runs as dots, the law as lines, and runs that it was not fitted to as crosses."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes = size.axes(figure, 70, 60, 20, 20)
    axes.set_xscale("log")
    law = np.array([summary["law"][name] for name in LAW])
    rows, short, ahead = summary["runs"], summary["short"], summary["predictions"]
    sizes = sorted({row["parameters"] for row in rows + short})
    for at, parameters in enumerate(sizes):
        own = [row for row in rows if row["parameters"] == parameters]
        color: Any = (theme.model, 0.35 + 0.65 * at / max(1, len(sizes) - 1))
        tokens = [row["tokens"] for row in own]
        farthest = max(row["tokens"] for row in rows + ahead)
        ends = ((min(tokens), max(tokens), "-"), (max(tokens), farthest, "--")) if own else ()
        for first, last, line in ends:
            along = np.geomspace(first, last)
            said = predicted(law, [Point("", parameters, int(count), 0.0) for count in along])
            axes.plot(along, said, line, color=color, linewidth=1.5)
        axes.plot(
            tokens, [row["loss"] for row in own], "o", color=color, markersize=6,
            label=f"{parameters:,} parameters",
        )  # fmt: skip
        own = [row for row in short if row["parameters"] == parameters]
        axes.plot(
            [row["tokens"] for row in own], [row["loss"] for row in own], "o", color=color,
            markersize=6, fillstyle="none",
        )  # fmt: skip
    for row in ahead:
        axes.plot(
            row["tokens"], row["loss"], "x", color=theme.baseline, markersize=9, markeredgewidth=2,
            label=f"{row['parameters']:,} parameters, not fitted: law {row['error']:+.1%}",
        )  # fmt: skip
    if short:
        axes.plot([], [], "o", color=theme.muted, fillstyle="none", label="short, not fitted")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("validation loss, nats a base")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(True)
    axes.legend(frameon=False, fontsize=size.text - 2)

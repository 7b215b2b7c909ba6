"""The runtime figure: time and memory of forward and backward against length, log-log.

Takes the dictionary of ``runtime.json``. Measured points are dots on a full line; what a fit says
of lengths that were not run is dashed, without dots, and named an extrapolation in the legend.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.genome.files import write_whole
from megabase.report.style import LIGHT, Size, Theme, require_matplotlib, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_runtime", "save_runtime_plots"]

Record = dict[str, Any]

_COLOURS = {"hyenadna": "#1a56c4", "gpt": "#b4530a", "mamba": "#2f7d4f", "caduceus": "#8a3ea8"}
_NAMES = {"hyenadna": "HyenaDNA", "gpt": "GPT", "mamba": "Mamba", "caduceus": "Caduceus"}
_GIB = 1 << 30
_SIZE = Size("runtime", 720, 430, 12.0)


def draw_runtime(
    summary: Record, what: str = "time", theme: Theme = LIGHT, size: Size = _SIZE
) -> Figure:
    """Draw one figure with a panel for each kind of checkpointing.

    Parameters
    ----------
    summary
        Content of ``runtime.json``.
    what
        ``"time"`` (seconds of a pass) or ``"memory"`` (peak of the process in GiB).
    theme, size
        Colours and size.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        When matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: Any = settings(theme, size)
    with mpl.rc_context(chosen):
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72, layout="constrained")
        panels = figure.subplots(1, len(summary["series"]), sharey=True, squeeze=False)[0]
        for axes, series in zip(panels, summary["series"], strict=True):
            _panel(axes, summary, series, what)
        panels[0].set_ylabel(
            "seconds, forward and backward" if what == "time" else "peak memory of the process, GiB"
        )
        config, machine = summary["config"], summary["environment"]
        facts = (
            f"{config['layers']} layers, width {config['width']}, batch {config['batch']}, "
            f"{config['dtype']}, {config['device']}; "
            f"{machine['processor'] or 'unknown processor'}, {machine['threads']} threads; "
            f"torch {machine['packages']['torch']}; {summary['when'][:10]}"
        )
        if summary["disturbed_points"]:
            facts += f"; machine busy during {summary['disturbed_points']} points"
        figure.supxlabel(facts, fontsize=size.text - 3, color=theme.muted)
    return figure


def _panel(axes: Axes, summary: Record, series: Record, what: str) -> None:
    checkpointing = series["checkpointing"]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(True, which="major")
    kind = "with" if checkpointing else "without"
    axes.set_title(f"{kind} activation checkpointing", loc="left")
    axes.set_xlabel("tokens")
    for model, row in series["models"].items():
        color, name = _COLOURS[model], _NAMES[model]
        points = _measured(summary, model, checkpointing, what)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=4, label=name)
        beyond = sorted((int(n), s) for n, s in row["extrapolated_seconds"].items())
        if what == "time" and points and beyond:
            fit = row["fit"]
            label = f"{name}: extrapolated, not run (length^{fit['exponent']:.2f})"
            line = [points[-1], *beyond]
            axes.plot(*zip(*line, strict=True), "--", color=color, linewidth=1.3, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="upper left")


def _measured(
    summary: Record, model: str, checkpointing: bool, what: str
) -> list[tuple[int, float]]:
    found = []
    for point in summary["points"]:
        same = point["model"] == model and point["checkpointing"] == checkpointing
        if same and point["result"] is not None:
            result = point["result"]
            value = result["seconds"] if what == "time" else result["peak_bytes"] / _GIB
            found.append((point["length"], value))
    return sorted(found)


def save_runtime_plots(summary: Record, folder: Path) -> list[Path]:
    """Write the time and the memory figure as SVG and PNG.

    Parameters
    ----------
    summary
        Content of ``runtime.json``.
    folder
        Existing folder; files of the same names are replaced.

    Returns
    -------
    list[Path]
        ``runtime-time.svg``, ``.png``, ``runtime-memory.svg``, ``.png``.
    """
    written = []
    for what in ("time", "memory"):
        figure = draw_runtime(summary, what)
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(
                buffer, format=kind, dpi=150, facecolor=LIGHT.background, metadata=metadata
            )
            path = folder / f"runtime-{what}.{kind}"
            write_whole(path, buffer.getvalue())
            written.append(path)
    return written

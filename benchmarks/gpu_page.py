"""One page of what ``python -m benchmarks gpu`` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import shown
from megabase.genome.files import write_whole
from megabase.report.style import Size, Theme, definitions, document, figure, section, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADINGS = {
    "limits": "What the device can do",
    "operators": "Operators in float32 against their definitions in float64",
    "step": "A training step of HyenaDNA",
    "length": "Against length: HyenaDNA and GPT with fused attention",
    "scan": "The selective scan, forward and backward",
    "pretrain": "Pretraining",
    "variants": "Variants",
    "generate": "Writing token by token",
}
_COLUMNS = (
    "side", "operator", "what", "model", "checkpointing", "batch", "length", "window", "channels",
    "states", "dtype", "precision", "seconds", "forward", "backward", "tokens_per_second",
    "positions_per_second", "variants_per_second", "bytes_per_second", "flops_per_second",
    "peak_bytes", "launches", "bytes", "share_of_copy", "share_of_product", "largest_difference",
    "within",
)  # fmt: skip
_MARKS = ("o", "s", "^", "D")
"""Told apart without color."""


def save_page(found: Mapping[str, Any], output: Path) -> list[Path]:
    """Write the page beside the JSON; an earlier one is replaced."""
    machine, config = found["environment"], found["config"]
    facts = [
        ("device", found["device_name"]), ("processor", machine["processor"]),
        ("torch", machine["packages"]["torch"]), ("when", found["when"]),
        ("sizes", "tiny: these times say nothing" if config["small"] else "full"),
    ]  # fmt: skip
    parts = [f"<h1>HyenaDNA on {found['device_name']}</h1>", definitions(facts)]
    for part, heading in _HEADINGS.items():
        rows = [row for row in found["rows"] if row["part"] == part]
        if rows:
            parts.append(section(heading, [_plot(part, rows), _table(rows)]))
    path = output.with_suffix(".html")
    write_whole(path, document("GPU", parts), True)
    return [path]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [c for c in _COLUMNS if any(row.get(c) is not None for row in rows)]
    cells = [
        ["" if row.get(c) is None else shown(row[c]) for c in columns] + [_status(row)]
        for row in rows
    ]
    return table([*(c.replace("_", " ") for c in columns), ""], cells)


def _status(row: Mapping[str, Any]) -> str:
    return "" if row["status"] == "measured" else f"{row['status']}: {row['reason']}"


def _plot(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Give the picture of a part that has one."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if part == "length" and row["status"] == "measured":
            kind = "checkpointed" if row["checkpointing"] else "not checkpointed"
            lines.setdefault(f"{row['model']}, {row['side']}, {kind}", []).append(
                (row["length"], row["seconds"])
            )
    if not lines:
        return ""
    text = "Seconds of forward and backward against length"
    return figure(partial(_draw, lines), text, f"{text}, both logarithmic.")


def _draw(
    lines: Mapping[str, Sequence[tuple[float, float]]], figure: Figure, theme: Theme, size: Size
) -> None:
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    for number, (name, points) in enumerate(lines.items()):
        color = theme.baseline if name.startswith("gpt") else theme.model
        hollow = "none" if ", not" not in name else color
        axes.plot(
            *zip(*points, strict=True), color=color, marker=_MARKS[number // 2 % len(_MARKS)],
            markerfacecolor=hollow, linewidth=1.4, label=name,
        )  # fmt: skip
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False, fontsize=size.text - 3)

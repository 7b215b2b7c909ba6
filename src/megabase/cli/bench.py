"""Measure speed and memory on this machine."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from megabase.bench.config import RuntimeConfig
from megabase.cli.bench_generate import make_parser, run_generate
from megabase.cli.bench_scan import make_scan_parser, run_scan_bench
from megabase.cli.bench_step import make_step_parsers, run_load, run_memory, run_step

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.bench.runtime import Point

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase bench step --length 4096",
    "megabase bench runtime -o bench",
)

_MIB = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    """Add the measurements to the parser of ``megabase bench``."""
    from jsonargparse import ArgumentParser

    from megabase.cli.help_text import HelpFormatter

    actions = parser.add_subcommands(required=True, dest="action")
    runtime = ArgumentParser(
        formatter_class=HelpFormatter,
        description="Time and memory of forward and backward against length, each point in a "
        "process of its own. Writes runtime.json and a log-log plot.",
    )
    runtime.add_argument("-o", "--output", required=True, help="folder for runtime.json and plots")
    runtime.add_argument(
        "--overwrite", action="store_true", help="replace an earlier measurement in that folder"
    )
    runtime.add_argument("--no-plot", action="store_true", help="write no plot")
    runtime.add_class_arguments(RuntimeConfig)
    actions.add_subcommand("runtime", runtime, help="runtime against length, model by model")
    actions.add_subcommand("generate", make_parser(), help="writing tokens one by one")
    texts = {
        "step": "a training step beside the published way and its limit",
        "memory": "peak memory of a training step beside its estimate",
        "load": "drawing windows, reading them, token ids",
    }
    for name, parser_of in make_step_parsers().items():
        actions.add_subcommand(name, parser_of, help=texts[name])
    actions.add_subcommand("scan", make_scan_parser(), help="the selective scan")


def run(args: Namespace) -> int:
    """Run one measurement; errors are raised as MegabaseError."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    actions = {
        "runtime": _runtime,
        "generate": run_generate,
        "step": run_step,
        "memory": run_memory,
        "load": run_load,
        "scan": run_scan_bench,
    }
    actions[args.action](args[args.action], console)
    return 0


def _runtime(args: Namespace, console: Console) -> None:
    from pathlib import Path

    from megabase.bench.runtime import prepare_output, run_runtime, summarise, write_runtime

    names = [field.name for field in dataclasses.fields(RuntimeConfig)]
    values = {name: args[name] for name in names}
    config = RuntimeConfig(**{**values, "models": tuple(values["models"])})
    folder = Path(args.output)
    if not args.no_plot:
        from megabase.report.plots import require_matplotlib

        require_matplotlib()
    path = prepare_output(folder, args.overwrite)
    points: list[Point] = []

    def measured(point: Point) -> None:
        points.append(point)
        console.print(_line(point), markup=False)
        write_runtime(path, summarise(config, points))

    run_runtime(config, measured=measured)
    summary = summarise(config, points)
    write_runtime(path, summary)
    for line in _conclusions(summary):
        console.print(line, markup=False)
    console.print(f"wrote {path}", markup=False)
    if not args.no_plot:
        from megabase.report.runtime_plot import save_runtime_plots

        for file in save_runtime_plots(summary, folder):
            console.print(f"wrote {file}", markup=False)


def _line(point: Point) -> str:
    kind = "checkpointed" if point.checkpointing else "plain"
    head = f"{point.model:<9} {kind:<12} {point.length:>9,} tokens  "
    busy = f"  [others kept {point.other_cores:.1f} cores busy]" if point.disturbed else ""
    if point.result is None:
        return f"{head}{point.status}: {point.reason}{busy}"
    found = point.result
    return (
        f"{head}{found['seconds']:10.4f} s  (forward {found['forward']:.4f}, backward "
        f"{found['backward']:.4f}; {len(found['passes'])} passes)  "
        f"peak {found['peak_bytes'] / _MIB:,.0f} MiB{busy}"
    )


def _conclusions(summary: dict[str, Any]) -> list[str]:
    lines = []
    if summary["disturbed_points"]:
        lines.append(
            f"the machine had other work during {summary['disturbed_points']} points; their times "
            "are too long, measure again on a quiet machine"
        )
    for series in summary["series"]:
        kind = "with" if series["checkpointing"] else "without"
        for model, row in series["comparisons"].items():
            if row["longest_common"] is None:
                continue
            lines.append(
                f"{kind} checkpointing: {model} / {series['reference']} = "
                f"{row['ratio_at_longest_common']:.2f} at {row['longest_common']:,} tokens "
                "(longest measured for both)"
            )
            found = row["reference_overtakes"]
            if found["length"] is None:
                lines.append(f"  {series['reference']} does not overtake {model}")
            else:
                lines.append(
                    f"  {series['reference']} overtakes {model} at about "
                    f"{found['length']:,.0f} tokens ({found['how']})"
                )
    return lines

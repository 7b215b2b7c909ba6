"""``python -m benchmarks MEASUREMENT``: speed and memory of the models on this machine."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed.config import (
    GenerateConfig,
    LoadConfig,
    MemoryConfig,
    RuntimeConfig,
    ScanConfig,
    StepConfig,
)
from benchmarks.speed.others import disturbed
from megabase.errors import MegabaseError
from megabase.genome.files import write_json

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from benchmarks.speed.runtime import Point

__all__ = ["main"]

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Measurement:
    """Settings, help, the function that measures, and the lines that tell its result."""

    config: type
    summary: str
    description: str
    measure: str
    lines: Callable[[dict[str, Any]], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement.

    Returns
    -------
    int
        0, or 2 after an error that is printed as one line.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings
    from rich.console import Console

    from megabase.cli.parser import HelpFormatter

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=HelpFormatter
    )
    actions = parser.add_subcommands(required=True, dest="action")
    runtime = _parser(
        RuntimeConfig,
        "Time and memory of forward and backward against length, each point in a process of its "
        "own. Writes runtime.json and a log-log plot.",
        "folder for runtime.json and plots",
    )
    runtime.add_argument("--no-plot", action="store_true", help="write no plot")
    actions.add_subcommand("runtime", runtime, help="runtime against length, model by model")
    for name, item in _MEASUREMENTS.items():
        actions.add_subcommand(
            name,
            _parser(item.config, item.description, "write the result as JSON"),
            help=item.summary,
        )
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    try:
        args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        run = _runtime if args.action == "runtime" else _run
        run(args.action, args[args.action], console)
    except MegabaseError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser(config: type, description: str, output: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    from megabase.cli.parser import HelpFormatter

    parser = ArgumentParser(formatter_class=HelpFormatter, description=description)
    folder = config is RuntimeConfig
    parser.add_argument(
        "-o", "--output", type=str, default=None, required=folder,
        metavar="FOLDER" if folder else "FILE", help=output,
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    parser.add_class_arguments(config)
    return parser


def _run(name: str, args: Namespace, console: Console) -> None:
    from benchmarks.speed.generation import prepare_output
    from megabase.training.process import keep_freed_memory

    item = _MEASUREMENTS[name]
    config = item.config(**{f.name: args[f.name] for f in dataclasses.fields(item.config)})
    path = None if args.output is None else Path(args.output)
    if path is not None:
        prepare_output(path, args.overwrite)
    if name == "scan":
        keep_freed_memory()
    module, function = item.measure.split(":")
    measure = getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)
    found = measure(config, say=lambda text: console.print(text, markup=False))
    facts = found.get("environment", {})
    if "processor" in facts:
        console.print(
            f"{facts['processor']}, {facts['threads']} threads, torch {facts['packages']['torch']}",
            markup=False,
        )
    for line in item.lines(found):
        console.print(line, markup=False)
    if path is not None:
        write_json(path, found)
        console.print(f"wrote {path}", markup=False)


def _runtime(name: str, args: Namespace, console: Console) -> None:
    from benchmarks.speed.runtime import prepare_output, run_runtime, summarize, write_runtime

    names = [field.name for field in dataclasses.fields(RuntimeConfig)]
    values = {name: args[name] for name in names}
    config = RuntimeConfig(**{**values, "models": tuple(values["models"])})
    folder = Path(args.output)
    if not args.no_plot:
        from megabase.report.style import require_matplotlib

        require_matplotlib()
    path = prepare_output(folder, args.overwrite)
    points: list[Point] = []

    def measured(point: Point) -> None:
        points.append(point)
        console.print(_line(point), markup=False)
        write_runtime(path, summarize(config, points))

    run_runtime(config, measured=measured)
    summary = summarize(config, points)
    write_runtime(path, summary)
    for line in _conclusions(summary):
        console.print(line, markup=False)
    console.print(f"wrote {path}", markup=False)
    if not args.no_plot:
        from benchmarks.speed.runtime_plot import save_runtime_plots

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


def _generate_lines(found: dict[str, Any]) -> list[str]:
    config, at, equality = found["config"], found["compared_at"], found["equality"]
    forgetful = equality["difference_when_only_the_last_1024_tokens_are_read"]
    return [
        f"{config['model']} {config['layers']} x {config['width']}: "
        f"{found['tokens_per_second']:,.0f} tokens/s over {config['tokens']:,} tokens "
        f"(batch {config['batch']}; medians of {config['repeats']})",
        f"median token {1e3 * found['median_token_seconds']:.3f} ms; processor time "
        f"{1e3 * found['cpu_seconds_per_token']:.3f} ms a token",
        f"cost of the last thousand tokens over the first: "
        f"{found['growth_last_to_first_thousand']:.2f}; slowest token "
        f"{1e3 * found['slowest_token_seconds']:.1f} ms",
        f"at {at['length']:,} tokens a full pass takes {1e3 * at['full_pass_seconds']:.2f} ms, a "
        f"step {1e3 * at['step_seconds']:.3f} ms: {at['ratio']:,.0f} times",
        f"scores at {equality['positions']} positions within {equality['largest_difference']:.1e} "
        f"of a full pass (reading only the last 1,024 tokens would change them by {forgetful:.1e})",
    ]


def _scan_lines(found: dict[str, Any]) -> list[str]:
    config = found["config"]
    lines = [
        f"scan of {config['batch']} x {config['length']:,}, {config['channels']} channels, "
        f"{config['states']} states; {found['environment']['threads']} threads; kernels: "
        f"{found['kernels']}"
    ]
    if disturbed(found["other_cores"]):
        lines.append(f"others kept {found['other_cores']:.1f} cores busy meanwhile")
    for title, group in (("scan", found["scan"]), ("model of two layers", found.get("model", {}))):
        for name, row in group.items():
            if isinstance(row, dict) and "median" in row:
                lines.append(
                    f"  {title}: {name:<32} {row['median']:10.3f} ms "
                    f"({row['lowest']:.3f} to {row['highest']:.3f})"
                )
        lines += [f"  {title}: {name}: {x:.2f}" for name, x in group.get("ratios", {}).items()]
    for name, row in found.get("tokens_per_second", {}).items():
        lines.append(f"  training of {name}: {row['median']:,.0f} tokens/s")
    for name, row in found.get("memory", {}).items():
        lines.append(
            f"  peak memory at {config['memory_length']:,}, {name}: {row['peak_bytes'] / 1e6:,.0f} "
            f"MB, {row['ratio']:.2f} times inputs and outputs"
        )
    return lines


def _step_lines(found: dict[str, Any]) -> list[str]:
    config, seconds, ratios = found["config"], found["seconds"], found["ratios"]
    lines = [
        f"{config['batch']} x {config['length']:,}, {config['layers']} x {config['width']}, "
        f"{config['precision']}: {seconds['megabase']:.3f} s a step, "
        f"{found['tokens_per_second']:,.0f} tokens/s (medians of {config['repeats']})",
        f"the published way takes {seconds['plain']:.3f} s: {ratios['plain']:.2f} times",
    ]
    if "plain_as_it_comes" in ratios:
        lines.append(
            f"with the allocator as it comes {seconds['plain_as_it_comes']:.3f} s: "
            f"{ratios['plain_as_it_comes']:.2f} times"
        )
    lines += [
        f"bare products {seconds['products']:.3f} s and transforms {seconds['transforms']:.3f} s "
        f"are {found['share_of_limit']:.0%} of the step",
        f"products in pieces that stay in the cache {seconds['products_in_cache']:.3f} s: "
        f"{found['share_of_limit_in_cache']:.0%} with the transforms",
    ]
    if disturbed(found["other_cores"]):
        lines.append(
            f"others kept {found['other_cores']:.1f} cores busy meanwhile: trust the ratios little"
        )
    return lines


def _memory_lines(found: dict[str, Any]) -> list[str]:
    estimate = found["estimate"]["total"]
    return [
        f"estimate {estimate / 1e9:.2f} GB, {found['estimate_to_peak']:.2f} times the peak",
    ]


def _load_lines(found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    return [
        f"drawing {1e3 * seconds['draw']:.3f} ms, drawing and reading "
        f"{1e3 * seconds['batch']:.3f} ms, token ids {1e3 * seconds['ids']:.3f} ms: "
        f"{found['tokens_per_second']:,.0f} tokens/s",
        f"a busy loop waits {1e3 * seconds['wait']:.3f} ms for a batch that is read ahead",
    ]


_MEASUREMENTS = {
    "generate": _Measurement(
        GenerateConfig,
        "generation, one token at a time",
        "Tokens per second of writing one token at a time, the growth of their cost, and the ratio "
        "to a full pass for each token. Scores are compared with those of a full pass first; "
        "nothing is reported when they differ.",
        "generation:run_generation",
        _generate_lines,
    ),
    "step": _Measurement(
        StepConfig,
        "a training step against the published way and its limit",
        "Seconds of forward, loss and backward of HyenaDNA, beside the published way of computing "
        "it and beside its bare matrix products and Fourier transforms. Loss and gradients are "
        "compared with those of the published way first; nothing is reported when they differ.",
        "step:run_step",
        _step_lines,
    ),
    "memory": _Measurement(
        MemoryConfig,
        "peak memory of a training step against its estimate",
        "Peak memory of one training step of HyenaDNA, optimizer included, in a process of its "
        "own, beside the published way and the estimate that --dry-run prints. Gradients are "
        "compared first; nothing is reported when they differ.",
        "step:run_memory",
        _memory_lines,
    ),
    "load": _Measurement(
        LoadConfig,
        "drawing windows, reading them, token ids",
        "Seconds of drawing windows, reading them from a genome store and turning them to token "
        "ids. A batch is compared with the bases of its windows first.",
        "load:run_load",
        _load_lines,
    ),
    "scan": _Measurement(
        ScanConfig,
        "the selective scan",
        "Time of the selective scan, forward and backward: the plain definition, the path in "
        "torch, the one in C++, its exponentials alone, and a model in transformers. Values and "
        "gradients are compared first; nothing is reported when they differ.",
        "scan:run_scan",
        _scan_lines,
    ),
}

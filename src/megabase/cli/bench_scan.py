"""``megabase bench scan``: the selective scan of Mamba and Caduceus."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from megabase.bench.others import disturbed
from megabase.bench.scan_config import ScanConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

__all__ = ["make_scan_parser", "run_scan_bench"]


def make_scan_parser() -> ArgumentParser:
    """Make the parser of ``megabase bench scan``."""
    from jsonargparse import ArgumentParser

    from megabase.cli.help_text import HelpFormatter

    parser = ArgumentParser(
        formatter_class=HelpFormatter,
        description="Time of the selective scan, forward and backward: the plain definition, the "
        "path in torch, the one in C++, its exponentials alone, and a model in transformers. "
        "Values and gradients are compared first; nothing is reported when they differ.",
    )
    parser.add_argument(
        "-o", "--output", type=str, default=None, metavar="FILE", help="write the result as JSON"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    parser.add_class_arguments(ScanConfig)
    return parser


def run_scan_bench(args: Namespace, console: Console) -> None:
    """Measure, print, and write the JSON."""
    from pathlib import Path

    from megabase.bench.generation import prepare_output
    from megabase.bench.scan import run_scan
    from megabase.training.allocator import keep_freed_memory
    from megabase.training.provenance import write_json

    names = [field.name for field in dataclasses.fields(ScanConfig)]
    config = ScanConfig(**{name: args[name] for name in names})
    path = None if args.output is None else Path(args.output)
    if path is not None:
        prepare_output(path, args.overwrite)
    keep_freed_memory()
    found = run_scan(config, say=lambda text: console.print(text, markup=False))
    for line in _lines(found):
        console.print(line, markup=False)
    if path is not None:
        write_json(path, found)
        console.print(f"wrote {path}", markup=False)


def _lines(found: dict[str, Any]) -> list[str]:
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

"""``megabase bench generate``: writing tokens one by one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from megabase.bench.generate_config import GenerateConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

__all__ = ["make_parser", "run_generate"]


def make_parser() -> ArgumentParser:
    """Make the parser of ``megabase bench generate``."""
    from jsonargparse import ArgumentParser

    from megabase.cli.help_text import HelpFormatter

    parser = ArgumentParser(
        formatter_class=HelpFormatter,
        description="Tokens per second of writing one token at a time, the growth of their cost, "
        "and the ratio to a full pass for each token. Scores are compared with those of a full "
        "pass first; nothing is reported when they differ.",
    )
    parser.add_argument(
        "-o", "--output", type=str, default=None, metavar="FILE", help="write the result as JSON"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    parser.add_class_arguments(GenerateConfig)
    return parser


def run_generate(args: Namespace, console: Console) -> None:
    """Measure, print, and write the JSON."""
    from pathlib import Path

    from megabase.bench.generation import prepare_output, run_generation
    from megabase.training.provenance import write_json

    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    config = GenerateConfig(**{name: args[name] for name in names})
    path = None if args.output is None else Path(args.output)
    if path is not None:
        prepare_output(path, args.overwrite)
    found = run_generation(config, say=lambda text: console.print(text, markup=False))
    for line in _lines(found):
        console.print(line, markup=False)
    if path is not None:
        write_json(path, found)
        console.print(f"wrote {path}", markup=False)


def _lines(found: dict[str, Any]) -> list[str]:
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

"""``megabase bench step|memory|load``: a training step, its memory, and its data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from megabase.bench.others import disturbed
from megabase.bench.step_config import LoadConfig, MemoryConfig, StepConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

__all__ = ["make_step_parsers", "run_load", "run_memory", "run_step"]

_TEXTS: dict[str, tuple[type, str]] = {
    "step": (
        StepConfig,
        "Seconds of forward, loss and backward of HyenaDNA, beside the published way of computing "
        "it and beside its bare matrix products and Fourier transforms. Loss and gradients are "
        "compared with those of the published way first; nothing is reported when they differ.",
    ),
    "memory": (
        MemoryConfig,
        "Peak memory of one training step of HyenaDNA, optimizer included, in a process of its "
        "own, beside the published way and the estimate that --dry-run prints. Gradients are "
        "compared first; nothing is reported when they differ.",
    ),
    "load": (
        LoadConfig,
        "Seconds of drawing windows, reading them from a genome store and turning them to token "
        "ids. A batch is compared with the bases of its windows first.",
    ),
}


def make_step_parsers() -> dict[str, ArgumentParser]:
    """Make the parsers by the name of their measurement."""
    from jsonargparse import ArgumentParser

    from megabase.cli.help_text import HelpFormatter

    parsers = {}
    for name, (config, text) in _TEXTS.items():
        parser = ArgumentParser(formatter_class=HelpFormatter, description=text)
        parser.add_argument(
            "-o",
            "--output",
            type=str,
            default=None,
            metavar="FILE",
            help="write the result as JSON",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
        parser.add_class_arguments(config)
        parsers[name] = parser
    return parsers


def run_step(args: Namespace, console: Console) -> None:
    """Measure a training step."""
    from megabase.bench import step

    _run(args, console, "step", step.run_step, _step_lines)


def run_memory(args: Namespace, console: Console) -> None:
    """Measure the memory of a training step."""
    from megabase.bench import memory

    _run(args, console, "memory", memory.run_memory, _memory_lines)


def run_load(args: Namespace, console: Console) -> None:
    """Measure the data path."""
    from megabase.bench import load

    _run(args, console, "load", load.run_load, _load_lines)


def _run(args: Namespace, console: Console, name: str, measure: Any, lines: Any) -> None:
    from pathlib import Path

    from megabase.bench.generation import prepare_output
    from megabase.training.provenance import write_json

    kind = _TEXTS[name][0]
    config = kind(**{field.name: args[field.name] for field in dataclasses.fields(kind)})
    path = None if args.output is None else Path(args.output)
    if path is not None:
        prepare_output(path, args.overwrite)
    found = measure(config, say=lambda text: console.print(text, markup=False))
    facts = found["environment"]
    console.print(
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['packages']['torch']}",
        markup=False,
    )
    for line in lines(found):
        console.print(line, markup=False)
    if path is not None:
        write_json(path, found)
        console.print(f"wrote {path}", markup=False)


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

"""Describe a model, its inputs and the memory it needs; or list the published shapes.

The memory is an estimate for float32 on a CPU, meant to be right within a third.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.models.describe import ModelDescription

EXAMPLES = (
    "megabase info",
    "megabase info runs/mine --length 1024 --batch 32",
    "megabase info --presets",
)
"""Shown under the help text."""

_SHOWN_LABELS = 10
"""Classes that are listed: a line or two; JSON has all of them."""
_SCORING_VALUES = 14
"""Values alive at the peak, per position and unit of width: measured on HyenaDNA in float32 without
gradients, at 4 x 65,536 tokens."""
_PROCESS_BYTES = 500_000_000
"""Of a process that has imported torch and transformers: measured."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model and the options."""
    parser.add_argument(
        "model", nargs="?", default=None, type=str, metavar="MODEL",
        help="model folder, run folder, preset or Hub repository (default: the packaged model)",
    )  # fmt: skip
    parser.add_argument(
        "--length", default=None, type=int,
        help="tokens of each input in the memory estimate (default: the longest input)",
    )  # fmt: skip
    parser.add_argument("--batch", default=1, type=int, help="inputs in one batch of the estimate")
    parser.add_argument("--presets", action="store_true", help="list the published shapes")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: Namespace) -> int:
    """Print the description or the table."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # a file or a pipe: nothing is gained by folding lines
        console = Console(highlight=False, width=200)
    if args.presets:
        _presets(console, args.json)
        return 0
    from megabase.errors import MegabaseError
    from megabase.models.describe import describe

    model = describe(args.model)
    if args.batch < 1 or (args.length is not None and args.length < 1):
        raise MegabaseError("--length and --batch must be at least 1")
    if args.length is not None and model.longest is not None and args.length > model.longest:
        raise MegabaseError(
            f"--length {args.length:,} is over the longest input of {model.path}, {model.longest:,}"
        )
    memory = _memory(model, args.length or model.longest, args.batch)
    if args.json:
        described = {**dataclasses.asdict(model), "path": str(model.path), "memory": memory}
        print(json.dumps(described, indent=2))
    else:
        _show(console, model, memory, used_default=args.model is None)
    return 0


def _memory(model: ModelDescription, length: int | None, batch: int) -> dict[str, int] | None:
    """Estimate bytes for scoring and for a training step; None where the formula does not apply."""
    if model.layers is None or model.width is None or length is None:
        return None
    from megabase.models.describe import TrainingStep

    step = TrainingStep(
        parameters=model.parameters,
        layers=model.layers,
        width=model.width,
        columns=model.columns or 0,
        micro_batch=batch,
        length=length,
        fused=model.piecewise,
    ).memory()
    scoring = batch * length * (_SCORING_VALUES * 4 * model.width + 12 * (model.columns or 0))
    stored = 4 * model.constants
    return {
        "length": length,
        "batch": batch,
        "inference_bytes": _PROCESS_BYTES + 4 * model.parameters + stored + scoring,
        "training_step_bytes": step.total + stored,
    }


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"


def _show(
    console: Console, model: ModelDescription, memory: dict[str, int] | None, used_default: bool
) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, value: object) -> None:
        if value not in (None, "", ()):
            table.add_row(name, str(value))

    row("model", f"{model.path}{' (packaged with megabase)' if used_default else ''}")
    row("class", f"{model.class_name} ({model.model_type}, {model.kind})")
    row("shape", f"{model.layers} layers of width {model.width}" if model.layers else "")
    row("parameters", f"{model.parameters:,}")
    row("constants", f"{model.constants:,} (stored, not trained)" if model.constants else "")
    row("file size", _size(model.file_bytes))
    row("longest input", f"{model.longest:,} tokens" if model.longest else "")
    shown = ", ".join(model.labels[:_SHOWN_LABELS])
    more = len(model.labels) - _SHOWN_LABELS
    row("labels", shown + (f", and {more} more" if more > 0 else ""))
    tokenizer = dict(model.tokenizer)
    name = tokenizer.pop("class")
    row("tokenizer", f"{name} ({', '.join(f'{k} {v}' for k, v in tokenizer.items())})")
    row("window shift", model.settings.get("window_shift"))
    if memory is not None:
        at = f"at {memory['batch']} x {memory['length']:,} tokens, estimated"
        row("memory, scoring", f"{_size(memory['inference_bytes'])} {at}")
        row("memory, training", f"{_size(memory['training_step_bytes'])} {at}")
    if model.source:
        row("converted from", model.source.get("source"))
        for note in model.source.get("notes", []):
            row("", f"note: {note}")
    console.print(table, markup=False)


def _presets(console: Console, as_json: bool) -> None:
    from rich.table import Table

    from megabase.models.presets import PRESETS

    if as_json:
        presets = PRESETS.values()
        rows = [{**dataclasses.asdict(one), "config": dict(one.config)} for one in presets]
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("preset", "family", "parameters", "bases", "repository"):
        table.add_column(
            name,
            justify="right" if name in ("parameters", "bases") else "left",
            no_wrap=name != "repository",
            overflow="fold",
        )
    for preset in PRESETS.values():
        table.add_row(preset.name, preset.family, f"{preset.parameters:,}", f"{preset.length:,}",
                      preset.hub or preset.checkpoint or "")  # fmt: skip
    console.print(table)

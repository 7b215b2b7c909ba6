"""Turn a published checkpoint into a model folder.

Reads Lightning checkpoints (.ckpt), torch files (.pt, .bin), safetensors and Hugging Face folders.
Pickles are read without running any code in them. Every tensor that is missing, unexpected or of
another shape is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.errors import MegabaseError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = (
    "megabase convert weights.ckpt folder",
    "megabase convert default longer --longest 16386",
)
"""Shown under the help text."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add source, destination and options."""
    parser.add_argument(
        "source", metavar="SRC",
        help="checkpoint file, folder with one, preset name or Hub repository (owner/name)",
    )  # fmt: skip
    parser.add_argument("destination", metavar="DST", help="model folder to write")
    parser.add_argument(
        "--config", default=None, type=str, metavar="FILE",
        help="config.json to use instead of the one next to the weights",
    )  # fmt: skip
    parser.add_argument(
        "--window-shift", default=None, type=float, metavar="NUMBER",
        help="constant added to a Hyena filter's window: 0.05 in the published loaders (default), "
        "0.0 in the published training code; no file records it",
    )  # fmt: skip
    parser.add_argument(
        "--longest", default=None, type=int, metavar="POSITIONS",
        help="give a trained HyenaDNA room for longer inputs: SRC is a model folder, a run folder "
        "or `default`; outputs for inputs that it could take before stay the same",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier model folder of this name"
    )


def run(args: Namespace) -> int:
    """Convert; report what was made and what was decided."""
    from rich.console import Console

    from megabase.models.checkpoints.convert import convert_checkpoint, lengthen_model

    if args.longest is not None:
        if args.config is not None or args.window_shift is not None:
            raise MegabaseError(
                "--longest takes a model folder as it is; convert the checkpoint first, then give "
                "the folder with --longest alone"
            )
        made = lengthen_model(args.source, args.destination, args.longest, args.overwrite)
    else:
        options = {} if args.window_shift is None else {"window_shift": args.window_shift}
        made = convert_checkpoint(
            args.source, args.destination, config=args.config, overwrite=args.overwrite, **options
        )
    console = Console(highlight=False, soft_wrap=True)
    count = sum(parameter.numel() for parameter in made.model.parameters())
    limit = getattr(made.model.config, "max_length", None)
    longest = f", inputs of up to {limit:,} tokens" if limit else ""
    console.print(f"{type(made.model).__name__}: {count:,} parameters{longest}", markup=False)
    for note in made.notes:
        console.print(f"note: {note}", markup=False)
    if made.dropped:
        console.print(f"left out: {', '.join(made.dropped)}", markup=False)
    console.print(f"wrote {Path(args.destination).expanduser()}", markup=False)
    return 0

"""Pretrain a language model on a genome.

A run is described by a recipe (--config) and flags that win over it; every field of the recipe is a
flag of the same name. The resolved recipe is saved in the output folder and re-creates the run.
Exit status: 0 at the end of the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT
stopped it after a checkpoint was saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megabase.cli.settings_options import settings_of
from megabase.cli.training import add_run, plan_console, stopped
from megabase.tasks.config import PretrainConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SETTINGS = PretrainConfig
"""What the arguments are made into."""
EXAMPLES = (
    "megabase pretrain --config recipe.yaml --dry-run",
    "megabase pretrain --config recipe.yaml --resume",
)
"""The shortest calls that do something useful, for the help."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every field of :class:`PretrainConfig`."""
    add_run(parser, PretrainConfig)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = settings_of(PretrainConfig, args)
    console = plan_console()
    from megabase.tasks.pretrain import pretrain

    result = pretrain(config, dry_run=args.dry_run, console=console)
    return stopped([] if result is None else [result]) or 0

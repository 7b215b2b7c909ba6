"""Pretrain a language model on a genome.

A run is described by a recipe (--config) and flags that win over it; every field of the recipe is a
flag of the same name. The resolved recipe is saved in the output folder and re-creates the run.
Exit status: 0 at the end of the run, 2 for an input to mend, 143 or 130 when SIGTERM or SIGINT
stopped it after a checkpoint was saved.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from megabase.cli.config_errors import add_recipe, explain_errors
from megabase.tasks.config import PretrainConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase pretrain --config recipe.yaml --dry-run",
    "megabase pretrain --config recipe.yaml --resume",
)

_SWITCHES = {
    "resume": "continue from the last checkpoint of the output folder, exactly",
    "overwrite": "delete an earlier run in the output folder and start anew",
    "force": "start although the estimated memory does not fit",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the recipe, every field of :class:`PretrainConfig` and the switches."""
    add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(PretrainConfig, skip=set(_SWITCHES))
    explain_errors(parser, PretrainConfig)


def config_of(args: Namespace) -> PretrainConfig:
    """Build the configuration from parsed arguments.

    Raises
    ------
    ConfigError
        Naming every field that cannot be used.
    """
    from jsonargparse import ArgumentParser

    names = {field.name for field in dataclasses.fields(PretrainConfig)} - set(_SWITCHES)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PretrainConfig, skip=set(_SWITCHES))
    values = args.clone()
    for name in list(vars(values)):
        if name not in names:
            values.pop(name)
    built: dict[str, Any] = vars(parser.instantiate(values))
    built.update({name: bool(args[name]) for name in _SWITCHES})
    return PretrainConfig(**built)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = config_of(args)
    from megabase.training.process import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from megabase.tasks.pretrain import pretrain

    result = pretrain(config, dry_run=args.dry_run, console=Console(stderr=not sys.stdout.isatty()))
    return 128 + result.signal if result is not None and result.signal is not None else 0

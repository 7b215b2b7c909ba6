"""The parser of a verb: its own arguments, those of every verb, and how ``--help`` looks."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from megabase.cli.messages import explain_errors

_EXAMPLES = "examples:\n"
"""Marks a text of examples, whose lines are not to be filled."""


class Verb(NamedTuple):
    """What ``megabase NAME ...`` does; the docstring of `run` is the description in the help."""

    add_arguments: Callable[[ArgumentParser], None]
    """Adds the arguments of the verb to its parser."""
    run: Callable[[Namespace], int]
    """Runs it and gives the exit status; errors are raised as MegabaseError."""
    examples: tuple[str, ...]
    """Commands that do something useful, for the end of the help."""


class HelpFormatter(DefaultHelpFormatter):
    """The formatter of jsonargparse without the defaults that say nothing, or say it twice."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        if action.dest == "help":
            return text
        own = action.help or ""
        unset = action.default is None and "null" not in (self._get_type_str(action) or "")
        if action.nargs == 0 or unset or action.default == [] or "(default" in own:
            # Only what was added behind the text of the option itself.
            added = text[len(own) :]
            for piece in (", default: %(default)s", "default: %(default)s"):
                added = added.replace(piece, "")
            return own + ("" if added == " ()" else added)
        return text

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        return super()._fill_text(text, width, indent)


def build_parser(name: str, module: str) -> tuple[ArgumentParser, Verb]:
    """Give the parser of the verb `name` of a module, and the verb."""
    # The attribute docstrings of the configuration dataclasses are the help texts.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    verb: Verb = importlib.import_module(module).VERBS[name]
    parser = ArgumentParser(
        prog=f"megabase {name}",
        description=inspect.getdoc(verb.run),
        epilog=_EXAMPLES + "\n".join(f"  {line}" for line in verb.examples),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        print_config="--print-config",
    )
    verb.add_arguments(parser)
    add = parser.add_argument_group("for every verb").add_argument
    if "--config" not in parser._option_string_actions:
        add("--config", action="config", metavar="FILE.yaml",
            help="options by name, with underscores; those of the command line win")  # fmt: skip
    add("--quiet", action="store_true", help="show no progress and no notes")
    add("--verbose", action="store_true", help="show where an error was raised, as "
        "MEGABASE_DEBUG=1")  # fmt: skip
    explain_errors(parser)
    return parser, verb

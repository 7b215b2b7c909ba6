"""Settings on the command line: ``--config`` and a flag for every field of a settings class."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from megabase.cli.messages import explain_errors
from megabase.errors import ConfigError
from megabase.settings import RETIRED, Settings
from megabase.untrusted import YAML_BYTES, parse_yaml, read_text, recognize

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_Config = TypeVar("_Config", bound=Settings)


def add_settings(
    parser: ArgumentParser, config: type[Settings], skip: Iterable[str | int] = ()
) -> None:
    """Add ``--config`` and a flag for every field of a settings class but those in `skip`.

    Flags have the names of the fields, with hyphens; those of booleans are switches that take no
    value, and have a second form ``--no-...`` that wins over a recipe.
    """
    _add_recipe(parser)
    before = list(parser._actions)
    parser.add_class_arguments(config, skip=set(skip))
    for action in parser._actions[len(before) :]:
        named = [option for option in action.option_strings if option.startswith("--")]
        flags = [option.replace("_", "-") for option in named]
        if action.dest == "output":
            flags = ["-o", *flags]
        if getattr(action, "_typehint", None) is bool:
            parent, _, last = flags[0][2:].rpartition(".")
            flags.append(f"--{parent}{'.' if parent else ''}no-{last}")
            _make_switch(action)
        for option in named:
            parser._option_string_actions.pop(option)
        action.option_strings = flags
        parser._option_string_actions.update(dict.fromkeys(flags, action))
    explain_errors(parser, _field_names(config))


def settings_of(config: type[_Config], args: Namespace, **changes: Any) -> _Config:
    """Build settings from arguments that the parser has parsed and instantiated."""
    names = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in vars(args).items() if name in names}
    return config(**{**values, **changes})


def _field_names(config: type, prefix: str = "") -> list[str]:
    """Give the dotted names of every field of a configuration, tables such as stages included."""
    names: list[str] = []
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name
        names.append(name)
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                names += _field_names(part, f"{name}.")
    return names


def _make_switch(action: argparse.Action) -> None:
    """Make a flag of a boolean take no value."""

    class Switch(type(action)):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if args and args[2] == []:
                off = args[3].rpartition(".")[2].removeprefix("--").startswith("no-")
                args = (*args[:2], not off, *args[3:])
            return super().__call__(*args, **kwargs)

    action.__class__ = Switch
    action.nargs = 0
    action.metavar = None


def _add_recipe(parser: ArgumentParser) -> None:
    """Add ``--config``: a YAML file, checked before the parser makes values of it."""
    from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]

    class Recipe(ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
            content = _check_recipe(values)
            known = {action.dest.partition(".")[0] for action in parser._actions}
            kept = {k: v for k, v in content.items() if k in known or k not in RETIRED}
            if len(kept) < len(content):
                import yaml

                values = yaml.safe_dump(kept)
            super().__call__(parser, cfg, values, option_string)

    parser.add_argument("--config", action=Recipe, help="recipe: a YAML file of the fields below")


def _check_recipe(path: str) -> dict[str, Any]:
    """Read a recipe, a short YAML table; a ConfigError names the file and what it is instead."""
    text = read_text(path, ConfigError, YAML_BYTES)
    content = parse_yaml(text, path, ConfigError)
    if not isinstance(content, dict):
        what = recognize(path) or f"holds one {type(content).__name__}"
        raise ConfigError(f"{path} {what}; a recipe holds one NAME: VALUE on each line")
    if "config" in content:
        raise ConfigError(f"{path}: there is no field 'config': a recipe cannot name another one")
    return content

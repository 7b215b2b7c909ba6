"""One-line errors for recipes and flags: the field, what is wrong, the nearest field."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from typing import TYPE_CHECKING, Any, NoReturn

from megabase.errors import MegabaseError
from megabase.untrusted import YAML_BYTES, parse_yaml, read_text, recognise

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["RecipeError", "add_recipe", "explain_errors", "field_names"]


class RecipeError(MegabaseError):
    """A recipe or flag cannot be used; the message names the field."""


_PATTERNS = (
    # jsonargparse's wordings: unknown key at the top, in a group, in a list of dataclasses, a flag.
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.\-]+)'"),
    re.compile(r"[Oo]ption '(?P<name>[\w.\-]+)' is not accepted"),
    re.compile(r"Unrecognized arguments?: --(?P<name>[\w.\-]+)"),
    re.compile(r"unrecognized arguments?: --(?P<name>[\w.\-]+)"),
)


_SEARCHED = 10_000
_LONGEST = 400
"""Characters of an error in the parser's own words, which quotes the values it was given."""


def add_recipe(parser: ArgumentParser) -> None:
    """Add ``--config``: a YAML file, checked before the parser makes values of it."""
    from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]

    class Recipe(ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
            check_recipe(values)
            super().__call__(parser, cfg, values, option_string)

    parser.add_argument("--config", action=Recipe, help="recipe: a YAML file of the fields below")


def check_recipe(path: str) -> None:
    """Check that a recipe is a short YAML table, and names no other recipe.

    Raises
    ------
    RecipeError
        Naming the file and what it is instead; nothing of its content is quoted at length.
    """
    text = read_text(path, RecipeError, YAML_BYTES)
    content = parse_yaml(text, path, RecipeError)
    if not isinstance(content, dict):
        what = recognise(path) or f"holds one {type(content).__name__}"
        raise RecipeError(f"{path} {what}; a recipe holds one NAME: VALUE on each line")
    if "config" in content:
        raise RecipeError(f"{path}: there is no field 'config': a recipe cannot name another one")


def field_names(config: type, prefix: str = "") -> list[str]:
    """Give the dotted names of every field of a configuration, tables such as stages included."""
    names: list[str] = []
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        name = prefix + field.name
        names.append(name)
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                names += field_names(part, f"{name}.")
    return names


def explain_errors(parser: ArgumentParser, config: type) -> None:
    """Make a parser raise :class:`RecipeError`, in one line, in place of usage and exit.

    Parameters
    ----------
    parser
        Parser of a verb.
    config
        Configuration dataclass whose fields a misspelt name is compared with.
    """
    names = field_names(config)
    switches = [
        option.lstrip("-")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and "." not in option
    ]

    def error(message: str, ex: Exception | None = None) -> NoReturn:
        raise RecipeError(_explain(message, names, switches)) from ex

    parser.error = error  # pyright: ignore[reportAttributeAccessIssue]


def _explain(message: str, names: list[str], switches: list[str]) -> str:
    text = " ".join(message[:_SEARCHED].split())
    key = re.search(r'Parser key "([\w.]+)"', text)
    for pattern in _PATTERNS:
        match = pattern.search(text)
        if match is None:
            continue
        found = match.group("name")
        groups: dict[str, Any] = match.groupdict()
        parent = groups.get("group") or (key.group(1) if key else "")
        full = f"{parent}.{found}" if parent and not found.startswith(f"{parent}.") else found
        return f"there is no field {full!r}{_nearest(full, [*names, *switches])}"
    required = re.search(r'[Kk]ey "([\w.]+)" is required', text)
    if required:
        return f"{required.group(1)} is missing; give it in the recipe or as --{required.group(1)}"
    text = text.removeprefix("error: ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _nearest(found: str, names: list[str]) -> str:
    """Name the field nearest to a misspelt one, compared whole and by its last part."""
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if not near:
        head, _, last = found.rpartition(".")
        ends = {name.rpartition(".")[2]: name for name in reversed(names)}
        inside = [name for name in names if name.startswith(f"{head}.")] if head else []
        near = difflib.get_close_matches(last, ends, n=1, cutoff=0.6)
        near = [ends[near[0]]] if near else inside[:1]
    return f"; did you mean {near[0]!r}?" if near else ""

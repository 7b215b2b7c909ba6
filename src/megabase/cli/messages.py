"""Messages in the words of the command line: arguments as they are typed, in one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from megabase.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


_PATTERNS = (
    # jsonargparse's wordings: unknown key at the top, in a group, in a list of dataclasses, a flag.
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.\-]+)'"),
    re.compile(r"[Oo]ption '(?P<name>[\w.\-]+)' is not accepted"),
    re.compile(r"Unrecognized arguments?: --(?P<name>[\w.\-]+)"),
    re.compile(r"unrecognized arguments?: --(?P<name>[\w.\-]+)"),
)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "{name: value}",
}
"""How a type of Python is called in a message, for readers who do not know Python."""
_PYTHON_OPTION = re.compile(
    # Not inside a path or a word: resume=True, long='chunks', resplit=0.25, genome=...
    r"(?<![\w/.=-])(?P<name>[a-z_][\w.]*)=(?P<value>True|False|'[^']*'|\d+(?:\.\d+)?|\.\.\.)"
)


_SEARCHED = 10_000
"""Characters that are searched: jsonargparse may quote a whole recipe."""
_LONGEST = 400
"""Characters of an error in the parser's own words, which quotes the values it was given."""


def explain_errors(parser: ArgumentParser, names: Sequence[str] = ()) -> None:
    """Make a parser raise :class:`ConfigError`, in one line, in place of usage and exit.

    `names` are the fields of a recipe, which a misspelled name is compared with.
    """

    def error(message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(_explain(message, parser, names)) from ex

    def show(message: str, file: Any = None) -> None:
        # argparse would pass over a standard output that is full.
        (file or sys.stderr).write(message or "")

    for each in _parsers(parser):
        if "error" not in vars(each):
            each.error, each._print_message = error, show


def _parsers(parser: ArgumentParser) -> Iterator[Any]:
    """Give a parser and those of its actions (build, info, verify)."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _actions(parser: ArgumentParser) -> Iterator[argparse.Action]:
    for each in _parsers(parser):
        yield from each._actions


def _typed(action: argparse.Action) -> str:
    """Write an argument as it is typed: --output, FILE."""
    if action.option_strings:
        return next((o for o in action.option_strings if o[:2] == "--"), action.option_strings[0])
    name = action.metavar or action.dest.upper()
    return name if isinstance(name, str) else name[0]


def _written(parser: ArgumentParser, dest: str) -> str:
    for action in _actions(parser):
        if action.dest in (dest, dest.rpartition(".")[2]):
            return _typed(action)
    return f"--{dest}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _explain(message: str, parser: ArgumentParser, names: Sequence[str]) -> str:
    text = " ".join(message[:_SEARCHED].split()).removeprefix("error: ")
    program = " ".join(parser.prog.split()[:2])
    help_hint = f"{program} --help lists what it takes"
    key = re.search(r'Parser key "([\w.]+)"', text)
    switches = [o.lstrip("-") for a in _actions(parser) for o in a.option_strings if o[:2] == "--"]
    for pattern in _PATTERNS:
        match = pattern.search(text)
        if match is None:
            continue
        found = match.group("name")
        groups: dict[str, Any] = match.groupdict()
        parent = groups.get("group") or (key.group(1) if key else "")
        full = f"{parent}.{found}" if parent and not found.startswith(f"{parent}.") else found
        if names and "rguments" not in match[0]:
            plain = [name for name in switches if "." not in name]
            return f"there is no field {full!r}{_nearest(full, [*names, *plain])}"
        near = _nearest(full, switches, "--")
        return f"there is no option --{full}{near or f'; {help_hint}'}"
    if match := re.search(r"unrecognized arguments?: (.+)", text):
        return f"{match.group(1)}: one argument too many, or out of place; {help_hint}"
    if match := re.search(r"following arguments are required: (.+)", text):
        wanted = [name.strip() for name in match.group(1).split(",")]
        missing = [_written(parser, name) for name in wanted]
        if not names and "." in wanted[0]:  # of one action: build, info, verify
            help_hint = help_hint.replace(" --help", f" {wanted[0].split('.')[0]} --help")
        verb = "is" if len(missing) == 1 else "are"
        recipe = " (as flags or in the recipe of --config)" if names else ""
        return f"{_listed(missing)} {verb} missing{recipe}; {help_hint}"
    if match := re.search(r'[Kk]ey "([\w.]+)" is required', text):
        name = match.group(1)
        return f"{name} is missing; give it in the recipe or as {_written(parser, name)}"
    if match := re.search(r'expected "\w+" to be one of \{([\w,]+)\}', text):
        return f"name what to do: {', '.join(match.group(1).split(','))}; {help_hint}"
    if match := re.search(r"argument (\S+): expected (?:one|at least one) argument", text):
        return f"{_written(parser, match.group(1).split('/')[-1].lstrip('-'))} needs a value"
    if match := re.search(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", text):
        what = "" if match.group(1) == "action" else f"{_shown(parser, match.group(1))}: "
        return f"{what}there is no {match.group(2)}; one of " + match.group(3).replace("'", "")
    if key:
        name = key.group(1) if names else _written(parser, key.group(1))
        kind = re.search(r"Expected a <class '(\w+)'>\. Got value: (.*)", text)
        if kind:
            expected = _KINDS.get(kind.group(1), kind.group(1))
            return f"{name}: expected {expected}, found {kind.group(2)[:80]!r}"
        text = text.replace(f'Parser key "{key.group(1)}":', f"{name}:")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _shown(parser: ArgumentParser, name: str) -> str:
    return name.split("/")[-1] if name.startswith("-") else _written(parser, name)


def _nearest(found: str, names: list[str], dashes: str = "") -> str:
    """Name the field nearest to a misspelled one, compared whole and by its last part."""
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.6)
    if not near:
        head, _, last = found.rpartition(".")
        ends = {name.rpartition(".")[2]: name for name in reversed(names)}
        inside = [name for name in names if name.startswith(f"{head}.")] if head else []
        near = difflib.get_close_matches(last, ends, n=1, cutoff=0.6)
        near = [ends[near[0]]] if near else inside[:1]
    return f"; did you mean {dashes + near[0]!r}?" if near else ""


def as_typed(message: str, parser: ArgumentParser) -> str:
    """Turn Python's options in a message (overwrite=True) into flags of a verb (--overwrite).

    Messages are written once, for Python; what a verb cannot be asked for stays out of its
    message, parentheses and all.

    Examples
    --------
    >>> from jsonargparse import ArgumentParser
    >>> parser = ArgumentParser()
    >>> _ = parser.add_argument("--overwrite", action="store_true")
    >>> as_typed("o.tsv exists; set overwrite=True (new_head=True)", parser)
    'o.tsv exists; set --overwrite'
    """
    known = {action.dest.rpartition(".")[2]: action for action in _actions(parser)}
    known |= {action.dest: action for action in _actions(parser)}

    def flag(match: re.Match[str]) -> str:
        action, value = known.get(match["name"]), match["value"]
        if action is None:
            return match[0]
        if action.nargs == 0 or value == "..." or not action.option_strings:
            return _typed(action)
        return f"{_typed(action)} {value.strip(chr(39))}"

    def drop(match: re.Match[str]) -> str:
        inner = _PYTHON_OPTION.fullmatch(match[1])
        return match[0] if inner is None or inner["name"] in known else ""

    return _PYTHON_OPTION.sub(flag, re.sub(r" \(([\w.]+=[^()]*)\)", drop, message))

"""The arguments of a verb: its own, those that verbs share, what they mean, ``--help``, errors."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import io
import re
import sys
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar

import yaml
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from megabase.cli.streams import show_progress
from megabase.errors import ConfigError, InputError
from megabase.options import PassOptions, RunOptions
from megabase.settings import RETIRED, Settings
from megabase.untrusted import YAML_BYTES, parse_yaml, read_text, recognize

if TYPE_CHECKING:
    from megabase.data.sources import SequenceInput
    from megabase.models.loading import Loaded

_Config = TypeVar("_Config", bound=Settings)

MODEL = "model folder, run folder, preset or Hub name; `default` is the model in the package"
"""Help of the argument MODEL."""
_EXAMPLES = "examples:\n"  # marks a text of examples, whose lines are not to be filled
_PATTERNS = (
    # jsonargparse's wordings: unknown key at the top, in a group, in a list of dataclasses, a flag.
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.\-]+)'"),
    re.compile(r"[Oo]ption '(?P<name>[\w.\-]+)' is not accepted"),
    re.compile(r"[Uu]nrecognized arguments?: --(?P<name>[\w.\-]+)"),
)
_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text",
    "dict": "{name: value}", "tuple": "a list",
}  # fmt: skip
"""How a type of Python is called in a message, for readers who do not know Python."""
_TYPE = r"(?:<class '(\w+)'>|typing\.Literal\[([^]]*)\])"  # as jsonargparse writes it
_PYTHON_OPTION = re.compile(
    # Not inside a path or a word: resume=True, long='chunks', resplit=0.25, genome=...
    r"(?<![\w/.=-])(?P<name>[a-z_][\w.]*)=(?P<value>True|False|'[^']*'|\d+(?:\.\d+)?|\.\.\.)"
    r"|(?<=\()(?P<field>[a-z_]+\.[\w.]+)(?=\))"  # alone in parentheses: (table.label)
)
_SEARCHED = 10_000  # characters that are searched: jsonargparse may quote a whole recipe
_LONGEST = 400
"""Characters of an error in the parser's own words, which quotes the values it was given."""


class Verb(NamedTuple):
    """What ``megabase NAME ...`` does; the docstring of `run` is the description in the help."""

    add_arguments: Callable[[VerbParser], None]
    """Adds the arguments of the verb to its parser."""
    run: Callable[[Namespace], int | None]
    """Runs it and gives the exit status, None for 0; errors are raised as MegabaseError."""
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
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class VerbParser(ArgumentParser):
    """The parser of a verb; its errors are :class:`ConfigError`, of one line."""

    outer: VerbParser | None = None
    """The parser of the verb, for that of one of its actions (build, info, verify)."""
    fields: Sequence[str] = ()  # dotted names of a recipe, which a misspelled one is compared with

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise in place of usage and exit."""
        if not self.exit_on_error:  # made by jsonargparse for the rows of a table such as stages
            super().error(message, ex)
        raise ConfigError((self.outer or self)._explain(message)) from ex

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse would pass over a standard output that is full.
        (file or sys.stderr).write(message or "")

    def as_typed(self, message: str) -> str:
        """Turn Python's options in a message (overwrite=True) into flags (--overwrite).

        Messages are written once, for Python; what a verb cannot be asked for stays out of its
        message, parentheses and all.

        Examples
        --------
        >>> parser = VerbParser()
        >>> _ = parser.add_argument("--overwrite", action="store_true")
        >>> parser.as_typed("o.tsv exists; set overwrite=True (new_head=True)")
        'o.tsv exists; set --overwrite'
        """
        known = {action.dest.rpartition(".")[2]: action for action in self._every_action()}
        known |= {action.dest: action for action in self._every_action()}

        def flag(match: re.Match[str]) -> str:
            action, value = known.get(match["name"] or match["field"]), match["value"] or "..."
            if action is None:
                return match[0]
            if action.nargs == 0 or value == "..." or not action.option_strings:
                return _typed(action)
            return f"{_typed(action)} {value.strip(chr(39))}"

        def drop(match: re.Match[str]) -> str:
            inner = _PYTHON_OPTION.fullmatch(match[1])
            return match[0] if inner is None or inner["name"] in known else ""

        return _PYTHON_OPTION.sub(flag, re.sub(r" \(([\w.]+=[^()]*)\)", drop, message))

    def _every_action(self) -> Iterator[argparse.Action]:
        """Give the arguments, those of the actions (build, info, verify) too."""
        for action in self._actions:
            yield action
            if isinstance(action, argparse._SubParsersAction):
                for each in action.choices.values():
                    yield from each._actions

    def _written(self, dest: str) -> str:
        """Write an argument as it is typed: --output, FILE."""
        names = (dest, dest.rpartition(".")[2])
        found = (_typed(a) for name in names for a in self._every_action() if a.dest == name)
        return next(found, dest if self.fields else f"--{dest}")  # of a list such as stages

    def _explain(self, message: str) -> str:
        """Say in one line what jsonargparse complains about."""
        names = self.fields
        text = " ".join(message[:_SEARCHED].split()).removeprefix("error: ")
        program = " ".join(self.prog.split()[:2])
        help_hint = f"{program} --help lists what it takes"
        key = re.search(r'Parser key "([\w.]+)"', text)
        switches = [o[2:] for a in self._every_action() for o in a.option_strings if o[:2] == "--"]
        for pattern in _PATTERNS:
            match = pattern.search(text)
            if match is None:
                continue
            found = match["name"]
            parent = match.groupdict().get("group") or (key[1] if key else "")
            full = f"{parent}.{found}" if parent and not found.startswith(f"{parent}.") else found
            if names and "rguments" not in match[0]:
                plain = [name for name in switches if "." not in name]
                return f"there is no field {full!r}{_nearest(full, [*names, *plain])}"
            if full in switches:
                return f"--{full} has to stand before the name of the action, or is not for it"
            near = _nearest(full, switches, "--")
            return f"there is no option --{full}{near or f'; {help_hint}'}"
        if match := re.search(r"unrecognized arguments?: (.+)", text):
            return f"{match[1]}: one argument too many, or out of place; {help_hint}"
        if match := re.search(r"following arguments are required: (.+)", text):
            wanted = [name.strip() for name in match[1].split(",")]
            missing = [self._written(name) for name in wanted]
            if not names and "." in wanted[0]:  # of one action: build, info, verify
                help_hint = help_hint.replace(" --help", f" {wanted[0].split('.')[0]} --help")
            verb = "is" if len(missing) == 1 else "are"
            recipe = " (as flags or in the recipe of --config)" if names else ""
            text = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
            lists = [a.choices for a in self._actions if a.dest in wanted and a.choices]
            recipe += "".join(f" (one of {', '.join(map(str, choices))})" for choices in lists)
            return f"{text} {verb} missing{recipe}; {help_hint}"
        if match := re.search(r'[Kk]ey "([\w.]+)" is required', text):
            return f"{match[1]} is missing; give it in the recipe or as {self._written(match[1])}"
        if match := re.search(r'expected "\w+" to be one of \{([\w,]+)\}', text):
            return f"name what to do: {', '.join(match[1].split(','))}; {help_hint}"
        if match := re.search(r"argument (\S+): expected (?:one|at least one) argument", text):
            return f"{self._written(match[1].split('/')[-1].lstrip('-'))} needs a value"
        if match := re.search(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", text):
            name = match[1].split("/")[-1] if match[1][0] == "-" else self._written(match[1])
            what = "" if match[1] == "action" else f"{name}: "
            return f"{what}there is no {match[2]}; one of " + match[3].replace("'", "")
        if key:
            name = self._written(key[1])
            kind = re.search(rf"Expected a {_TYPE}\. Got value: (.*)", text)
            kind = kind or re.search(  # of what may be left open
                rf"Subtypes: \[(?:<class '\w+'>, )*{_TYPE}, <class 'NoneType'>\]"
                r".* Given value: (.*)", text,
            )  # fmt: skip
            if kind:
                choices = " or".join((kind[2] or "").replace("'", "").rsplit(",", 1))
                expected = choices or _KINDS.get(kind[1], kind[1])
                return f"{name}: expected {expected}, found {kind[3][:80]!r}"
            text = text.replace(f'Parser key "{key[1]}":', f"{name}:")
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

    def add_source(self, output: str, *, variants: bool = True) -> None:
        """Add model, input and output of a verb that reads sequences, and with `variants` VCF.

        `output` names the formats of the output in the help.
        """
        add = self.add_argument
        kinds = "FASTA, a table, BED or VCF" if variants else "FASTA, a table or BED"
        add("model", metavar="MODEL", type=str, help=MODEL)
        add("input", metavar="FILE", type=str, help=f"{kinds}, plain or gzip")
        add("-o", "--output", type=str, required=True, metavar="FILE", help=output)
        genome = "BED and VCF" if variants else "BED"
        add("--genome", type=str, help=f"genome store or FASTA, for {genome}")
        self.add_kinds(variants=variants)
        self.add_regions(f"restrict {genome} to what overlaps these")
        if variants:
            add("--window", type=int, help="bases around a variant (VCF), for each allele "
                "(default: 1024)")  # fmt: skip

    def add_kinds(self, *, variants: bool = True) -> None:
        """Add what says how a file of sequences is read."""
        kinds = ["auto", "fasta", "bed", *(["vcf"] if variants else []), "table"]
        self.add_argument("--kind", choices=kinds, help="what the input is (default: by its "
            "ending; .csv, .tsv and .parquet are tables)")  # fmt: skip
        self.add_argument("--sequence", type=str, metavar="COLUMN", help="column of a table's "
            "sequences (default: sequence or seq)")  # fmt: skip
        self.add_argument("--strict", action="store_true", help="refuse the input for its first "
            "row that cannot be used, instead of leaving it out")  # fmt: skip

    def add_regions(self, text: str) -> None:
        """Add ``--regions``; `text` says in the help what is done with them."""
        self.add_argument("--regions", nargs="+", default=[], metavar="REGION",
            help=f"{text}: contigs, regions (chr1:1,001-2,000) or BED files")  # fmt: skip

    def add_keywords(self, kind: Any, skip: str = "", group: Any = None) -> None:
        """Add a flag for each keyword of a class of :mod:`megabase.options`, its text as help."""
        hints = typing.get_type_hints(kind)
        for keyword in _texts(kind):
            hint = hints[keyword.arg_name]
            union = typing.get_origin(hint) in (UnionType, typing.Union)
            first: Any = typing.get_args(hint)[0] if union else hint
            how: dict[str, Any] = {}
            if first is bool:
                how = {"action": "store_true"}
            elif typing.get_origin(first) is typing.Literal:
                how = {"choices": list(typing.get_args(first))}
            elif typing.get_origin(first) is Sequence:
                how = {"nargs": "+", "type": typing.get_args(first)[0]}
            elif first in (int, float, str):
                how = {"type": first}
            # The callback of the progress has no flag.
            if how and keyword.arg_name not in skip.split():
                flag = f"--{keyword.arg_name.replace('_', '-')}"
                text = " ".join((keyword.description or "").removesuffix(".").split())
                if not text[1:2].isupper():  # a name such as GFF3
                    text = text[:1].lower() + text[1:]
                (group or self).add_argument(flag, **how, help=text)

    def add_context_parallel(self, shared: str) -> None:
        """Add ``--context-parallel``; `shared` is what its processes share."""
        text = f"under torchrun: all its processes share every {shared}, for those too long for one"
        self.add_argument("--context-parallel", action="store_true", help=text)

    def add_running(self, skip: str = "") -> None:
        """Add what decides how the work is done, not what comes out."""
        group = self.add_argument_group("execution options (they do not change results)")
        self.add_keywords(RunOptions, group=group)
        self.add_keywords(PassOptions, skip, group)

    def add_settings(self, config: type[Settings], skip: Iterable[str | int] = ()) -> None:
        """Add ``--config`` and a flag for every field of a settings class but those in `skip`.

        Flags have the names of the fields, with hyphens; those of booleans are switches that take
        no value, and have a second form ``--no-...`` that wins over a recipe.
        """
        self.add_argument(
            "--config", action=_Recipe, help="recipe: a YAML file of the fields below"
        )
        before = len(self._actions)
        self.add_class_arguments(config, skip=set(skip))
        for action in self._actions[before:]:
            named = [option for option in action.option_strings if option.startswith("--")]
            flags = [option.replace("_", "-") for option in named]
            if action.dest == "output":
                flags = ["-o", *flags]
            if getattr(action, "_typehint", None) in (bool, bool | None):
                parent, dot, last = flags[0][2:].rpartition(".")
                flags.append(f"--{parent}{dot}no-{last}")
                _make_switch(action)
            for option in named:
                self._option_string_actions.pop(option)
            action.option_strings = flags
            self._option_string_actions.update(dict.fromkeys(flags, action))
        self.fields = _field_names(config)


def settings_of(config: type[_Config], args: Namespace, **changes: Any) -> _Config:
    """Build settings from arguments that the parser has parsed and instantiated."""
    names = {field.name for field in dataclasses.fields(config)}
    values = {name: value for name, value in vars(args).items() if name in names}
    return config.of({**values, **changes})


def given(args: Namespace, kind: Any) -> dict[str, Any]:
    """Give the keywords of a class of options that were given; the others have their defaults."""
    names, shared = set(typing.get_type_hints(kind)), RunOptions.__optional_keys__
    if shared < names:  # of a verb: how the work is done is given by running()
        names -= shared
    return {name: args[name] for name in names if _is_given(args.get(name))}


def _is_given(value: object) -> bool:
    """Tell the value of an option from that of one that was left out."""
    return value is not None and value is not False and value != []


def source_of(args: Namespace, *, variants: bool = True) -> SequenceInput:
    """Give the input of a verb that reads sequences; ``--window`` is refused without variants."""
    from megabase.data.sources import SequenceInput

    window = args.window if variants and args.window is not None else SequenceInput.window
    kind, regions = args.kind or "auto", tuple(args.regions)
    source = SequenceInput(
        args.input, args.genome, kind, window, args.sequence, args.strict, regions
    )
    if variants and source.found_kind != "vcf":
        refuse_unused(args, "window", f"for variants (VCF), and {args.input} holds none")
    return source


def load_shared(args: Namespace, head: Literal["own", "language"]) -> tuple[Loaded, bool]:
    """Load the model, shared under ``--context-parallel``; say if this is the first process."""
    from megabase.models.loading import choose_device, load

    device = choose_device(args.device)
    if not args.context_parallel:
        return load(args.model, head=head, device=device), True
    from megabase.parallel import context_parallel, join_processes

    group = join_processes(device)
    loaded = load(args.model, head=head, device=device)
    return loaded, context_parallel(loaded.model, group, whole=True).rank == 0


@contextlib.contextmanager
def running(
    args: Namespace, unit: str, head: Literal["own", "language"] = "own"
) -> Iterator[dict[str, Any]]:
    """Give the options of how the work is done, with a progress bar that counts in `unit`.

    Under ``--context-parallel`` the model of `args`, with `head`, is replaced by one that all
    processes share; those beside the first are silent and write to a folder that is then removed.
    """
    with contextlib.ExitStack() as stack:
        how = given(args, RunOptions)
        if args.get("context_parallel"):
            refuse_unused(args, "workers shard resume prompt", "not for --context-parallel")
            args.model, first = load_shared(args, head)
            how["workers"] = 1
            if not first:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                for name in ("output", "calls"):
                    if args.get(name) is not None:
                        args[name] = str(Path(folder, Path(args[name]).name))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield {**how, "progress": stack.enter_context(show_progress(unit))}


def refuse_unused(args: Namespace, names: str, why: str) -> None:
    """Refuse those of the options that were given; `why` says what they are for."""
    flags = [f"--{name.replace('_', '-')}" for name in names.split() if _is_given(args.get(name))]
    if flags:
        raise InputError(f"{', '.join(flags)} {'is' if len(flags) == 1 else 'are'} {why}")


def _typed(action: argparse.Action) -> str:
    if action.option_strings:
        return next((o for o in action.option_strings if o[:2] == "--"), action.option_strings[0])
    name = action.metavar or action.dest.upper()
    return name if isinstance(name, str) else name[0]


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


@functools.cache
def _texts(kind: Any) -> list[Any]:
    """Give the keywords of a class of :mod:`megabase.options` and their texts, from its source."""
    from docstring_parser import parse_from_object

    found = parse_from_object(kind).params
    if not found:
        raise InputError(f"{inspect.getfile(kind)} cannot be read; flags come from its source")
    return found


def build_parser(name: str, module: str) -> tuple[VerbParser, Verb]:
    """Give the parser of the verb `name` of a module, and the verb."""
    # The attribute docstrings of the configuration dataclasses are the help texts.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    verb: Verb = importlib.import_module(module).VERBS[name]
    parser = VerbParser(
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
    return parser, verb


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
    class Switch(type(action)):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if args and args[2] == []:
                off = args[3].rpartition(".")[2].removeprefix("--").startswith("no-")
                args = (*args[:2], not off, *args[3:])
            return super().__call__(*args, **kwargs)

    action.__class__, action.nargs, action.metavar = Switch, 0, None


class _Recipe(ActionConfigFile):
    """``--config``: a YAML file, checked before the parser makes values of it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        content = _check_recipe(values)
        known = {action.dest.partition(".")[0] for action in parser._actions}
        kept = {k: v for k, v in content.items() if k in known or k not in RETIRED}
        if len(kept) < len(content):
            values = yaml.safe_dump(kept)
        super().__call__(parser, cfg, values, option_string)


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

"""Reading what someone else wrote: it ends soon, in little memory, with a value or one clear error.

A text file is bounded before it is read, JSON and YAML before they are walked, and a value of a
foreign file is never written whole into a message.
"""

import contextlib
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megabase.errors import MegabaseError

_Record = TypeVar("_Record")

TEXT_BYTES = 256 << 20
"""Largest text file that is read whole; the largest of ours, a byte-pair vocabulary, has 3 MB."""
YAML_BYTES = 1 << 20
"""Largest YAML file; the parser reads about a megabyte a second."""
_YAML_NODES = 20_000  # values of a settings file with its aliases followed; ours have a few hundred
_YAML_DEPTH = 32  # ours have four levels; the parser recurses
_LARGEST = 1 << 63  # longer integers are slow to print, and nothing here takes them
_SHOWN = 80  # characters of a value in a message: about a line of a terminal


def shown(value: object) -> str:
    """Describe a value of a foreign file in a few words, whatever it is and however large."""
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, float | bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return repr(value) if -_LARGEST <= value <= _LARGEST else "a number beyond 64 bits"
    return type(value).__name__


def recognize(path: str | Path) -> str:
    """Say what a well-known wrong file is (``is an HTML page ...``), or nothing."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError:
        return ""
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself: run git lfs pull in its folder"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page and not the file itself: download it again from its direct address"
    return ""


@contextlib.contextmanager
def parsing(what: object, error: type[MegabaseError], advice: str = "") -> Iterator[None]:
    """Turn whatever a parser raises on foreign bytes into one error that ends with `advice`."""
    try:
        yield
    except MegabaseError:
        raise
    except BaseException as problem:
        # The panic of a library in Rust is a BaseException, of a class that each library has anew.
        if not isinstance(problem, Exception) and type(problem).__module__ != "pyo3_runtime":
            raise
        known = recognize(what) if isinstance(what, Path) else ""
        reason = " ".join(str(problem)[:300].split())
        raise error(
            f"{what} {known or f'cannot be read ({type(problem).__name__}: {reason})'}"
            + (f"; {advice}" if advice and not known else "")
        ) from problem


def read_text(path: str | Path, error: type[MegabaseError], limit: int = TEXT_BYTES) -> str:
    """Read a whole text file that is UTF-8 and has at most `limit` bytes."""
    path = Path(path)
    try:
        raw = bytearray()
        with path.open("rb") as file:
            while len(raw) <= limit and (piece := file.read(1 << 20)):
                raw += piece
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from problem
    if len(raw) > limit:
        raise error(f"{path} has more than {limit:,} bytes; expected a short text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}, line {line:,}: not text in UTF-8; save it as UTF-8") from problem


def read_json(path: str | Path, error: type[MegabaseError]) -> dict[str, Any]:
    """Read a JSON file that holds an object; the error when it holds anything else."""
    path = Path(path)
    text = read_text(path, error)
    with parsing(path, error, "expected JSON"):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def parse_yaml(text: str, where: object, error: type[MegabaseError]) -> Any:
    """Read YAML after counting what its aliases stand for; `where` is the file, for messages.

    The error when it is not YAML, too large, nested too deep, or with aliases that contain
    themselves or stand for too many values.
    """
    if len(text) > YAML_BYTES:
        raise error(f"{where} has more than {YAML_BYTES:,} characters; expected a short YAML file")
    with parsing(where, error, "expected YAML"):
        # The C parser where there is one: it is twenty times as fast.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_events(yaml.parse(text, Loader=loader), where, error)
        return yaml.load(text, Loader=loader)  # safe: no object beyond plain values and dates


def _check_events(events: Any, where: object, error: type[MegabaseError]) -> None:
    sizes: dict[str, int] = {}  # values that an anchor stands for, its aliases followed
    open_: list[tuple[str | None, int]] = []
    count = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise error(f"{where}: the alias *{shown(event.anchor)} contains itself")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if count > _YAML_NODES or len(open_) > _YAML_DEPTH:
            raise error(
                f"{where}: holds more than {_YAML_NODES:,} values with its aliases written out, "
                f"or more than {_YAML_DEPTH} levels; write a shorter file"
            )


_hints = functools.cache(typing.get_type_hints)


def build(kind: type[_Record], values: Any, *, ignore: bool = False) -> _Record:
    """Make a dataclass of a record of plain values, with every field of its declared type.

    Fields that are dataclasses, or tuples or tables of them, are made likewise. A ValueError or
    TypeError for a value of another type, a missing field or an unknown one (unless they are to be
    ignored); to be called inside of :func:`parsing`.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"expected an object, found {shown(values)}")
    made = {}
    for name, hint in _hints(kind).items():
        if name in values and not fits(values[name], hint):
            raise TypeError(f"{name} cannot be {shown(values[name])}")
        if name in values:
            made[name] = _made(values[name], hint, ignore)
    return kind(**(made if ignore else {**values, **made}))


def _made(value: Any, hint: Any, ignore: bool) -> Any:
    """Give a value that fits a type as that type, as far as it has dataclasses or tuples."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, ignore=ignore)
    if origin in (typing.Union, types.UnionType):
        kinds = (one for one in inner if (value is None) == (one is type(None)))
        return _made(value, next(one for one in kinds if fits(value, one)), ignore)
    if origin is tuple:
        return tuple(_made(one, inner[0], ignore) for one in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _made(one, inner[1], ignore) for name, one in value.items()}
    return value


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a plain value is of a declared type; dataclasses are not looked into."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value == one for one in inner)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    if isinstance(hint, type) and hint in (str, bool):
        return isinstance(value, hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    return True

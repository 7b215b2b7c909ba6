"""A reader of torch checkpoints that cannot run code.

A pickle is a program, and ``torch.load`` without ``weights_only`` runs whatever it says. This
module interprets the pickle's instructions itself: nothing is imported and nothing is called
except the builders of :mod:`.pickle_objects`, which make tensors, plain containers
and inert records. Both containers of ``torch.save`` are read: the zip archive, and the older
stream that begins with a magic number.

A small file can describe a large object: values are shared, so forty instructions make a tuple of
2**40 items. Instructions and copies are counted, only flat values become keys, no foreign value is
written into a message, and no more bytes are taken for storages than the file has.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megabase.errors import CheckpointError
from megabase.models.checkpoints.pickle_objects import (
    STORAGE_TYPES,
    Budget,
    Global,
    Inert,
    Storage,
    call,
    extend,
    resolve,
    set_items,
    set_state,
)
from megabase.untrusted import recognise, shown

__all__ = ["Global", "Inert", "read_pickle"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_SHOWN_KEY = 60
_DIRECTORY_BYTES = 16 << 20
"""Largest list of members of an archive; torch writes about 100 bytes for each storage."""
_MARK = object()
_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip


def _interpret(stream: Any, persistent: Callable[[Any], Any]) -> Any:
    """Follow one pickle to its STOP and give the object it describes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    budget = Budget()

    def to_mark() -> list[Any]:
        start = len(stack) - 1 - next(i for i, v in enumerate(reversed(stack)) if v is _MARK)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        budget.spend(1)
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(to_mark()))
        elif name == "LIST":
            stack.append(to_mark())
        elif name == "FROZENSET":
            members: set[Any] = set()
            extend(members, to_mark())
            stack.append(frozenset(members))
        elif name == "DICT":
            values = to_mark()
            stack.append({})
            set_items(stack[-1], values)
        elif name == "APPEND":
            value = stack.pop()
            extend(stack[-1], [value])
        elif name in ("APPENDS", "ADDITEMS"):
            values = to_mark()
            extend(stack[-1], values)
        elif name == "SETITEM":
            pair = [stack.pop(-2), stack.pop()]
            set_items(stack[-1], pair)
        elif name == "SETITEMS":
            values = to_mark()
            set_items(stack[-1], values)
        elif name == "GLOBAL":
            stack.append(resolve(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(resolve(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(call(function, arguments, budget))
        elif name == "NEWOBJ_EX":
            _keywords, arguments, function = stack.pop(), stack.pop(), stack.pop()
            stack.append(call(function, arguments, budget))
        elif name == "OBJ":
            values = to_mark()
            stack.append(call(values[0], tuple(values[1:]), budget))
        elif name == "INST":
            function = resolve(*str(argument).split(" ", 1))
            stack.append(call(function, tuple(to_mark()), budget))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1] = set_state(stack[-1], state, budget)
        elif name == "BINPERSID":
            stack.append(persistent(stack.pop()))
        elif name == "PERSID":
            stack.append(persistent(argument))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(f"the pickle instruction {name} is not allowed")
    raise CheckpointError("the pickle ends without saying so; the file is cut short")


def _storage_key(identity: Any) -> tuple[str, torch.dtype, int]:
    """Read a storage's (key, element type, number of elements) from its persistent id."""
    match identity:
        case ("storage", Global(name=name), str(key), _, int(count), *rest) if (
            name in STORAGE_TYPES and 0 <= count < 1 << 48 and all(view is None for view in rest)
        ):
            return key, STORAGE_TYPES[name], count
    raise CheckpointError(f"{shown(identity)} does not describe a tensor storage")


def _check_directory(path: Path) -> None:
    """Refuse a list of members that would take far more memory than reading it should."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 76))
        end = file.read()
    at = end.rfind(b"PK\x05\x06")
    wide = end.rfind(b"PK\x06\x06", 0, max(at, 0))
    length = struct.unpack_from("<I", end, at + 12)[0]
    if length == 0xFFFFFFFF and wide >= 0:
        length = struct.unpack_from("<Q", end, wide + 40)[0]
    if length > min(size, _DIRECTORY_BYTES):
        raise CheckpointError(
            f"its list of members takes {length:,} bytes; expected "
            f"{min(size, _DIRECTORY_BYTES):,} or fewer"
        )


def _read_archive(path: Path) -> Any:
    _check_directory(path)
    left = path.stat().st_size

    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())

        def member(name: str) -> bytearray:
            nonlocal left
            entry = archive.getinfo(name)
            # torch never compresses, so nothing is larger in memory than it is in the file.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > left:
                raise CheckpointError(
                    f"the member {shown(name)} is compressed, or claims more bytes "
                    f"({entry.file_size:,}) than the file has; save it again with torch.save"
                )
            left -= entry.file_size
            raw = bytearray(entry.file_size)
            with archive.open(entry) as stored:
                position = 0
                while piece := stored.read(1 << 24):
                    raw[position : position + len(piece)] = piece
                    position += len(piece)
            return raw

        roots = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if any(name.endswith("constants.pkl") for name in names):
            raise CheckpointError("is a TorchScript program; give a checkpoint of weights")
        if len(roots) != 1:
            raise CheckpointError("the archive has no data.pkl; it is no torch checkpoint")
        prefix = roots[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in names and member(order).strip() != b"little":
            raise CheckpointError("was written on a big-endian machine")
        storages: dict[str, torch.Tensor] = {}

        def persistent(identity: Any) -> Storage:
            key, dtype, count = _storage_key(identity)
            if key not in storages:
                name = f"{prefix}data/{key}"
                if name not in names:
                    raise CheckpointError(f"storage {key[:_SHOWN_KEY]} is missing from the archive")
                raw = member(name)
                if len(raw) < count * dtype.itemsize:
                    raise CheckpointError(
                        f"storage {key[:_SHOWN_KEY]} should hold {count * dtype.itemsize:,} "
                        f"bytes, but the archive has {len(raw):,}"
                    )
                storages[key] = _from_bytes(raw)
            return Storage(storages[key], dtype)

        return _interpret(io.BytesIO(member(roots[0])), persistent)


def _from_bytes(raw: bytearray) -> torch.Tensor:
    return torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


def _read_stream(path: Path) -> Any:
    """Read the stream format of torch before 1.6, or a pickle without tensors."""
    left = path.stat().st_size
    storages: dict[str, bytearray] = {}
    tensors: dict[str, torch.Tensor] = {}

    def persistent(identity: Any) -> Storage:
        nonlocal left
        key, dtype, count = _storage_key(identity)
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise CheckpointError(
                    f"storage {key[:_SHOWN_KEY]} claims more bytes than the file has"
                )
            storages[key] = bytearray(count * dtype.itemsize)
            tensors[key] = _from_bytes(storages[key])
        return Storage(tensors[key], dtype)

    def refuse(identity: Any) -> Any:
        raise CheckpointError(f"unexpected {shown(identity)} before the weights")

    # Mapped, because reading from a map never reserves more than the file has left.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        head = _interpret(stream, refuse)
        if head != _LEGACY_MAGIC:
            return head
        if _interpret(stream, refuse) != _LEGACY_PROTOCOL:
            raise CheckpointError("unknown version of the old torch format")
        system = _interpret(stream, refuse)
        if isinstance(system, dict) and not system.get("little_endian", True):
            raise CheckpointError("was written on a big-endian machine")
        result = _interpret(stream, persistent)
        for key in _interpret(stream, refuse):
            if not isinstance(key, str) or key not in storages:
                raise CheckpointError(f"{shown(key)} does not name a storage")
            _count = stream.read(8)  # number of elements, known from the pickle already
            stored = stream.read(len(storages[key]))
            if len(stored) != len(storages[key]):
                raise CheckpointError(f"storage {key[:_SHOWN_KEY]} is cut short")
            storages[key][:] = stored
    return result


# What zipfile, pickletools and the builders raise on bytes that are not what they claim to be.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    StopIteration,
    EOFError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
)


def read_pickle(path: str | Path) -> Any:
    """Read a ``torch.save`` file (``.ckpt``, ``.pt``, ``.bin``) without executing anything.

    Parameters
    ----------
    path
        The file; zip archives and the older stream format.

    Returns
    -------
    Any
        Containers, numbers, texts and CPU tensors (tied tensors share memory), with
        :class:`Inert` records and :class:`Global` names where the file has objects and classes of
        training libraries.

    Raises
    ------
    CheckpointError
        The file names a class or function outside the known ones, or asks to call something.
    CheckpointError
        The file is missing, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        return _read_archive(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except _DAMAGE as error:
        reason = recognise(path) or (
            f"is damaged or no torch checkpoint ({type(error).__name__}: {str(error)[:200]})"
        )
        raise CheckpointError(f"{path}: {reason}") from error

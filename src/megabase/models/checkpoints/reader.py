"""Weights from files of every published form, and strict reports of how they fit a model.

Safetensors, Lightning checkpoints (``.ckpt``), ``torch.save`` files (``.pt``, ``.bin``; the zip
archive and the older stream) and folders with one of them. Their pickles go through
:mod:`.unpickle`, which runs no code, and no more bytes are taken for storages than the file has.
"""

from __future__ import annotations

import io
import mmap
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from megabase.errors import CheckpointError
from megabase.models.checkpoints.checks import check_config
from megabase.models.checkpoints.unpickle import interpret, plain
from megabase.untrusted import parsing, read_json, recognize, shown

_SAFETENSORS, _SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Of a folder with several, the first.
_FOLDER_FILES = (_SAFETENSORS, _SAFETENSORS_INDEX, "pytorch_model.bin",
                 "pytorch_model.bin.index.json", "weights.ckpt")  # fmt: skip
# Of files that can hold weights.
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SHOWN_TENSORS = 50
"""Tensors that an error message names: a screenful."""
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Where training libraries put the state dict in a checkpoint."""
# The first two objects of a stream that torch wrote before 1.6.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DIRECTORY_BYTES = 16 << 20
"""Largest list of members of an archive; torch writes about 100 bytes for each storage."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint, and what the files say about them."""

    path: Path
    """File or folder that was read."""
    tensors: dict[str, Tensor]
    """By the names in the file."""
    config: dict[str, Any] | None = None
    """``config.json`` next to the weights."""
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    """What a Lightning checkpoint says about its run; empty otherwise."""
    files: tuple[Path, ...] = ()
    """Files the tensors come from."""


def require_fit(
    source: object,
    model: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Refuse weights that do not fit a model exactly (:class:`CheckpointError`).

    `missing` are names that only the model has, `unexpected` those that only the weights have, and
    `mismatched` names with the shape in the model and the shape of the weights.
    """
    shapes = [f"{name} is {found}, the model has {want}" for name, want, found in mismatched]
    parts: list[str] = []
    for what, names in (
        ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)
    ):  # fmt: skip
        more = len(names) - _SHOWN_TENSORS
        if names:
            listed = ", ".join(names[:_SHOWN_TENSORS]) + (f" and {more:,} more" if more > 0 else "")
            parts.append(f"{what}: {listed}")
    if parts:
        raise CheckpointError(f"{source}: the weights do not fit {model}; {'; '.join(parts)}")


def read_weights(path: str | Path, config: str | Path | None = None) -> Weights:
    """Read the tensors of a checkpoint.

    Parameters
    ----------
    path
        A ``.safetensors``, ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` file, or a folder with one.
    config
        A ``config.json``; by default the one next to the weights, if there is one.

    Returns
    -------
    Weights
        Tensors on the CPU under the names of the file.

    Raises
    ------
    CheckpointError
        When the file is missing or damaged, holds no weights, or a pickle names anything but data.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    files = _files_of(path)
    tensors: dict[str, Tensor] = {}
    hyper_parameters: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with parsing(file, CheckpointError, "it is damaged or not a safetensors file"):
                found = load_file(file)
        else:
            found, hyper_parameters = _read_state(file)
        tensors.update(found)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return Weights(path, tensors, _read_config(files[0], config), hyper_parameters, tuple(files))


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return _shards(path) if path.name.endswith(".index.json") else [path]
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return _files_of(path / name)
    candidates = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(candidates) != 1:
        found = f"found {', '.join(file.name for file in candidates)}" if candidates else "none"
        raise CheckpointError(
            f"{path}: expected weights ({', '.join(_FOLDER_FILES)}, or one file of type "
            f"{', '.join(_SUFFIXES)}), {found}; name the file itself"
        )
    return candidates


def _shards(index: Path) -> list[Path]:
    names = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: has no weight_map")
    for name in names.values():
        # By its name and not by where a link leads: the Hub's cache keeps files elsewhere.
        beside = isinstance(name, str) and name == Path(name).name and name.endswith(_SUFFIXES)
        # Without a look at the name itself: one that is too long for a file is an OSError.
        if not beside or name not in os.listdir(index.parent):
            raise CheckpointError(f"{index}: names {shown(name)}, which is not next to it")
    return [index.parent / name for name in sorted(set(names.values()))]


def _read_config(weights: Path, config: str | Path | None) -> dict[str, Any] | None:
    file = weights.parent if config is None else Path(config)
    file = file / "config.json" if file.is_dir() else file
    if config is None and not file.is_file():
        return None
    return check_config(read_json(file, CheckpointError), file, CheckpointError)


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a pickle and find the state dict in it: (tensors, hyper-parameters)."""
    content = _read_pickle(path)
    state = content
    for key in _STATE_KEYS:
        if isinstance(content, dict) and _is_state(content.get(key)):
            state = content[key]
            break
    if not _is_state(state):
        raise CheckpointError(
            f"{path}: holds no state dict; expected names with tensors, or such a table under "
            f"{', '.join(_STATE_KEYS)}, found {_describe(content)}"
        )
    hyper = plain(content.get("hyper_parameters") or {}) if state is not content else {}
    return (
        {
            name if isinstance(name, str) else shown(name): tensor
            for name, tensor in state.items()
            if isinstance(tensor, Tensor)
        },
        hyper if isinstance(hyper, dict) else {},
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _describe(value: Any, limit: int = 6) -> str:
    if not isinstance(value, dict):
        return type(value).__name__
    keys: Iterable[str] = [
        key[:60] if isinstance(key, str) else shown(key) for key in list(value)[:limit]
    ]
    return f"the keys {', '.join(keys)}{', ...' if len(value) > limit else ''}"


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
            raise CheckpointError("the archive has no data.pkl; it is not a torch checkpoint")
        prefix = roots[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in names and member(order).strip() != b"little":
            raise CheckpointError("was written on a big-endian machine")
        storages: dict[str, Tensor] = {}

        def storage(key: str, size: int) -> Tensor:
            if key not in storages:
                name = f"{prefix}data/{key}"
                if name not in names:
                    raise CheckpointError(f"storage {shown(key)} is missing from the archive")
                raw = member(name)
                if len(raw) < size:
                    raise CheckpointError(
                        f"storage {shown(key)} should hold {size:,} bytes, but the archive has "
                        f"{len(raw):,}"
                    )
                # An empty buffer is refused by torch.
                storages[key] = torch.frombuffer(raw or bytearray(1), dtype=torch.uint8)[: len(raw)]
            return storages[key]

        return interpret(io.BytesIO(member(roots[0])), storage)


def _read_stream(path: Path) -> Any:
    """Read the stream format of torch before 1.6, or a pickle without tensors."""
    left = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def storage(key: str, size: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= size
            if left < 0:
                raise CheckpointError(f"storage {shown(key)} claims more bytes than the file has")
            storages[key] = torch.zeros(size, dtype=torch.uint8)
        return storages[key]

    # Mapped, because reading from a map never reserves more than the file has left.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        head = interpret(stream)
        if head != _LEGACY_MAGIC:
            return head
        if interpret(stream) != _LEGACY_PROTOCOL:
            raise CheckpointError("unknown version of the old torch format")
        system = interpret(stream)
        if isinstance(system, dict) and not system.get("little_endian", True):
            raise CheckpointError("was written on a big-endian machine")
        result = interpret(stream, storage)
        for key in interpret(stream):
            if not isinstance(key, str) or key not in storages:
                raise CheckpointError(f"{shown(key)} does not name a storage")
            _count = stream.read(8)  # number of elements, known from the pickle already
            stored = stream.read(len(storages[key]))
            if len(stored) != len(storages[key]):
                raise CheckpointError(f"storage {shown(key)} is cut short")
            memoryview(storages[key].numpy().data)[:] = stored
    return result


# What zipfile, pickletools and the builders raise on bytes that are not what they claim to be.
_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, StopIteration, EOFError, RuntimeError,
    ArithmeticError, AssertionError, MemoryError, OSError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def _read_pickle(path: Path) -> Any:
    """Read a ``torch.save`` file (``.ckpt``, ``.pt``, ``.bin``) without executing anything.

    Gives containers, numbers, texts and CPU tensors (tied tensors share memory), with records and
    names where the file has objects and classes of training libraries.
    """
    try:
        return _read_archive(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error
    except _DAMAGE as error:
        reason = recognize(path) or (
            f"is damaged or not a torch checkpoint ({type(error).__name__}: {str(error)[:200]})"
        )
        raise CheckpointError(f"{path}: {reason}") from error

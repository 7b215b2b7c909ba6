"""Weights from files of every published form, under our names, and how they fit a model exactly.

A family's module holds ``convert(weights, **overrides)``, which gives a :class:`ConvertedModel` of
weights whose names the family recognizes.

Safetensors, Lightning checkpoints (``.ckpt``), ``torch.save`` files (``.pt``, ``.bin``; the zip
archive and the older stream) and folders with one of them. Their pickles go through
:mod:`.unpickle`, which runs no code, and no more bytes are taken for storages than the file has.
"""

import dataclasses
import io
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

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
_SHOWN_TENSORS = 50  # tensors that an error message names: a screenful
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Where training libraries put the state dict in a checkpoint."""
# The first two objects of a stream that torch wrote before 1.6.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DIRECTORY_BYTES = 16 << 20
"""Largest list of members of an archive; torch writes about 100 bytes for each storage."""


@dataclass(frozen=True)
class Weights:
    """Tensors of a checkpoint, and what the files say about them."""

    path: Path  # file or folder that was read
    tensors: dict[str, Tensor]  # by the names in the file
    config: dict[str, Any] | None = None  # config.json next to the weights
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    """What a Lightning checkpoint says about its run; empty otherwise."""
    files: tuple[Path, ...] = ()  # that the tensors come from


def require_fit(
    source: object, model: str, missing: Sequence[str], unexpected: Sequence[str],
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:  # fmt: skip
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
    inside = [content.get(key) for key in _STATE_KEYS] if isinstance(content, dict) else []
    state: Any = next(filter(_is_state, inside), content)
    if not _is_state(state):
        raise CheckpointError(
            f"{path}: holds no state dict; expected names with tensors, or such a table under "
            f"{', '.join(_STATE_KEYS)}, found {_describe(content)}"
        )
    hyper = plain(content.get("hyper_parameters") or {}) if state is not content else {}
    pairs = ((n if isinstance(n, str) else shown(n), value) for n, value in state.items())
    tensors = {name: value for name, value in pairs if isinstance(value, Tensor)}
    return tensors, hyper if isinstance(hyper, dict) else {}


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _describe(value: Any, limit: int = 6) -> str:
    if not isinstance(value, dict):
        return type(value).__name__
    keys = [key[:60] if isinstance(key, str) else shown(key) for key in list(value)[:limit]]
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


_WRAPPERS = re.compile(r"^(?:_orig_mod\.|_forward_module\.|module\.|model\.)+")
"""What torch.compile, Lightning and data parallelism put before the names of a model's tensors."""
HEAD_RULE = (r"^(?:head|decoder(?:\.\d+)?)\.output_transform\.(weight|bias)$", r"score.\1")
"""The classifier of the public HyenaDNA and Caduceus training code, and its name here."""
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")
"""Settings of a classifier that transformers keeps outside the fields of a configuration."""


class ConvertedModel(NamedTuple):
    """A model made of published weights."""

    model: PreTrainedModel  # in evaluation mode, float32
    notes: tuple[str, ...]  # what was decided that the files do not say, or say differently
    dropped: tuple[str, ...]  # names of the file that are not part of the model


def renamed(
    tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]] = (HEAD_RULE,)
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename published tensors: (tensors under our names, names that are not part of the model).

    Rules are pairs of a pattern and its replacement, applied in order to names without wrappers;
    unknown names stay, for the report. Counters of torchmetrics are left out. Two names of one
    tensor with different values are a :class:`CheckpointError`.
    """
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if "torchmetrics" in name:
            continue
        new = _WRAPPERS.sub("", name)
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in found and not torch.equal(found[new], tensor):
            raise CheckpointError(
                f"{origin[new]} and {name} are one tensor of the model ({new}), "
                "but their values differ"
            )
        found.setdefault(new, tensor)
        origin.setdefault(new, name)
    return found, tuple(name for name in tensors if "torchmetrics" in name)


def recorded_settings(
    weights: Weights, config_class: type[Any], accepted: Collection[str | None],
    tables: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Read the settings, under our names, that a ``config.json`` or a Lightning checkpoint records.

    `accepted` are the values of ``model_type`` of the family (None: the file has none); another one
    is a :class:`CheckpointError`. `tables` gives, by the name of a table inside of the settings,
    or ``""`` for the settings themselves, the published names that are not ours.
    """
    known = {field.name: field.name for field in dataclasses.fields(config_class)}
    known |= {name: name for name in LABEL_KEYS} | {"tie_embeddings": "tie_word_embeddings"}
    tables = {**tables, "": {**known, **tables.get("", {})}}
    run = weights.hyper_parameters.get("model") or {}
    settings: dict[str, Any] = {}
    for source in (run, run.get("config") if isinstance(run, Mapping) else None, weights.config):
        if not isinstance(source, Mapping):
            continue
        for part, names in tables.items():
            values = source.get(part) if part else source
            for name, value in values.items() if isinstance(values, Mapping) else ():
                if name in names and value not in (None, "") and "${" not in str(value):
                    settings[names[name]] = value
    model_type = (weights.config or {}).get("model_type")
    if model_type not in accepted:
        raise CheckpointError(
            f"{weights.path}: the weights are of a {config_class.__name__.removesuffix('Config')} "
            f"model, but the configuration says {model_type!r}"
        )
    return settings


def build(
    model_class: type[Any], config: Any, tensors: Mapping[str, Tensor], source: object,
    computed: str = r"$^",
) -> tuple[Any, list[str]]:  # fmt: skip
    """Build a model in evaluation mode and load its weights: (model, names that were filled in).

    Tensors have our names; of a tied tensor, either copy or both. A checkpoint in half precision is
    widened: filters and tables need float32. A file may lack names that match `computed`, since the
    configuration gives their values. Every missing, unexpected and mis-shaped tensor is named in a
    :class:`CheckpointError`.
    """
    model = model_class(config)
    state, expected = dict(tensors), model.state_dict()
    for copy, first in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if copy in state and first in state and not torch.equal(state[copy], state[first]):
            raise CheckpointError(
                f"{source}: {copy} and {first} are one tensor of the model, but differ in the file"
            )
        for name, other in ((copy, first), (first, copy)):
            if other in state and name in expected:
                state.setdefault(name, state[other])
    filled = [name for name in expected if name not in state and re.search(computed, name)]
    state.update((name, expected[name]) for name in filled)
    require_fit(
        source,
        model_class.__name__,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        mismatched=[
            (name, tuple(tensor.shape), tuple(state[name].shape))
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    )
    model.load_state_dict({name: state[name].to(expected[name].dtype) for name in expected})
    return model.eval(), filled

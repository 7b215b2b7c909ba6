"""What a checkpoint's pickle may name, and how each of those things is built.

A class or function named in a pickle stays a name (:class:`Global`). The tables here say which
names are known: those that become tensors, storages, plain containers and numpy values, and those
of training libraries, which become :class:`Inert` records. Any other name is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from megabase.errors import MegabaseError

__all__ = [
    "STORAGE_TYPES",
    "CheckpointError",
    "Global",
    "Inert",
    "Storage",
    "UnsafeCheckpointError",
    "call",
    "extend",
    "resolve",
    "set_items",
    "set_state",
]


class CheckpointError(MegabaseError):
    """A checkpoint cannot be read, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint names something that is neither data nor a known harmless class."""


class Global(NamedTuple):
    """The name of a class or function as a pickle writes it; never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """What a pickle says about an object that is not rebuilt.

    Attributes
    ----------
    origin
        Class of the object, by name.
    arguments
        Arguments the class would have been called with.
    state
        The object's attributes, when the pickle has them.
    content
        Items (list-like) or pairs (dict-like) the pickle puts into the object.
    """

    def __init__(self, origin: Global, arguments: tuple[Any, ...]) -> None:
        self.origin = origin
        self.arguments = arguments
        self.state: Any = None
        self.content: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.origin}, not rebuilt>"


# Names a training checkpoint may carry and that stay inert. The reader would treat any other name
# just as harmlessly; refusing it tells the user that the file is not what it seems to be.
INERT_MODULES = (
    "omegaconf", "antlr4", "hydra", "pytorch_lightning", "lightning", "lightning_fabric",
    "lightning_utilities", "torchmetrics", "transformers", "accelerate", "argparse", "pathlib",
    "typing", "datetime", "enum", "torch.optim", "torch.distributed", "numpy.random", "src",
)  # fmt: skip
_BUILTIN_MODULES = ("builtins", "__builtin__")
_TYPE_NAMES = frozenset(
    ("int", "float", "str", "bool", "complex", "bytes", "bytearray", "object", "type",
     "long", "unicode", "list", "tuple", "dict", "set", "frozenset", "NoneType", "slice", "range")
)  # fmt: skip
STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_TENSOR_TYPES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}


class Storage(NamedTuple):
    """Bytes of one storage and the type of its elements; tied tensors share the bytes."""

    raw: torch.Tensor
    dtype: torch.dtype


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> torch.Tensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor in the checkpoint has no storage")
    dtype = storage.dtype if dtype is None else dtype
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise CheckpointError(f"a tensor in the checkpoint has shape {size} and strides {stride}")
    needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    flat = storage.raw.view(dtype)
    if 0 in size:
        return torch.empty(tuple(size), dtype=dtype)
    if needed > flat.numel():
        raise CheckpointError(
            f"a tensor of shape {tuple(size)} needs {needed:,} elements, but its storage has "
            f"{flat.numel():,}; the file is damaged"
        )
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    return _tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> torch.Tensor:
    return _tensor(storage, offset, size, stride, dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


_TENSOR_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
}


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    builder = _TENSOR_BUILDERS.get(function) if isinstance(function, Global) else None
    if builder is None:
        raise UnsafeCheckpointError(f"the checkpoint asks to call {function} to build a tensor")
    return builder(*arguments)


def _pairs(values: Any = (), *_: Any) -> dict[Any, Any]:
    return dict(values)


def _collection(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def build(values: Any = ()) -> Any:
        if not isinstance(values, (list, tuple, set, frozenset, dict)):
            raise CheckpointError(f"cannot build a {kind} from {type(values).__name__}")
        return kind(values)

    return build


def _bytes(value: Any = b"", encoding: Any = "latin-1") -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1" if encoding in ("latin-1", "latin1") else "utf-8")
    if isinstance(value, (bytes, bytearray, list)):
        return bytes(value)
    raise CheckpointError(f"cannot build bytes from {type(value).__name__}")


def _numpy_dtype(name: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or np.dtype(name).kind not in "biufcSU":
        raise CheckpointError(f"the checkpoint holds a numpy array of type {name!r}")
    return np.dtype(name)


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    return np.frombuffer(_bytes(raw), dtype=dtype, count=1)[0]


def _numpy_array(*_: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8)  # filled by the BUILD that follows


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(_bytes(raw), dtype=dtype).reshape(shape, order=order)


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **_TENSOR_BUILDERS,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _collection(tuple),
    ("torch", "device"): lambda *parts: ":".join(str(part) for part in parts),
    ("torch.serialization", "_get_layout"): _first,
    ("collections", "OrderedDict"): _pairs,
    ("collections", "defaultdict"): lambda _factory=None, *rest: _pairs(*rest),
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _numpy_dtype,
    **{(module, name): builder
       for module in ("numpy.core.multiarray", "numpy._core.multiarray")
       for name, builder in (("scalar", _numpy_scalar), ("_reconstruct", _numpy_array))},
    **{(module, "_frombuffer"): _numpy_from_buffer
       for module in ("numpy.core.numeric", "numpy._core.numeric")},
    **{(module, name): builder
       for module in _BUILTIN_MODULES
       for name, builder in (("list", _collection(list)), ("tuple", _collection(tuple)),
                             ("set", _collection(set)), ("frozenset", _collection(frozenset)),
                             ("dict", _pairs), ("bytes", _bytes), ("bytearray", _bytes),
                             ("complex", complex))},
}  # fmt: skip


def _is_inert(name: Global) -> bool:
    return any(name.module == root or name.module.startswith(f"{root}.") for root in INERT_MODULES)


def resolve(module: Any, name: Any, where: str) -> Any:
    """Turn a name of the file into a data type, or into an inert name; refuse what is unknown."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise CheckpointError(f"{where}: a class name in the pickle is not text")
    found = Global(module, name)
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    known = (
        found in _BUILDERS
        or found in _TENSOR_TYPES
        or (module in ("torch", "torch.storage") and name in STORAGE_TYPES)
        or (module in _BUILTIN_MODULES and name in _TYPE_NAMES)
        or found in {("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")}
        or (module == "numpy" and name == "ndarray")
        or _is_inert(found)
    )
    if known:
        return found
    hint = ""
    if module.startswith("torch.nn"):
        hint = " (the file holds a whole pickled model; save model.state_dict() instead)"
    raise UnsafeCheckpointError(
        f"{where}: refused, because loading it would need {found}{hint}; only tensors, plain "
        "containers and records of known libraries are read, and nothing was executed"
    )


def call(function: Any, arguments: Any, where: str) -> Any:
    """Build what the file asks for; the only functions reachable are those of ``_BUILDERS``."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise UnsafeCheckpointError(f"{where}: the pickle calls {function!r}, which is no class")
    if function.name == "_reconstructor":
        function, arguments = arguments[0], ()
        if not isinstance(function, Global):
            raise UnsafeCheckpointError(
                f"{where}: the pickle calls {function!r}, which is no class"
            )
    builder = _BUILDERS.get(function)
    if builder is not None:
        return builder(*arguments)
    if _is_inert(function):
        return Inert(function, arguments)
    raise UnsafeCheckpointError(f"{where}: refused, because the pickle calls {function}")


def set_state(target: Any, state: Any, where: str) -> Any:
    """Give an object the state the file has for it: kept by records, used by numpy arrays."""
    if isinstance(target, Inert):
        target.state = state
    elif isinstance(target, np.ndarray):
        dtype = state[2]
        if not isinstance(dtype, np.dtype) or dtype.hasobject:
            raise CheckpointError(f"{where}: a numpy array of type {dtype!r} is not read")
        target.__setstate__(state)
    elif isinstance(target, np.dtype):
        if state[1] == ">" or state[3] is not None:
            raise CheckpointError(f"{where}: big-endian and structured arrays are not read")
    elif not isinstance(target, (dict, torch.Tensor)):  # their attributes carry no weights
        raise UnsafeCheckpointError(f"{where}: the pickle sets attributes of {target!r}")
    return target


def extend(target: Any, values: list[Any], where: str) -> None:
    """Add items to a list or a set, or remember them in a record."""
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(values)
    elif isinstance(target, Inert):
        target.content.extend(values)
    else:
        raise CheckpointError(f"{where}: the pickle adds items to {type(target).__name__}")


def set_items(target: Any, values: list[Any], where: str) -> None:
    """Add alternating keys and values to a dictionary, or remember them in a record."""
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, dict):
        target.update(pairs)
    elif isinstance(target, Inert):
        target.content.extend(pairs)
    else:
        raise CheckpointError(f"{where}: the pickle sets items of {type(target).__name__}")

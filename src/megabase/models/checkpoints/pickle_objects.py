"""What a checkpoint's pickle may name, and how each of those things is built.

A class or function named in a pickle stays a name (:class:`Global`). The tables here say which
names are known: those that become tensors, storages, plain containers and numpy values, and those
of training libraries, which become :class:`Inert` records. Any other name is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from megabase.errors import CheckpointError
from megabase.untrusted import shown

__all__ = [
    "STORAGE_TYPES",
    "Budget",
    "Global",
    "Inert",
    "Storage",
    "call",
    "extend",
    "resolve",
    "set_items",
    "set_state",
]


class Global(NamedTuple):
    """The name of a class or function as a pickle writes it; never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Budget:
    """What reading one pickle may cost: its instructions, and the items and bytes they copy."""

    # A tensor takes about 35 instructions, so this is enough for the weights and moments of 9,000
    # parameters, and some three seconds. The largest object that one instruction makes is an empty
    # set of 216 bytes.
    _MOST = 1_000_000

    def __init__(self) -> None:
        self.left = self._MOST

    def spend(self, steps: int) -> None:
        """Take from what is left.

        Raises
        ------
        CheckpointError
            When there is not enough.
        """
        self.left -= steps
        if self.left < 0:
            raise CheckpointError(
                f"describes more than {self._MOST:,} objects; save the weights alone "
                "(model.state_dict())"
            )

    def spend_copies(self, values: Any) -> None:
        """Take what copying the parts of a tuple costs: one step an item, or for 64 bytes."""
        for value in values:
            if isinstance(value, (str, bytes, bytearray)):
                self.spend(len(value) >> 6)
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self.spend(len(value))


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
_MOST_AXES = 64
_EXPANDED_ELEMENTS = 1 << 20
"""Elements a tensor may have beyond those of its storage (one value seen at many places)."""
_FLAT = (str, bytes, float, type(None), torch.dtype, torch.Tensor, np.integer, np.floating,
         np.bool_, np.str_, np.dtype, Global, Inert)  # fmt: skip
_LARGEST_KEY = (1 << 61) - 1
"""Whole numbers from here on can be chosen to share one hash, which makes a table slow."""
_TENSOR_TYPES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}


class Storage(NamedTuple):
    """Bytes of one storage and the type of its elements; tied tensors share the bytes."""

    raw: torch.Tensor
    dtype: torch.dtype


def _is_flat(value: Any) -> bool:
    if isinstance(value, int):
        return -_LARGEST_KEY < value < _LARGEST_KEY
    return isinstance(value, _FLAT)


def _check_key(value: Any) -> Any:
    """Give a key of a table or a member of a set back; only flat values are ever hashed."""
    pair = type(value) is tuple and len(value) <= 8 and all(map(_is_flat, value))
    if not (pair or _is_flat(value)):
        raise CheckpointError(f"{shown(value)} cannot be a key or member of a set")
    return value


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) <= _MOST_AXES
        and all(isinstance(n, int) and 0 <= n < 1 << 48 for n in value)
    )


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> torch.Tensor:
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor in the checkpoint has no storage")
    dtype = storage.dtype if dtype is None else dtype
    sound = _is_size(size) and _is_size(stride) and _is_size((offset,)) and len(size) == len(stride)
    if not sound or not isinstance(dtype, torch.dtype):
        raise CheckpointError("a tensor in the checkpoint has an impossible shape, stride or type")
    flat = storage.raw.view(dtype)
    if 0 in size:
        return torch.empty(tuple(size), dtype=dtype)
    needed = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    elements = math.prod(size)
    if needed > flat.numel() or elements > max(flat.numel(), _EXPANDED_ELEMENTS):
        raise CheckpointError(
            f"a tensor of shape {tuple(size)} needs {max(needed, elements):,} elements, but its "
            f"storage has {flat.numel():,}; the file is damaged"
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
        name = function if isinstance(function, Global) else shown(function)
        raise CheckpointError(f"the checkpoint asks to call {name} to build a tensor")
    return builder(*arguments)


def _pairs(values: Any = (), *_: Any) -> dict[Any, Any]:
    if isinstance(values, dict):
        return dict(values)
    return {_check_key(key): value for key, value in values}


def _collection(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def build(values: Any = ()) -> Any:
        if not isinstance(values, (list, tuple, set, frozenset, dict)):
            raise CheckpointError(f"cannot build a {kind} from {type(values).__name__}")
        if kind in (set, frozenset):
            values = [_check_key(value) for value in values]
        return kind(values)

    return build


def _device(*parts: Any) -> str:
    if len(parts) > 2 or not all(isinstance(part, (str, int)) for part in parts):
        raise CheckpointError("the checkpoint names an impossible device")
    return ":".join(part if isinstance(part, str) else shown(part) for part in parts)


def _bytes(value: Any = b"", encoding: Any = "latin-1") -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1" if encoding in ("latin-1", "latin1") else "utf-8")
    if isinstance(value, (bytes, bytearray, list)):
        return bytes(value)
    raise CheckpointError(f"cannot build bytes from {type(value).__name__}")


def _numpy_dtype(name: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or len(name) > 16 or np.dtype(name).kind not in "biufcSU":
        raise CheckpointError(f"the checkpoint holds a numpy array of type {shown(name)}")
    return np.dtype(name)


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    return _numpy_from_buffer(raw, dtype, (-1,), "C")[0]


def _numpy_array(*_: Any) -> np.ndarray[Any, Any]:
    return np.empty(0, dtype=np.uint8)  # filled by the BUILD that follows


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    sound = isinstance(dtype, np.dtype) and (shape == (-1,) or _is_size(shape))
    if not sound or order not in ("C", "F"):
        raise CheckpointError("the checkpoint holds a numpy array of impossible shape or type")
    return np.frombuffer(_bytes(raw), dtype=dtype).reshape(shape, order=order)


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **_TENSOR_BUILDERS,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _collection(tuple),
    ("torch", "device"): _device,
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


def resolve(module: Any, name: Any) -> Any:
    """Turn a name of the file into a data type, or into an inert name; refuse what is unknown."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise CheckpointError("a class name in the pickle is not text")
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
    raise CheckpointError(
        f"refused, because loading it would need {str(found)[:100]}{hint}; only tensors, "
        "plain containers and records of known libraries are read, and nothing was executed"
    )


def call(function: Any, arguments: Any, budget: Budget) -> Any:
    """Build what the file asks for; the only functions reachable are those of ``_BUILDERS``."""
    if isinstance(function, Global) and function.name == "_reconstructor":
        function, arguments = arguments[0], ()
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise CheckpointError(f"the pickle calls {shown(function)}, which is no class")
    builder = _BUILDERS.get(function)
    if builder is not None:
        budget.spend_copies(arguments)
        return builder(*arguments)
    if _is_inert(function):
        return Inert(function, arguments)
    raise CheckpointError(f"refused, because the pickle calls {function}")


def set_state(target: Any, state: Any, budget: Budget) -> Any:
    """Give an object the state the file has for it: kept by records, used by numpy arrays."""
    if isinstance(target, Inert):
        target.state = state
    elif isinstance(target, np.ndarray):
        _version, shape, dtype, _order, raw = state
        if not isinstance(dtype, np.dtype) or dtype.hasobject or not _is_size(shape):
            raise CheckpointError(f"a numpy array of type {shown(dtype)} is not read")
        budget.spend_copies((raw,))
        target = _numpy_from_buffer(raw, dtype, shape, "F" if _order else "C").copy()
    elif isinstance(target, np.dtype):
        if state[1] == ">" or state[3] is not None:
            raise CheckpointError("big-endian and structured arrays are not read")
    elif not isinstance(target, (dict, torch.Tensor)):  # their attributes carry no weights
        raise CheckpointError(f"the pickle sets attributes of {shown(target)}")
    return target


def extend(target: Any, values: list[Any]) -> None:
    """Add items to a list or a set, or remember them in a record."""
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(_check_key(value) for value in values)
    elif isinstance(target, Inert):
        target.content.extend(values)
    else:
        raise CheckpointError(f"the pickle adds items to {type(target).__name__}")


def set_items(target: Any, values: list[Any]) -> None:
    """Add alternating keys and values to a dictionary, or remember them in a record."""
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, dict):
        target.update((_check_key(key), value) for key, value in pairs)
    elif isinstance(target, Inert):
        target.content.extend(pairs)
    else:
        raise CheckpointError(f"the pickle sets items of {type(target).__name__}")

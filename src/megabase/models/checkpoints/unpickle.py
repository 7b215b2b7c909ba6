"""A reader of torch checkpoints that cannot run code.

A pickle is a program, and ``torch.load`` without ``weights_only`` runs whatever it contains. This
module interprets the pickle's instructions itself: nothing is imported, and nothing is called but
the builders below, which make tensors, plain containers and numpy values. A class or function named
in a pickle stays a name (:class:`Global`); objects of training libraries become :class:`Inert`
records, and any other name is refused. The containers that hold the pickle are read by
:mod:`.reader`.

A small file can describe a large object: values are shared, so forty instructions make a tuple of
2**40 items. Instructions and copies are counted, only flat values become keys, no foreign value is
written into a message.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from megabase.errors import CheckpointError
from megabase.untrusted import shown

_BUDGET = 1_000_000
"""Instructions of one pickle, and items or 64-byte pieces that they copy. A tensor takes about 35,
so this is enough for the weights and moments of 9,000 parameters, and some three seconds. The
largest object that one instruction makes is an empty set of 216 bytes."""
# Names a training checkpoint may carry and that stay inert. The reader would treat any other name
# just as harmlessly; refusing it tells the user that the file is not what it seems to be.
_INERT_MODULES = (
    "omegaconf", "antlr4", "hydra", "pytorch_lightning", "lightning", "lightning_fabric",
    "lightning_utilities", "torchmetrics", "transformers", "accelerate", "argparse", "pathlib",
    "typing", "datetime", "enum", "torch.optim", "torch.distributed", "numpy.random", "src",
)  # fmt: skip
_BUILTIN_MODULES = ("builtins", "__builtin__")
"""Python 3 and Python 2 call it by these names."""
# Types that a pickle may name without building anything of them.
_TYPE_NAMES = frozenset(
    ("int", "float", "str", "bool", "complex", "bytes", "bytearray", "object", "type",
     "long", "unicode", "list", "tuple", "dict", "set", "frozenset", "NoneType", "slice", "range")
)  # fmt: skip
# What torch calls the storages of its element types.
STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}  # fmt: skip
# Named as torch.float32 and so on.
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_MOST_AXES = 64
"""Axes of a tensor: torch's own limit."""
_EXPANDED_ELEMENTS = 1 << 20
"""Elements a tensor may have beyond those of its storage (one value seen at many places)."""
# Named along with tensors; nothing is built of them.
_TENSOR_TYPES = {("torch", "Tensor"), ("torch.nn.parameter", "Parameter")}


class Global(NamedTuple):
    """The name of a class or function as a pickle writes it; never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """What a pickle says about an object that is not rebuilt: class, arguments, attributes."""

    def __init__(self, origin: Global, arguments: tuple[Any, ...]) -> None:
        self.origin = origin
        self.arguments = arguments
        self.state: Any = None
        self.content: list[Any] = []  # items of a list, or pairs of a table

    def __repr__(self) -> str:
        return f"<{self.origin}, not rebuilt>"


class _Budget:
    """What is left of :data:`_BUDGET`."""

    def __init__(self) -> None:
        self.left = _BUDGET

    def spend(self, steps: int) -> None:
        """Take from what is left, or refuse the file."""
        self.left -= steps
        if self.left < 0:
            raise CheckpointError(
                f"describes more than {_BUDGET:,} objects; save the weights alone "
                "(model.state_dict())"
            )

    def spend_copies(self, values: Any) -> None:
        """Take what copying the parts of a tuple costs: one step an item, or for 64 bytes."""
        for value in values:
            if isinstance(value, (str, bytes, bytearray)):
                self.spend(len(value) >> 6)
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self.spend(len(value))


class Storage(NamedTuple):
    """Bytes of one storage and the type of its elements; tied tensors share the bytes."""

    raw: torch.Tensor
    dtype: torch.dtype


# Values that are hashed in a few steps, whatever they hold.
_FLAT = (str, bytes, float, type(None), torch.dtype, torch.Tensor, np.integer, np.floating,
         np.bool_, np.str_, np.dtype, Global, Inert)  # fmt: skip
_LARGEST_KEY = (1 << 61) - 1
"""Whole numbers from here on can be chosen to share one hash, which makes a table slow."""


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


def _first(value: Any, *_: Any) -> Any:
    return value


# How torch's own pickles rebuild tensors; the third version gives the element type, too.
_TENSOR_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): lambda *given: _tensor(*given[:4]),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _tensor(*given[:4]),
    ("torch._utils", "_rebuild_tensor_v3"): lambda *given: _tensor(*given[:4], dtype=given[6]),
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
}


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    builder = _TENSOR_BUILDERS.get(function) if isinstance(function, Global) else None
    if builder is None:
        name = function if isinstance(function, Global) else shown(function)
        raise CheckpointError(f"the checkpoint calls {name} to build a tensor")
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


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    sound = isinstance(dtype, np.dtype) and (shape == (-1,) or _is_size(shape))
    if not sound or order not in ("C", "F"):
        raise CheckpointError("the checkpoint holds a numpy array of impossible shape or type")
    return np.frombuffer(_bytes(raw), dtype=dtype).reshape(shape, order=order)


# Everything that a pickle can have built.
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
       for name, builder in (
           ("scalar", lambda dtype, raw: _numpy_from_buffer(raw, dtype, (-1,), "C")[0]),
           # Filled by the BUILD that follows.
           ("_reconstruct", lambda *_: np.empty(0, dtype=np.uint8)),
       )},
    ("numpy.core.numeric", "_frombuffer"): _numpy_from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _numpy_from_buffer,
    **{(module, name): builder
       for module in _BUILTIN_MODULES
       for name, builder in (("list", _collection(list)), ("tuple", _collection(tuple)),
                             ("set", _collection(set)), ("frozenset", _collection(frozenset)),
                             ("dict", _pairs), ("bytes", _bytes), ("bytearray", _bytes),
                             ("complex", complex))},
}  # fmt: skip


def _is_inert(name: Global) -> bool:
    return any(name.module == root or name.module.startswith(f"{root}.") for root in _INERT_MODULES)


def _resolve(module: Any, name: Any) -> Any:
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


def _call(function: Any, arguments: Any, budget: _Budget) -> Any:
    """Build what the file asks for; the only functions reachable are those of ``_BUILDERS``."""
    if isinstance(function, Global) and function.name == "_reconstructor":
        function, arguments = arguments[0], ()
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise CheckpointError(f"the pickle calls {shown(function)}, which is not a class")
    builder = _BUILDERS.get(function)
    if builder is not None:
        budget.spend_copies(arguments)
        return builder(*arguments)
    if _is_inert(function):
        return Inert(function, arguments)
    raise CheckpointError(f"refused, because the pickle calls {function}")


def _set_state(target: Any, state: Any, budget: _Budget) -> Any:
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


def _extend(target: Any, values: list[Any]) -> None:
    """Add items to a list or a set, or remember them in a record."""
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(_check_key(value) for value in values)
    elif isinstance(target, Inert):
        target.content.extend(values)
    else:
        raise CheckpointError(f"the pickle adds items to {type(target).__name__}")


def _set_items(target: Any, values: list[Any]) -> None:
    """Add alternating keys and values to a dictionary, or remember them in a record."""
    pairs = list(zip(values[::2], values[1::2], strict=True))
    if isinstance(target, dict):
        target.update((_check_key(key), value) for key, value in pairs)
    elif isinstance(target, Inert):
        target.content.extend(pairs)
    else:
        raise CheckpointError(f"the pickle sets items of {type(target).__name__}")


# Stands on the stack where a list of arguments begins.
_MARK = object()
# Instructions that put their argument on the stack.
_LITERALS = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)  # fmt: skip
# Instructions that put something new on the stack.
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip


def interpret(stream: Any, persistent: Callable[[Any], Any]) -> Any:
    """Follow one pickle to its STOP and give the object it describes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    budget = _Budget()

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
            stack.append(frozenset([_check_key(value) for value in to_mark()]))
        elif name == "DICT":
            values = to_mark()
            stack.append({})
            _set_items(stack[-1], values)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = [stack.pop()] if name == "APPEND" else to_mark()
            _extend(stack[-1], values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [stack.pop(-2), stack.pop()] if name == "SETITEM" else to_mark()
            _set_items(stack[-1], values)
        elif name == "GLOBAL":
            stack.append(_resolve(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_resolve(module, attribute))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            if name == "NEWOBJ_EX":
                stack.pop()  # keywords
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments, budget))
        elif name == "OBJ":
            function, *arguments = to_mark()
            stack.append(_call(function, tuple(arguments), budget))
        elif name == "INST":
            function = _resolve(*str(argument).split(" ", 1))
            stack.append(_call(function, tuple(to_mark()), budget))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1] = _set_state(stack[-1], state, budget)
        elif name in ("BINPERSID", "PERSID"):
            stack.append(persistent(stack.pop() if name == "BINPERSID" else argument))
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

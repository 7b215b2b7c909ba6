"""A reader of torch checkpoints that cannot run code.

A pickle is a program, and ``torch.load`` without ``weights_only`` runs whatever it contains. This
module interprets the pickle's instructions itself: nothing is imported, and nothing is called but
the builders below, which make tensors, tables and sets. A class or function named in a pickle stays
a name; objects of training libraries become records of class and attributes, and any other name is
refused. The containers that hold the pickle are read by :mod:`.reader`.

A small file can describe a large object: values are shared, so forty instructions make a tuple of
2**40 items. Instructions and copies are counted, only flat values become keys, no foreign value is
written into a message.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from megabase.errors import CheckpointError
from megabase.untrusted import shown

_BUDGET = 1_000_000
"""Instructions of one pickle, and items that they copy. A tensor takes about 35,
so this is enough for the weights and moments of 9,000 parameters, and some three seconds. The
largest object that one instruction makes is an empty set of 216 bytes."""
# Names a training checkpoint may carry and that stay inert. The reader would treat any other name
# just as harmlessly; refusing it tells the user that the file is not what it seems to be.
_INERT_MODULES = tuple(f"{name}." for name in (
    "omegaconf", "antlr4", "hydra", "pytorch_lightning", "lightning", "lightning_fabric",
    "lightning_utilities", "torchmetrics", "transformers", "accelerate", "argparse", "pathlib",
    "typing", "datetime", "enum", "torch.optim", "torch.distributed", "numpy", "src",
))  # fmt: skip
# What torch calls the storages of its element types.
_STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}  # fmt: skip
# Named as torch.float32 and so on.
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_MOST_AXES = 64  # of a tensor: torch's own limit
_EXPANDED_ELEMENTS = 1 << 20
"""Elements a tensor may have beyond those of its storage (one value seen at many places)."""
# Further names that stay inert: of types, and of what torch and pickle write beside tensors.
_INERT_NAMES = {
    ("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch", "Size"),
    ("torch", "device"), ("torch.serialization", "_get_layout"), ("_codecs", "encode"),
    ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"),
    *((module, name) for module in ("torch", "torch.storage") for name in _STORAGE_TYPES),
    *((module, name) for module in ("builtins", "__builtin__") for name in (
        "int", "float", "str", "bool", "complex", "bytes", "bytearray", "object", "type", "long",
        "unicode", "list", "tuple", "dict", "frozenset", "NoneType", "slice", "range")),
}  # fmt: skip


class _Global(NamedTuple):
    """The name of a class or function as a pickle writes it; never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Record:
    """What a pickle says about an object that is not rebuilt: its class and its attributes."""

    def __init__(self, origin: _Global) -> None:
        self.origin = origin
        self.state: Any = None


class _Storage(NamedTuple):
    """Bytes of one storage and the type of its elements; tied tensors share the bytes."""

    raw: torch.Tensor
    dtype: torch.dtype


# Values that are hashed in a few steps, whatever they hold.
_FLAT = (str, bytes, float, type(None), torch.dtype, torch.Tensor, _Global, _Record)
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
    if not isinstance(storage, _Storage):
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


def _rebuild_from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, _Global) or function.module != "torch._utils":
        name = function if isinstance(function, _Global) else shown(function)
        raise CheckpointError(f"the checkpoint calls {name} to build a tensor")
    return _BUILDERS[function](*arguments)


def _items(values: Any) -> Any:
    if not isinstance(values, (list, tuple)):
        raise CheckpointError(f"cannot build a table or set from {type(values).__name__}")
    return values


def _table(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {_check_key(key): value for key, value in _items(pairs)}


def _set(values: Any = ()) -> set[Any]:
    return {_check_key(value) for value in _items(values)}


# Everything that a pickle can have built. The third version of a tensor gives its type, too.
_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): lambda *given: _tensor(*given[:4]),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *given: _tensor(*given[:4]),
    ("torch._utils", "_rebuild_tensor_v3"): lambda *given: _tensor(*given[:4], dtype=given[6]),
    ("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda value, *_: value,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("collections", "OrderedDict"): _table,
    ("collections", "defaultdict"): lambda _factory=None, *rest: _table(*rest),
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
}


def _resolve(module: Any, name: Any) -> Any:
    """Turn a name of the file into a data type, or into an inert name; refuse what is unknown."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise CheckpointError("a class name in the pickle is not text")
    found = _Global(module, name)
    if module == "torch" and name in _DTYPES:
        return _DTYPES[name]
    if found in _BUILDERS or found in _INERT_NAMES or f"{module}.".startswith(_INERT_MODULES):
        return found
    hint = ""
    if module.startswith("torch.nn"):
        hint = " (the file holds a whole pickled model; save model.state_dict() instead)"
    raise CheckpointError(
        f"refused, because loading it would need {str(found)[:100]}{hint}; only tensors, "
        "plain containers and records of known libraries are read, and nothing was executed"
    )


def _extend(target: Any, values: list[Any]) -> None:
    """Add items to a list or a set; what a record holds is not kept."""
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(_check_key(value) for value in values)
    elif not isinstance(target, _Record):
        raise CheckpointError(f"the pickle adds items to {type(target).__name__}")


def _set_items(target: Any, values: list[Any]) -> None:
    """Add alternating keys and values to a table; what a record holds is not kept."""
    if isinstance(target, dict):
        pairs = zip(values[::2], values[1::2], strict=True)
        target.update((_check_key(key), value) for key, value in pairs)
    elif not isinstance(target, _Record):
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


def _stored(identity: Any, storage: Callable[[str, int], torch.Tensor] | None) -> _Storage:
    """Give the storage that a file describes by (key, element type, number of elements)."""
    match identity:
        case ("storage", _Global(name=name), str(key), _, int(count), *rest) if (
            storage is not None
            and name in _STORAGE_TYPES
            and 0 <= count < 1 << 48
            and all(view is None for view in rest)
        ):
            dtype = _STORAGE_TYPES[name]
            return _Storage(storage(key, count * dtype.itemsize), dtype)
    raise CheckpointError(f"{shown(identity)} does not describe a tensor storage")


def interpret(stream: Any, storage: Callable[[str, int], torch.Tensor] | None = None) -> Any:
    """Follow one pickle to its STOP and give the object it describes.

    `storage` gives the bytes, uint8, of the storage of a name that has a number of them at least;
    without it a pickle can hold no tensors.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    left = _BUDGET

    def to_mark() -> list[Any]:
        start = len(stack) - 1 - next(i for i, v in enumerate(reversed(stack)) if v is _MARK)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        left -= 1
        if left < 0:
            raise CheckpointError(
                f"describes more than {_BUDGET:,} objects; save the weights alone "
                "(model.state_dict())"
            )
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
        elif name in ("TUPLE", "LIST"):
            values = to_mark()
            stack.append(tuple(values) if name == "TUPLE" else values)
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
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"):
            if name == "NEWOBJ_EX":
                stack.pop()  # keywords
            if name == "OBJ":
                function, *rest = to_mark()
                arguments = tuple(rest)
            elif name == "INST":
                function, arguments = _resolve(*str(argument).split(" ", 1)), tuple(to_mark())
            else:
                arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Global) or not isinstance(arguments, tuple):
                raise CheckpointError(f"the pickle calls {shown(function)}, which is not a class")
            left -= sum(len(value) for value in arguments if isinstance(value, (list, tuple)))
            left -= len(arguments)
            builder = _BUILDERS.get(function)  # nothing else is ever called
            stack.append(_Record(function) if builder is None else builder(*arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack[-1]
            if isinstance(target, _Record):
                target.state = state
            elif not isinstance(target, (dict, torch.Tensor)):  # whose state is left out
                raise CheckpointError(f"the pickle sets attributes of {shown(target)}")
        elif name in ("BINPERSID", "PERSID"):
            identity = stack.pop() if name == "BINPERSID" else argument
            stack.append(_stored(identity, storage))
        elif name in ("POP", "POP_MARK"):
            stack.pop() if name == "POP" else to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(f"the pickle instruction {name} is not allowed")
    raise CheckpointError("the pickle ends without saying so; the file is cut short")


_PLAIN_VALUES, _PLAIN_DEPTH = 100_000, 64
"""What :func:`plain` gives at most; settings of the published runs have some hundred values."""


def plain(value: Any) -> Any:
    """Turn omegaconf records of a checkpoint into plain data; other records become their name.

    Interpolations such as ``${optimizer.lr}`` stay text.
    """
    left = _PLAIN_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _PLAIN_DEPTH:
            raise CheckpointError(
                f"the checkpoint holds settings of more than {_PLAIN_VALUES:,} values or "
                f"{_PLAIN_DEPTH} levels"
            )
        if isinstance(value, _Record) and value.origin.module.startswith("omegaconf"):
            state = value.state if isinstance(value.state, dict) else {}
            return walk(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, Mapping):
            return {
                key if isinstance(key, str) else shown(key): walk(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (_Global, torch.dtype)):
            return str(value)
        if isinstance(value, (list, tuple, set, frozenset)):
            return [walk(item, depth + 1) for item in value]
        return str(value.origin) if isinstance(value, _Record) else value

    return walk(value, 0)

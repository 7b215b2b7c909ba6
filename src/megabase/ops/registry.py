"""Operators of torch: how they are declared, what they accept, and how torch.func takes them.

Every call, through the Python functions, ``torch.ops.megabase`` or a compiler, is checked against
the declaration (:func:`operator`) before any memory is read.

Operations are counted for ``torch.utils.flop_counter.FlopCounterMode`` in torch's convention: a
multiply-add is two, elementwise work is not counted, a real transform of n points is 2.5 n log2 n,
and what a backward pass computes again is not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple, Self, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from megabase.errors import OperatorError

_Function = TypeVar("_Function", bound=Callable[..., Any])
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of operators written in torch; tensors of different ones may be given together."""
_REMEMBERED = 1024  # kinds of arguments that an operator remembers to fit: some kilobytes each
_ORDINARY = (Tensor, torch.nn.Parameter)
"""Tensors that are nothing but their values; a subclass has its own way with operators."""
# Types of arguments and results as torch writes them.
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", int: "int",
    float: "float", bool: "bool", torch.dtype | None: "ScalarType?",
    tuple[Tensor, Tensor]: "(Tensor, Tensor)",
    tuple[Tensor, Tensor, Tensor]: "(Tensor, Tensor, Tensor)",
}  # fmt: skip


def wide_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Give the dtype that sums of such values are formed in: float32 at least."""
    return reduce(torch.promote_types, dtypes, torch.float32)


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: operators choose their dtypes themselves."""
    kind = like.device.type
    # The meta device has none; asking torch which have breaks the graph of its compiler in 2.8.
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(device_type=kind, enabled=False) if on else nullcontext()


class _ExactProducts:
    """Float32 products as they are, where the process lets them round (TF32)."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def exact_products() -> AbstractContextManager[object]:
    """Keep matrix products of float32 from rounding their inputs; compiled graphs do as set."""
    if torch.compiler.is_compiling() or torch.get_float32_matmul_precision() == "highest":
        return nullcontext()
    return _ExactProducts()


def wants_gradient(*tensors: Tensor | Sequence[Any] | float | None) -> bool:
    """Whether autograd will ask for the gradient of a tensor, or of one in a tuple of weights."""
    return torch.is_grad_enabled() and any(
        value.requires_grad
        if isinstance(value, Tensor)
        else isinstance(value, tuple) and wants_gradient(*value)
        for value in tensors
    )


class _Shape(NamedTuple):
    """One shape as it is written: whether further axes may stand in front, and (factor, letter)."""

    leading: bool
    sizes: tuple[tuple[int, str], ...]

    @classmethod
    def read(cls, text: str) -> Self:
        words = text.removeprefix("...").split()
        sizes = [(int(w), "") if w.isdigit() else (int(w[:-1] or 1), w[-1]) for w in words]
        return cls(text.startswith("..."), tuple(sizes))

    def may_be(self, shape: Sequence[int]) -> bool:
        """Whether rank and numbers fit."""
        rank = len(self.sizes)
        return (len(shape) == rank or (self.leading and len(shape) > rank)) and all(
            letter or size == factor
            for size, (factor, letter) in zip(shape[len(shape) - rank :], self.sizes, strict=True)
        )

    def text(self, known: Mapping[str, int]) -> str:
        parts = ["..."] if self.leading else []
        for factor, letter in self.sizes:
            told = not letter or letter in known
            unknown = letter if factor == 1 else f"{factor} {letter}"
            parts.append(str(factor * known.get(letter, 1)) if told else unknown)
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


class Arguments:
    """What a function accepts; ``check`` tells what does not fit.

    Parameters
    ----------
    name
        Its name.
    shapes
        Its arguments in their order, with the shapes of those that are tensors (None for others):
        letters, multiples of them (``3D``) or numbers, separated by spaces; ``...`` stands for any
        number of axes, ``|`` between shapes that are possible, ``,`` between those of the first
        and of the further tensors of a list. A letter is the same size wherever it stands. Tensors
        of bytes, to which dtypes do not apply, begin with ``uint8``.
    rules
        Letters whose sizes follow from others: functions of (sizes by letter, arguments by name).
    least
        Smallest sizes by letter, where that is not 0.
    below
        Whole numbers that must lie from 0 to a letter's size less 1, by argument.
    same
        Tensors that must be of the dtype of another one, by argument.
    alike
        Whether all tensors must be of one dtype, one of `dtypes`.
    """

    def __init__(
        self, name: str, shapes: Mapping[str, str | None], *,
        rules: Mapping[str, Callable[[dict[str, int], dict[str, Any]], int]] | None = None,
        least: Mapping[str, int] | None = None, below: Mapping[str, str] | None = None,
        same: Mapping[str, str] | None = None, alike: bool = False,
        dtypes: tuple[torch.dtype, ...] = FLOATS,
    ) -> None:  # fmt: skip
        self.name, self.names = name, tuple(shapes)
        self.alike, self.dtypes = alike, dtypes
        self.bytes = {key for key, text in shapes.items() if text and "uint8" in text}
        self.rules, self.least = rules or {}, least or {}
        self.below, self.same = below or {}, same or {}
        self.shapes = {
            key: [
                [_Shape.read(one) for one in part.split("|")]
                for part in text.removeprefix("uint8 ").split(",")
            ]
            for key, text in shapes.items()
            if text is not None
        }
        self.fitting: set[Any] = set()

    def check(self, *args: Any) -> None:
        """Check rank, size, dtype, layout and device of every tensor; tell all that do not fit."""
        if torch.compiler.is_compiling():
            return self._check(args)
        # Kinds of arguments that fit are remembered: a call among small tensors is short.
        kind = tuple([_kind(value) for value in args])
        try:
            if kind in self.fitting:
                return None
        except TypeError:  # sizes of a compiler, which have no hash
            return self._check(args)
        self._check(args)
        if len(self.fitting) >= _REMEMBERED:
            self.fitting.clear()
        self.fitting.add(kind)
        return None

    def _check(self, args: tuple[Any, ...]) -> None:
        given = dict(zip(self.names, args, strict=False))
        sizes: dict[str, int] = {}
        problems: list[str] = []
        tensors: list[tuple[str, Tensor]] = []
        for key, value in given.items():
            several = isinstance(value, (list, tuple))  # torch 2.8 compiles no unions
            for i, one in enumerate(value if several else [value]):
                if isinstance(one, Tensor):
                    name, parts = f"{key}[{i}]" if several else key, self.shapes[key]
                    tensors.append((name, one))
                    wanted = parts[min(i, len(parts) - 1)]
                    self._check_shape(name, one, wanted, sizes, given, problems)
                elif isinstance(one, torch.dtype) and one not in FLOATS:
                    problems.append(f"{key} must be a floating-point dtype, found {one}")
        for key, letter in self.below.items():
            if key in given and letter in sizes and not 0 <= given[key] < sizes[letter]:
                problems.append(f"{key} must lie from 0 to {sizes[letter] - 1}, found {given[key]}")
        self._check_kinds(tensors, given, problems)
        if problems:
            raise OperatorError(f"{self.name}: {'; '.join(problems)}")

    def _check_shape(
        self, key: str, tensor: Tensor, possible: list[_Shape], sizes: dict[str, int],
        given: dict[str, Any], problems: list[str],
    ) -> None:  # fmt: skip
        shape = tensor.shape
        fitting = [one for one in possible if one.may_be(shape)]
        wanted = fitting[0] if fitting else None  # nor next() with a default
        fits = wanted is not None
        if wanted is not None:
            ends = shape[len(shape) - len(wanted.sizes) :]
            for size, (factor, letter) in zip(ends, wanted.sizes, strict=True):
                if letter and letter not in sizes:
                    rule = self.rules.get(letter)
                    try:
                        sizes[letter] = size // factor if rule is None else rule(sizes, given)
                    except (IndexError, KeyError, ZeroDivisionError):
                        continue  # what it follows from does not fit, and is told
                    if sizes[letter] < self.least.get(letter, 0):
                        fits = False
                if size != factor * sizes.get(letter, 1):
                    fits = False
        if not fits:
            short = [key for key, count in self.least.items() if sizes.get(key, count) < count]
            text = " or ".join(one.text({} if short else sizes) for one in possible)
            text += "".join(f" with {letter} >= {self.least[letter]}" for letter in short)
            problems.append(f"{key} must have shape {text}, found {tuple(shape)}")

    def _check_kinds(
        self, tensors: list[tuple[str, Tensor]], given: dict[str, Any], problems: list[str]
    ) -> None:
        first, device, dtype = "", None, None
        for key, tensor in tensors:
            if key in self.bytes:
                if tensor.dtype != torch.uint8:
                    problems.append(f"{key} must be of uint8, found {tensor.dtype}")
            elif tensor.dtype not in self.dtypes:
                names = ", ".join(str(one).removeprefix("torch.") for one in self.dtypes)
                problems.append(f"{key} must be of {names}, found {tensor.dtype}")
            elif tensor.layout is not torch.strided:
                problems.append(f"{key} must be a dense tensor, found {tensor.layout}")
            if device is None:
                first, device, dtype = key, tensor.device, tensor.dtype
            if tensor.device != device:
                problems.append(
                    f"{key} must be on the device of {first}, {device}, found {tensor.device}"
                )
        pairs = [(key, t.dtype, first, dtype) for key, t in tensors if key not in self.bytes]
        pairs = pairs if self.alike else []
        for key, other in self.same.items():
            one, like = given.get(key), given.get(other)
            if one is not None and like is not None:
                pairs.append((key, one.dtype, other, like.dtype))
        problems += [
            f"{key} must be of the dtype of {other}, {like}, found {own}"
            for key, own, other, like in pairs
            if own != like
        ]


class Saved(NamedTuple):
    """What the gradient of an operator is computed from, besides those of its results."""

    inputs: list[Any]  # arguments of the operator's function
    needs: list[Any]  # which of them need a gradient, in the same structure
    kept: list[Tensor]  # results that the backward pass reads, and those that are for it only


class _Operator(Arguments):
    """An operator of torch under ``torch.ops.megabase``, called like its function."""

    def __init__(
        self, name: str, function: Callable[..., Any], flops: Callable[..., int], *, kept: int = 0,
        unread: Sequence[str] = (), read: Sequence[int] = (), device_types: str | None = None,
        **checks: Any,
    ) -> None:  # fmt: skip
        self.function, self.kept, self.read = function, kept, read
        hints = get_type_hints(function, include_extras=True)
        results = _SCHEMA_TYPES[hints.pop("return")]
        self._groups: list[tuple[Callable[..., Any] | None, int]] = []
        fields: dict[str, Any] = {}
        for key, hint in hints.items():
            group = hasattr(hint, "_fields")
            own = get_type_hints(hint, include_extras=True) if group else {key: hint}
            self._groups.append((hint if group else None, len(own)))
            fields |= own
        kinds = {
            key: _SCHEMA_TYPES[getattr(hint, "__origin__", hint) if _shape(hint) else hint]
            for key, hint in fields.items()
        }
        super().__init__(name, {key: _shape(hint) for key, hint in fields.items()}, **checks)
        self._unread = {i for i, key in enumerate(fields) if key in unread}
        self._gives_list = results == "Tensor[]"
        self._takes_lists = "Tensor[]" in kinds.values()
        self._is_tensor = [kind.startswith("Tensor") for kind in kinds.values()]
        # A backward pass gets what a checked forward pass saved.
        self._trusts = name.endswith("_backward")
        self.definition = torch.library.custom_op(
            f"megabase::{name}",
            self._checked(function),
            mutates_args=(),
            schema=f"({', '.join(f'{kind} {key}' for key, kind in kinds.items())}) -> {results}",
            device_types=device_types,
        )
        self.register_fake(self._like_the_first)
        packet = getattr(torch.ops.megabase, name)
        self.overload: Any = packet.default
        self.definition.register_vmap(self._one_by_one)
        register_flop_formula(packet)(lambda *args, **_: flops(*self._grouped(args)))
        self.gradients: Callable[..., Sequence[Tensor | None]] = _no_second_derivative
        self.definition.register_autograd(self.backward, setup_context=self.save)

    def register_fake(self, function: _Function) -> _Function:
        """Register what makes results of the right shape and dtype; a decorator.

        Without it there is one result, like the first argument.
        """
        self.definition.register_fake(self._checked(function))
        return function

    @staticmethod
    def _like_the_first(x: Tensor, *_: Any) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    def register_gradients(self, function: Callable[..., Sequence[Tensor | None]]) -> None:
        """Register ``function(saved, *gradients of the results)``; a decorator.

        It gives one gradient for each tensor among the arguments, in their order, of any dtype;
        what it gives for tensors that need none, or are None, is not used.
        """
        self.gradients = function

    def _checked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give a function of the arguments of the schema, which are checked first."""

        def checked(*flat: Any) -> Any:
            self.check(*flat)
            return self._compute(function, flat)

        return checked

    def _compute(self, function: Callable[..., Any], flat: Sequence[Any]) -> Any:
        with without_autocast(next(value for value in flat if isinstance(value, Tensor))):
            return function(*self._grouped(flat))

    def _grouped(self, flat: Sequence[Any]) -> list[Any]:
        """Give the arguments of the function from those of the schema."""
        values = iter(flat)
        return [
            next(values) if group is None else group(*islice(values, count))
            for group, count in self._groups
        ]

    def save(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """Save what the gradient needs: inputs, and results that it reads."""
        if self._unread:
            inputs = [None if i in self._unread else one for i, one in enumerate(inputs)]
        ctx.lengths = _lengths(inputs) if self._takes_lists else None
        leaves = _leaves(inputs) if self._takes_lists else inputs
        ctx.others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        kept = output[len(output) - self.kept :] if self.kept else ()
        if self.gradients is not _no_second_derivative:
            read = [output[i] for i in self.read]
            ctx.save_for_backward(*[t for t in leaves if isinstance(t, Tensor)], *read, *kept)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)

    def backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Give the gradients of all arguments of the schema."""
        if self.gradients is _no_second_derivative:
            _no_second_derivative()
        needs: Sequence[Any] = ctx.needs_input_grad
        grads = grads[: len(grads) - self.kept]
        if all(grad is None for grad in grads):
            return pytree.tree_map(lambda _: None, tuple(needs))
        saved = iter(ctx.saved_tensors)
        leaves = [next(saved) if other is None else other[0] for other in ctx.others]
        inputs = _nested(leaves, ctx.lengths)
        given = Saved(self._grouped(inputs), self._grouped(needs), list(saved))
        found = iter(self.gradients(given, *grads))
        results: list[Any] = []
        for value, need, is_tensor in zip(inputs, needs, self._is_tensor, strict=True):
            if isinstance(value, list):
                own: list[Any] = [(next(found), one) for one in value]
                results.append([None if g is None else g.to(one.dtype) for g, one in own])
            else:
                grad = next(found) if is_tensor else None
                grad = grad if need else None  # without the value autograd sees to its dtype
                results.append(grad if grad is None or value is None else grad.to(value.dtype))
        return tuple(results)

    def __call__(self, *args: Any, checked: bool = False) -> Any:
        """Run the operator on the arguments of its function; with `checked` these are known to fit.

        Nothing but a compiler, a mode, a transformation or a tensor of another kind has to see the
        operator; elsewhere its dispatch (0.1 ms of a forward and backward pass) is left out.
        """
        flat = _leaves(args, tuple)
        if torch.compiler.is_compiling():
            return self.overload(*flat)
        leaves = _leaves(flat) if self._takes_lists else flat
        if torch._C._are_functorch_transforms_active():
            # torch's own class for operators with gradients does not take the transformations.
            return self._differentiable(_Transformed, flat, leaves)
        wanted = False
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                if type(leaf) not in _ORDINARY or leaf.is_meta:
                    return self.overload(*flat)
                wanted = wanted or leaf.requires_grad
        if is_in_torch_dispatch_mode():
            return self.overload(*flat)
        if not checked and not self._trusts:
            self.check(*flat)
        if wanted and torch.is_grad_enabled():
            return self._differentiable(_Direct, flat, leaves)
        return self._compute(self.function, flat)

    def _differentiable(
        self, kind: type[torch.autograd.Function], flat: list[Any], leaves: list[Any]
    ) -> Any:
        call = _Call(self, _lengths(flat) if self._takes_lists else None)
        found = kind.apply(call, *leaves)
        return list(found) if self._gives_list else found

    def _one_by_one(self, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Run the members of a vmapped axis one after another, and stack what they give."""
        flat, spec = pytree.tree_flatten(list(args))
        dims = pytree.tree_leaves(in_dims)
        found = []
        for i in range(info.batch_size):
            one = [x if d is None else x.select(d, i) for x, d in zip(flat, dims, strict=True)]
            found.append(self(*pytree.tree_unflatten(one, spec)))
        stacked = pytree.tree_map(lambda *each: torch.stack(each), *found)
        return stacked, pytree.tree_map(lambda _: 0, stacked)


def operator(
    name: str, flops: Callable[..., int], **options: Any
) -> Callable[[Callable[..., Any]], _Operator]:
    """Declare an operator by the function that computes it: a decorator.

    The types of its arguments and results make the schema; a named tuple stands for its fields, and
    the shape of a tensor is its annotation. `flops` counts operations from its arguments, with
    shapes in the place of tensors. Options are ``kept``, how many of its results (the last ones)
    are for the backward pass only, ``read``, which other results that pass reads, ``unread``, which
    arguments it does not (of operators without lists), ``device_types`` that it runs on, and those
    of :class:`Arguments`.
    """
    return lambda function: _Operator(name, function, flops, **options)


def _shape(hint: Any) -> str | None:
    """Give the shape that annotates a tensor."""
    return getattr(hint, "__metadata__", (None,))[0]


def _kind(value: Any) -> Any:
    """Give what a check looks at."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.layout
    if isinstance(value, (list, tuple)):
        return tuple([_kind(one) for one in value])
    return value


def _no_second_derivative(*_: Any) -> Any:
    raise OperatorError(
        "the operators of megabase have no second derivative; "
        "use the definitions for it: megabase.ops.backend.override('reference')"
    )


class _Call(NamedTuple):
    operator: _Operator
    lengths: list[int | None] | None  # how its flat arguments are nested


def _leaves(values: Sequence[Any], kind: type = list) -> list[Any]:
    """Flatten arguments, some of which may be lists."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, kind):
            found.extend(value)
        else:
            found.append(value)
    return found


def _lengths(values: Sequence[Any]) -> list[int | None]:
    """Give what :func:`_nested` needs to undo :func:`_leaves`."""
    return [len(value) if isinstance(value, list) else None for value in values]


def _nested(leaves: Sequence[Any], lengths: list[int | None] | None) -> Sequence[Any]:
    """Undo :func:`_leaves`; without lengths there are no lists."""
    if lengths is None:
        return leaves
    rest = iter(leaves)
    return [next(rest) if n is None else [next(rest) for _ in range(n)] for n in lengths]


class _Direct(torch.autograd.Function):
    """Any operator, as autograd takes it: the arguments are checked, nothing else has to see it."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *leaves: Any) -> Any:
        flat = _nested(leaves, call.lengths)
        found = call.operator._compute(call.operator.function, flat)
        found = found if isinstance(found, Tensor) else tuple(found)
        ctx.call = call
        call.operator.save(ctx, flat, found)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call, needs = ctx.call, ctx.needs_input_grad
        ctx.needs_input_grad = _nested(needs[1:], call.lengths)
        try:
            found = call.operator.backward(ctx, *grads)
            return (None, *(found if call.lengths is None else _leaves(found)))
        finally:
            ctx.needs_input_grad = needs


class _Transformed(_Direct):
    """Any operator, as the transformations of ``torch.func`` take it."""

    @staticmethod
    def forward(call: _Call, *leaves: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = call.operator.overload(*_nested(leaves, call.lengths))
        return found if isinstance(found, Tensor) else tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, *leaves = inputs
        ctx.call = call
        call.operator.save(ctx, _nested(leaves, call.lengths), output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
        call, *leaves = given
        found, dims = call.operator._one_by_one(
            info, _nested(in_dims[1:], call.lengths), *_nested(leaves, call.lengths)
        )
        if isinstance(found, Tensor):
            return found, 0
        return tuple(found), tuple(dims)

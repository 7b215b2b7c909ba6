"""Operators of torch: how they are registered, what they accept, and how torch.func takes them.

An operator is declared once, by its schema and the shapes of its tensors. Every call, through the
Python functions, through ``torch.ops.megabase`` or from a compiler, is checked against these before
any memory is read. Gradients and ``vmap`` are registered in the same place, so that the
transformations of ``torch.func`` (grad, vjp, jacrev, vmap) and those of autograd run one formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from megabase.errors import OperatorError
from megabase.ops import flops

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of operators written in torch; tensors of different ones may be given together."""

REMEMBERED = 1024
"""Kinds of arguments that an operator remembers to fit: some kilobytes each."""

SINGLE_OR_DOUBLE = (torch.float32, torch.float64)
"""Dtypes of operators that exist in C++ only; all tensors are of the same one."""


class _Shape(NamedTuple):
    """One shape as it is written: whether further axes may stand in front, and (factor, letter)."""

    leading: bool
    sizes: tuple[tuple[int, str], ...]

    @classmethod
    def read(cls, text: str) -> _Shape:
        words = text.split()
        sizes = [
            (int(w), "") if w.isdigit() else (int(w[:-1] or 1), w[-1]) for w in words if w != "..."
        ]
        return cls("..." in words, tuple(sizes))

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
            if not letter or letter in known:
                parts.append(str(factor * known.get(letter, 1)))
            else:
                parts.append(letter if factor == 1 else f"{factor} {letter}")
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


class Arguments:
    """What a function accepts.

    Parameters
    ----------
    name
        Its name.
    names
        Its arguments in their order.
    shapes
        Shape of each tensor by argument: letters, multiples of them (``3D``) or numbers, separated
        by spaces; ``...`` stands for any number of axes, ``|`` between shapes that are possible,
        ``,`` between those of the first and of the further tensors of a list. A letter is the same
        size wherever it stands.
    rules
        Letters whose sizes follow from others: functions of (sizes by letter, arguments by name).
    least
        Smallest sizes by letter, where that is not 0.
    below
        Whole numbers that must lie from 0 to a letter's size less 1, by argument.
    same
        Tensors that must be of the dtype of another one, by argument.
    alike
        Whether all tensors must be of one dtype.
    dtypes
        Dtypes that are accepted.
    bytes
        Tensors of bytes, to which dtypes do not apply.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        shapes: Mapping[str, str],
        *,
        rules: Mapping[str, Callable[[dict[str, int], dict[str, Any]], int]] | None = None,
        least: Mapping[str, int] | None = None,
        below: Mapping[str, str] | None = None,
        same: Mapping[str, str] | None = None,
        alike: bool = False,
        dtypes: tuple[torch.dtype, ...] = FLOATS,
        bytes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.names, self.bytes = name, tuple(names), bytes
        self.alike, self.dtypes = alike, dtypes
        self.rules, self.least = rules or {}, least or {}
        self.below, self.same = below or {}, same or {}
        self.shapes = {
            key: [[_Shape.read(one) for one in part.split("|")] for part in text.split(",")]
            for key, text in shapes.items()
        }
        self.fitting: set[Any] = set()

    def check(self, *args: Any) -> None:
        """Check rank, size, dtype, layout and device of every tensor.

        Raises
        ------
        OperatorError
            With everything that does not fit.
        """
        if torch.compiler.is_compiling():
            self._check(args)
            return
        # Kinds of arguments that fit are remembered: a call among small tensors is short.
        kind = tuple([_kind(value) for value in args])
        try:
            if kind in self.fitting:
                return
        except TypeError:  # sizes of a compiler, which have no hash
            self._check(args)
            return
        self._check(args)
        if len(self.fitting) >= REMEMBERED:
            self.fitting.clear()
        self.fitting.add(kind)

    def _check(self, args: tuple[Any, ...]) -> None:
        given = dict(zip(self.names, args, strict=False))
        sizes: dict[str, int] = {}
        problems: list[str] = []
        tensors: list[tuple[str, Tensor]] = []
        for key, value in given.items():
            if isinstance(value, Tensor):
                tensors.append((key, value))
                self._check_shape(key, value, self.shapes[key][0], sizes, given, problems)
            elif isinstance(value, list | tuple):
                parts = self.shapes[key]
                for i, one in enumerate(value):
                    tensors.append((f"{key}[{i}]", one))
                    wanted = parts[min(i, len(parts) - 1)]
                    self._check_shape(f"{key}[{i}]", one, wanted, sizes, given, problems)
            elif isinstance(value, torch.dtype) and value not in FLOATS:
                problems.append(f"{key} must be a floating-point dtype, found {value}")
        for key, letter in self.below.items():
            if key in given and letter in sizes and not 0 <= given[key] < sizes[letter]:
                problems.append(f"{key} must lie from 0 to {sizes[letter] - 1}, found {given[key]}")
        self._check_kinds(tensors, given, problems)
        if problems:
            raise OperatorError(f"{self.name}: {'; '.join(problems)}")

    def _check_shape(
        self,
        key: str,
        tensor: Tensor,
        possible: list[_Shape],
        sizes: dict[str, int],
        given: dict[str, Any],
        problems: list[str],
    ) -> None:
        shape = tensor.shape
        wanted = next((one for one in possible if one.may_be(shape)), None)
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
            text = " or ".join(one.text(sizes) for one in possible)
            least = [
                f" with {letter} >= {count}"
                for letter, count in self.least.items()
                if sizes.get(letter, count) < count
            ]
            if least:
                text = " or ".join(one.text({}) for one in possible)
            problems.append(f"{key} must have shape {text}{''.join(least)}, found {tuple(shape)}")

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
            if self.alike and tensor.dtype != dtype and key not in self.bytes:
                problems.append(
                    f"{key} must be of the dtype of {first}, {dtype}, found {tensor.dtype}"
                )
        for key, other in self.same.items():
            one, like = given.get(key), given.get(other)
            if one is not None and like is not None and one.dtype != like.dtype:
                problems.append(
                    f"{key} must be of the dtype of {other}, {like.dtype}, found {one.dtype}"
                )


class Operator(Arguments):
    """An operator of torch under ``torch.ops.megabase``, called like a function.

    Parameters
    ----------
    name
        Name behind ``megabase::``.
    schema
        Arguments and results, as torch writes them.
    shapes, checks
        What it accepts; see :class:`Arguments`.
    device_types
        Devices that it runs on; all when None.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        shapes: Mapping[str, str],
        *,
        device_types: str | None = None,
        **checks: Any,
    ) -> None:
        self.schema, self.device_types = schema, device_types
        parsed = torch._C.parse_schema(f"megabase::{name}{schema}")
        super().__init__(name, [argument.name for argument in parsed.arguments], shapes, **checks)

    def implementation(self, function: Callable[..., Any]) -> Operator:
        """Register what computes the operator; a decorator."""

        def checked(*args: Any) -> Any:
            self.check(*args)
            return function(*args)

        self.definition = torch.library.custom_op(
            f"megabase::{self.name}",
            checked,
            mutates_args=(),
            schema=self.schema,
            device_types=self.device_types,
        )
        self.overload: Any = getattr(torch.ops.megabase, self.name).default
        self.definition.register_vmap(self._one_by_one)
        flops.register(self.name, getattr(torch.ops.megabase, self.name))
        self.register_gradients(_no_second_derivative, _save_nothing)
        return self

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register what makes results of the right shape and dtype; a decorator."""

        def checked(*args: Any) -> Any:
            self.check(*args)
            return function(*args)

        self.definition.register_fake(checked)
        return function

    def register_gradients(self, gradients: Callable[..., Any], save: Callable[..., None]) -> None:
        """Register the gradient: ``gradients(ctx, *grads)`` after ``save(ctx, inputs, output)``."""
        self.gradients, self.save = gradients, save
        self.definition.register_autograd(gradients, setup_context=save)

    def __call__(self, *args: Any) -> Any:
        """Run the operator."""
        # torch's own class for operators with gradients does not take the transformations.
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            flat, spec = pytree.tree_flatten(args)
            call = _Call(self, spec)
            return call.results(_Transformed.apply(call, *flat))
        return self.overload(*args)

    def _one_by_one(self, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        """Run the members of a vmapped axis one after another, and stack what they give."""
        flat, spec = pytree.tree_flatten(args)
        dims = pytree.tree_leaves(in_dims)
        found = []
        for i in range(info.batch_size):
            one = [x if d is None else x.select(d, i) for x, d in zip(flat, dims, strict=True)]
            found.append(self(*pytree.tree_unflatten(one, spec)))
        stacked = pytree.tree_map(lambda *each: torch.stack(each), *found)
        return stacked, pytree.tree_map(lambda _: 0, stacked)


def _kind(value: Any) -> Any:
    """Give what a check looks at."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.layout
    if isinstance(value, list | tuple):
        return tuple([_kind(one) for one in value])
    return value


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise OperatorError(
        "the operators of megabase have no second derivative; "
        "use the definitions for it: megabase.ops.backend.override('reference')"
    )


class _Call:
    """An operator with the structure of its arguments and results, which a function has flat."""

    def __init__(self, operator: Operator, spec: pytree.TreeSpec) -> None:
        self.operator, self.spec = operator, spec
        self.out: pytree.TreeSpec | None = None

    def arguments(self, flat: Sequence[Any]) -> Any:
        return pytree.tree_unflatten(list(flat), self.spec)

    def flat(self, found: Any) -> Any:
        leaves, self.out = pytree.tree_flatten(found)
        return found if isinstance(found, Tensor) else tuple(leaves)

    def results(self, flat: Any) -> Any:
        assert self.out is not None
        return pytree.tree_unflatten([flat] if isinstance(flat, Tensor) else flat, self.out)


class _Transformed(torch.autograd.Function):
    """Any operator, as the transformations of ``torch.func`` take it."""

    @staticmethod
    def forward(call: _Call, *flat: Any) -> Any:
        return call.flat(call.operator.overload(*call.arguments(flat)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, *flat = inputs
        ctx.call = call
        call.operator.save(ctx, call.arguments(flat), output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        needs = ctx.needs_input_grad
        ctx.needs_input_grad = ctx.call.arguments(needs[1:])
        try:
            return (None, *pytree.tree_leaves(ctx.call.operator.gradients(ctx, *grads)))
        finally:
            ctx.needs_input_grad = needs

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> Any:
        call, *flat = given
        found, dims = call.operator._one_by_one(
            info, call.arguments(in_dims[1:]), *call.arguments(flat)
        )
        return call.flat(found), 0 if isinstance(found, Tensor) else tuple(pytree.tree_leaves(dims))

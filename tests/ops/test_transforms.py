"""The transformations of torch.func give on every backend what a loop with autograd gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operator_cases import FUNCTIONS, SHAPES, tensors
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend, kernels

NAMES = tuple(FUNCTIONS)
NO_GRADIENT = {"t", "rate"}  # of the implicit filter


@pytest.fixture(params=["kernels", "fast", "reference"], autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "kernels" and kernels.package() is None:
        pytest.skip(str(kernels.why_missing()))
    with backend.override(request.param):
        yield


def _loss(name: str, given: list[Any]) -> Tensor:
    return FUNCTIONS[name](*given).square().sum()


def _wanted(name: str) -> tuple[int, ...]:
    return tuple(i for i, key in enumerate(SHAPES[name]) if key not in NO_GRADIENT)


def _by_autograd(name: str, given: list[Tensor], at: tuple[int, ...]) -> tuple[Tensor, ...]:
    given = [t.detach().clone().requires_grad_(i in at) for i, t in enumerate(given)]
    return torch.autograd.grad(_loss(name, given), [given[i] for i in at])


def _several(given: list[Tensor], count: int = 3) -> list[Tensor]:
    return [torch.stack([t * (1 + 0.1 * i) for i in range(count)]) for t in given]


def _close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_grad_is_that_of_autograd(name: str) -> None:
    given, at = tensors(name), _wanted(name)
    found = torch.func.grad(lambda *t: _loss(name, list(t)), argnums=at)(*given)
    _close(found, _by_autograd(name, given, at))
    assert all(torch.equal(copy.deepcopy(t), t) for t in given)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_any_input_is_a_loop(name: str) -> None:
    given = tensors(name)
    many = _several(given)
    for at in (*range(len(given)), None):
        dims = tuple(0 if at in (i, None) else None for i in range(len(given)))
        mixed = [m if d == 0 else t for m, t, d in zip(many, given, dims, strict=True)]
        found = torch.vmap(FUNCTIONS[name], in_dims=dims)(*mixed)
        loop = [
            FUNCTIONS[name](*(t[i] if d == 0 else t for t, d in zip(mixed, dims, strict=True)))
            for i in range(3)
        ]
        _close(found, torch.stack(loop))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_each_sample(name: str) -> None:
    given, at = tensors(name), _wanted(name)
    many = [*_several(given[:1]), *given[1:]]
    each = torch.func.grad(lambda *t: _loss(name, list(t)), argnums=at)
    found = torch.vmap(each, in_dims=(0, *(None for _ in given[1:])))(*many)
    loop = [_by_autograd(name, [many[0][i], *given[1:]], at) for i in range(3)]
    _close(found, tuple(torch.stack(grads) for grads in zip(*loop, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_vjp_and_jacrev(name: str) -> None:
    given = tensors(name)
    last = len(given) - 1 if name != "implicit_filter" else len(given) - 2  # rate has no gradient

    def of_last(one: Tensor) -> Tensor:
        return FUNCTIONS[name](*given[:last], one, *given[last + 1 :])

    y, pull = torch.func.vjp(of_last, given[last])
    _close(y, FUNCTIONS[name](*given))
    leaf = given[last].clone().requires_grad_()
    rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in of_last(leaf).flatten()]
    jacobian = torch.stack(rows).view(*y.shape, *leaf.shape)
    _close(torch.func.jacrev(of_last)(given[last]), jacobian)
    _close(pull(torch.ones_like(y))[0], torch.stack(rows).sum(0))


@pytest.mark.parametrize("name", NAMES)
def test_vmapped_tensors_keep_gradients_of_autograd(name: str) -> None:
    given = tensors(name)
    leaf = given[1].clone().requires_grad_()
    many = _several(given[:1])[0]

    def run(x: Tensor) -> Tensor:
        return FUNCTIONS[name](x, leaf, *given[2:])

    if name == "implicit_filter":
        return  # its second tensor has no gradient
    found = torch.autograd.grad(torch.vmap(run)(many).square().sum(), leaf)
    loop = torch.autograd.grad(torch.stack([run(x) for x in many]).square().sum(), leaf)
    _close(found, loop)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused_or_right(name: str) -> None:
    given = tensors(name)

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: _loss(name, [y, *given[1:]]))(x).sum()

    if backend.active() == "reference" or (
        backend.active() == "fast" and name == "causal_conv"  # plain torch, no own gradient
    ):
        assert torch.func.grad(slope)(given[0]).isfinite().all()
        return
    with pytest.raises(OperatorError, match="no second derivative"):
        torch.func.grad(slope)(given[0])
    leaf = given[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(_loss(name, [leaf, *given[1:]]), leaf, create_graph=True)
    with pytest.raises((OperatorError, RuntimeError), match=r"derivative|once_differ"):
        first.sum().backward()

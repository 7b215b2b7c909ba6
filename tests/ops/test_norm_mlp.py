"""LayerNorm and MLP by pieces equal the plain modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import same_with_gradients
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import kernels, products
from megabase.ops.norm_mlp import (
    MlpWeights,
    _gelu_with_derivative,
    _norm_mlp_reference,
    norm_mlp,
)
from megabase.ops.products import add_product, matmul

pytestmark = pytest.mark.usefixtures("path")


def _inputs(*shape: int, width: int = 6, inner: int = 10) -> list[Any]:
    torch.manual_seed(sum(shape))
    shapes = (
        (*shape, width), (width,), (width,), None, (inner, width), (inner,), (width, inner),
        (width,),
    )  # fmt: skip
    return [
        1e-5 if s is None else torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in shapes
    ]


def _apply(x: Tensor, *weights: Any, product: torch.dtype | None = None) -> Tensor:
    return norm_mlp(x, MlpWeights(*weights), product)


def _definition(x: Tensor, *weights: Any) -> Tensor:
    return _norm_mlp_reference(x, MlpWeights(*weights))


def _tensors(inputs: list[Any]) -> list[Tensor]:
    return [value for value in inputs if isinstance(value, Tensor)]


@pytest.mark.parametrize("positions", [1, 7, 1024])
@pytest.mark.parametrize("shape", [(1,), (3, 13), (2, 2, 5)])
@pytest.mark.parametrize("normed", [True, False])
def test_equals_the_reference(
    shape: tuple[int, ...], positions: int, normed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "PIECE_POSITIONS", positions)
    inputs = _inputs(*shape)
    if not normed:
        inputs[1] = inputs[2] = None
    want, got = _definition(*inputs), _apply(*inputs)
    same_with_gradients(got, want, _tensors(inputs))


@pytest.mark.parametrize(("width", "inner"), [(2, 1), (33, 70), (70, 200)])
@pytest.mark.parametrize("rows", [191, 193, 500])
def test_rows_and_widths_around_a_block(rows: int, width: int, inner: int) -> None:
    inputs = _inputs(rows, width=width, inner=inner)
    want, got = _definition(*inputs), _apply(*inputs)
    same_with_gradients(got, want, _tensors(inputs))


@pytest.mark.parametrize("product", [None, torch.bfloat16])
def test_what_is_kept_is_what_is_computed_again(
    product: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, *weights = (
        t.detach().float().requires_grad_() if isinstance(t, Tensor) else t
        for t in _inputs(300, width=70, inner=202)
    )
    found = []
    for limit in (kernels.KEEP_BYTES, 0):
        monkeypatch.setattr(kernels, "KEEP_BYTES", limit)
        y = norm_mlp(x, MlpWeights(*weights), product)
        found.append((y, *torch.autograd.grad(y.square().sum(), _tensors([x, *weights]))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(_apply, _inputs(2, 3))


def test_frozen_weights_leave_the_input_gradient() -> None:
    inputs = _inputs(4, 5)
    weight = torch.randn_like(inputs[0])
    (want,) = torch.autograd.grad(_apply(*inputs), inputs[:1], weight)
    frozen = [inputs[0], *(v.detach() if isinstance(v, Tensor) else v for v in inputs[1:])]
    torch.testing.assert_close(torch.autograd.grad(_apply(*frozen), frozen[:1], weight)[0], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gelu_over_its_range(dtype: torch.dtype) -> None:
    a = torch.linspace(-30, 30, 5001, dtype=dtype)
    exact = a.double().clone().requires_grad_()
    want = F.gelu(exact, approximate="tanh")
    (slope,) = torch.autograd.grad(want.sum(), exact)
    tolerance = {"atol": 1e-14, "rtol": 1e-12} if dtype == torch.float64 else {
        "atol": 3e-7, "rtol": 3e-6}  # fmt: skip
    value, derivative = _gelu_with_derivative(a.clone())
    torch.testing.assert_close(value.double(), want.detach(), **tolerance)
    torch.testing.assert_close(derivative.double(), slope, **tolerance)


@pytest.mark.parametrize(("positions", "width", "inner"), [(50, 16, 64), (193, 70, 200)])
def test_half_products(positions: int, width: int, inner: int) -> None:
    inputs = _inputs(3, positions, width=width, inner=inner)
    with torch.no_grad():
        for i in (4, 6):
            inputs[i] *= inputs[i].shape[1] ** -0.5
    want = _definition(*inputs)
    single = [v.detach().float().requires_grad_() if isinstance(v, Tensor) else v for v in inputs]
    half = _apply(*single, product=torch.bfloat16)
    assert half.dtype == torch.float32
    assert (half.double() - want).abs().max() < 2e-2 * want.abs().max()
    weight = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(half, _tensors(single), weight.float()),
        torch.autograd.grad(want, _tensors(inputs), weight),
        strict=True,
    ):
        assert (a.double() - b).abs().max() < 3e-2 * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "left", "right", "both", "gaps"])
def test_products_of_every_layout(layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(200, 96, dtype=dtype), torch.randn(96, 130, dtype=dtype)
    if layout in ("left", "both"):
        a = a.t().contiguous().t()
    if layout in ("right", "both"):
        b = b.t().contiguous().t()
    if layout == "gaps":
        a = torch.randn(96, 1000, dtype=dtype)[:, 100:300].t()
        b = torch.randn(96, 500, dtype=dtype)[:, 7:137]
    want = a.double() @ b.double()
    rtol = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    atol = rtol * want.abs().max().item()
    torch.testing.assert_close(matmul(a, b).double(), want, atol=atol, rtol=0)
    for bias in (torch.randn(130, dtype=dtype), torch.randn(200, 1, dtype=dtype)):
        torch.testing.assert_close(matmul(a, b, bias).double(), want + bias, atol=2 * atol, rtol=0)
    total = torch.zeros(200, 130, dtype=torch.promote_types(dtype, torch.float32))
    add_product(total, a, b)
    add_product(total, torch.stack([a, a]), torch.stack([b, b]))
    torch.testing.assert_close(total.double(), 3 * want, atol=3 * atol, rtol=0)

"""The filter by pieces of lags equals the plain network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from operator_cases import same_with_gradients
from torch import Tensor

from megabase.layers.hyena import FilterOptions, HyenaFilter
from megabase.ops import backend, kernels, products
from megabase.ops.implicit_filter import (
    FilterWeights,
    _implicit_filter_reference,
    implicit_filter,
)

pytestmark = pytest.mark.usefixtures("path")


def _inputs(
    lags: int, hidden: int = 3, width: int = 4, channels: int = 6, features: int = 5
) -> list[Any]:
    torch.manual_seed(lags)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    widths = [features, *([width] * hidden)]
    return [
        draw(lags, features), torch.linspace(0, 1, lags, dtype=torch.float64), draw(1, width),
        [draw(b, a) for a, b in pairwise(widths)],
        [draw(b) for b in widths[1:]], draw(channels, width),
        torch.rand(channels, dtype=torch.float64), 0.05,
    ]  # fmt: skip


def _taps(z: Tensor, t: Tensor, *weights: Any) -> Tensor:
    return implicit_filter(z, t, FilterWeights(*weights))


def _definition(z: Tensor, t: Tensor, *weights: Any) -> Tensor:
    return _implicit_filter_reference(z, t, FilterWeights(*weights))


def _leaves(inputs: list[Any]) -> list[Tensor]:
    return [inputs[0], inputs[2], *inputs[3], *inputs[4], inputs[5]]


@pytest.mark.parametrize("positions", [1, 7, 1024])
@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("lags", [1, 40])
def test_equals_the_reference(
    lags: int, windowed: bool, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "PIECE_POSITIONS", positions)
    inputs = _inputs(lags)
    if not windowed:
        inputs[6] = None
    want, got = _definition(*inputs), _taps(*inputs)
    same_with_gradients(got, want, _leaves(inputs))


@pytest.mark.parametrize(("width", "channels", "features"), [(1, 1, 1), (33, 70, 3), (64, 130, 40)])
@pytest.mark.parametrize("lags", [191, 193, 500])
def test_lags_and_widths_around_a_block(
    lags: int, width: int, channels: int, features: int
) -> None:
    inputs = _inputs(lags, width=width, channels=channels, features=features)
    want, got = _definition(*inputs), _taps(*inputs)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, _leaves(inputs), weight),
        torch.autograd.grad(want, _leaves(inputs), weight),
        strict=True,
    ):
        # Sines of large angles: rounding of an angle is a rounding of the phase.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9 * b.abs().max().item())


def test_gradcheck() -> None:
    inputs = _inputs(6, hidden=2)

    def run(*leaves: Tensor) -> Tensor:
        z, freq, w1, w2, b1, b2, last = leaves
        return _taps(z, inputs[1], freq, [w1, w2], [b1, b2], last, inputs[6], inputs[7])

    assert torch.autograd.gradcheck(run, _leaves(inputs))


@pytest.mark.parametrize("sides", ["one", "both"])
def test_the_module_gives_the_same_on_both_paths(sides: Any) -> None:
    torch.manual_seed(0)
    module = HyenaFilter(6, 50, FilterOptions(train_positions=True)).double()
    fast = module(37, sides)[0]
    ours = torch.autograd.grad(fast.square().sum(), list(module.parameters()), allow_unused=True)
    with backend.override("reference"):
        plain = module(37, sides)[0]
    torch.testing.assert_close(fast, plain)
    theirs = torch.autograd.grad(plain.square().sum(), list(module.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reach", [1.0, 100.0, 1e5])
def test_sine_of_the_kernels(path: str, reach: float, dtype: torch.dtype, cosine: bool) -> None:
    if path in ("plain", "fast"):
        pytest.skip("torch's own sine")
    x = (torch.rand(1003, dtype=dtype) - 0.5) * reach
    x[:3] = torch.tensor([0.0, float("inf"), float("nan")], dtype=dtype)
    y = torch.full_like(x, -9.0)
    kernels.package().native.sine(
        dtype == torch.float64, kernels.array(x), kernels.array(y), cosine
    )
    want = (torch.cos if cosine else torch.sin)(x.double())
    tolerance = 2e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(y.double(), want, rtol=0, atol=tolerance, equal_nan=True)

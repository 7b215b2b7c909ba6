"""The shifted adds equal the grouped convolution of torch, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops import short_conv as module
from megabase.ops.short_conv import _short_conv_reference, short_conv


def _inputs(length: int, taps: int) -> list[Tensor]:
    torch.manual_seed(10 * length + taps)
    shapes = ((3, 6, length), (6, taps), (6,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("centered", [False, True], ids=["causal", "centered"])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 1000, 1024])
def test_equals_the_reference(length: int, taps: int, centered: bool) -> None:
    inputs = _inputs(length, taps)
    weight = torch.randn(3, 6, length, dtype=torch.float64)
    want = _short_conv_reference(*inputs, centered=centered)
    got = short_conv(*inputs, centered=centered)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    ours = torch.autograd.grad((got * weight).sum(), inputs)
    theirs = torch.autograd.grad((want * weight).sum(), inputs)
    for name, a, b in zip(("dx", "dw", "db"), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_gradcheck(length: int) -> None:
    x, w, b = _inputs(length, 3)
    assert torch.autograd.gradcheck(short_conv, (x, w, b))
    assert torch.autograd.gradcheck(short_conv, (x, w))


def test_formula() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    w, b = torch.tensor([[100.0, 10.0, 1.0]]), torch.tensor([0.5])
    causal = torch.tensor([[[1.5, 12.5, 123.5]]])
    torch.testing.assert_close(short_conv(x, w, b), causal)
    centered = torch.tensor([[[12.5, 123.5, 230.5]]])
    torch.testing.assert_close(short_conv(x, w, b, centered=True), centered)


def test_blocks_do_not_change_values(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(50, 3)
    whole = short_conv(*inputs)
    monkeypatch.setattr(module, "_BLOCK_SAMPLES", 1)
    assert torch.equal(short_conv(*inputs), whole)


def test_half_inputs_give_float32_gradients_of_the_taps() -> None:
    x, w, b = (t.detach().float().requires_grad_() for t in _inputs(1000, 3))
    y = short_conv(x.bfloat16(), w, b)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
    torch.testing.assert_close(
        w.grad[:, 2], x.detach().bfloat16().float().sum((0, 2)), atol=1e-2, rtol=1e-2
    )


def test_reference_can_be_asked_for() -> None:
    x, w, b = (t.detach() for t in _inputs(20, 3))
    with backend.override("reference"):
        torch.testing.assert_close(short_conv(x, w, b), _short_conv_reference(x, w, b))


@pytest.mark.parametrize(
    ("x", "w", "b"), [((2, 3, 8), (4, 3), (4,)), ((2, 3, 8), (3, 3), (2,)), ((3, 8), (3, 3), (3,))]
)
def test_wrong_shapes_are_named(x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(OperatorError, match="must have shape"):
        short_conv(torch.zeros(x), torch.zeros(w), torch.zeros(b))

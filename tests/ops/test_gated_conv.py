"""The blocked gated convolution equals the composition of the references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops.gated_conv import (
    gated_conv,
    gated_conv_blocked,
    gated_conv_reference,
)
from megabase.ops.long_conv import fft, long_conv
from megabase.ops.short_conv import short_conv

NAMES = ("dp", "dw", "db", "dk", "dskip")


def _inputs(length: int, two_sided: bool = False, taps: int = 3, batch: int = 3) -> list[Tensor]:
    torch.manual_seed(length)
    lags = 2 * length - 1 if two_sided else length
    shapes = ((batch, 15, length), (15, taps), (15,), (5, lags), (5,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(
    ("centred", "two_sided"),
    [(False, False), (False, True), (True, True)],
    ids=["causal", "published", "two-sided"],
)
@pytest.mark.parametrize("length", [1, 2, 63, 1000, 1024])
def test_equals_the_reference(length: int, centred: bool, two_sided: bool) -> None:
    inputs = _inputs(length, two_sided)
    weight = torch.randn(3, 5, length, dtype=torch.float64)
    want = gated_conv_reference(*inputs, centred=centred, two_sided=two_sided)
    got = gated_conv_blocked(*inputs, centred=centred, two_sided=two_sided)
    scale = want.abs().max().item()
    torch.testing.assert_close(got, want, atol=1e-13 * scale * length, rtol=1e-10)
    ours = torch.autograd.grad((got * weight).sum(), inputs)
    theirs = torch.autograd.grad((want * weight).sum(), inputs)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        atol = 1e-11 * b.abs().max().item()
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-9, msg=name)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_gradcheck(length: int) -> None:
    inputs = _inputs(length, batch=2)
    assert torch.autograd.gradcheck(gated_conv_blocked, inputs)
    assert torch.autograd.gradcheck(gated_conv_blocked, inputs[:4])


@pytest.mark.parametrize("samples", [16, 700, 5000])
def test_blocks_do_not_change_values(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(63, batch=7)
    whole = gated_conv_blocked(*inputs)
    grads = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(fft, "BLOCK_SAMPLES", samples)
    monkeypatch.setattr(fft, "MIN_ROWS", 1)
    cut = gated_conv_blocked(*inputs)
    torch.testing.assert_close(cut, whole, atol=1e-10, rtol=1e-10)
    again = torch.autograd.grad(cut.square().sum(), inputs)
    for name, a, b in zip(NAMES, again, grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9 * b.abs().max().item(), rtol=1e-9, msg=name)


def test_equals_the_separate_operators_in_float32() -> None:
    p, w, b, k, skip = (t.detach().float() for t in _inputs(1000))
    x0, x1, v = short_conv(p, w, b).chunk(3, dim=1)
    want = long_conv(v * x1, k, skip) * x0
    torch.testing.assert_close(gated_conv(p, w, b, k, skip), want, atol=1e-3, rtol=1e-4)


def test_half_inputs() -> None:
    p, w, b, k, skip = (t.detach().float().requires_grad_() for t in _inputs(200))
    half = p.detach().bfloat16().requires_grad_()
    got = gated_conv(half, w, b, k, skip)
    assert got.dtype == torch.bfloat16
    got.float().sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    grads = [t.grad for t in (w, b, k, skip)]
    wide = half.detach().float().requires_grad_()
    inputs = [wide, w, b, k, skip]
    want = torch.autograd.grad(gated_conv_reference(*inputs).sum(), inputs)
    for name, a, b_ in zip(NAMES, [half.grad.float(), *grads], want, strict=True):
        assert a is not None
        assert (a - b_).norm() < 1e-2 * b_.norm(), name


def test_only_the_inputs_are_kept_for_backward() -> None:
    inputs = _inputs(63)
    kept: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gated_conv_blocked(*inputs)
    assert kept == {tensor.data_ptr() for tensor in inputs}


def test_reference_can_be_asked_for() -> None:
    inputs = [t.detach() for t in _inputs(20)]
    with backend.override("reference"):
        got = gated_conv(*inputs)
    assert torch.equal(got, gated_conv_reference(*inputs))


def test_wrong_shapes_are_named() -> None:
    p, w, b, k, skip = (t.detach() for t in _inputs(20))
    with pytest.raises(OperatorError, match="k must have"):
        gated_conv(p, w, b, k[:, :-1], skip)
    with pytest.raises(OperatorError, match="k must have"):
        gated_conv(p[:, 1:], w, b, k, skip)
    with pytest.raises(OperatorError, match="skip must have"):
        gated_conv(p, w, b, k, skip[:-1])

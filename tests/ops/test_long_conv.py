"""The FFT path equals the matrix definition, forward and backward, at every length and block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops import long_conv as module
from megabase.ops.long_conv import _long_conv_reference, fft_length, long_conv

LENGTHS = (1, 2, 3, 63, 64, 251, 1000, 1024)


def _inputs(
    length: int, two_sided: bool, dtype: torch.dtype = torch.float64, batch: int = 3
) -> list[Tensor]:
    torch.manual_seed(length)
    lags = 2 * length - 1 if two_sided else length
    shapes = ((batch, 5, length), (5, lags), (5,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def _grads(y: Tensor, inputs: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y * weight).sum(), inputs)


@pytest.mark.parametrize("two_sided", [False, True], ids=["causal", "two-sided"])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_reference_in_double(length: int, two_sided: bool) -> None:
    inputs = _inputs(length, two_sided)
    weight = torch.randn(3, 5, length, dtype=torch.float64)
    want = _long_conv_reference(*inputs, two_sided=two_sided)
    got = long_conv(*inputs, two_sided=two_sided)
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    for name, ours, theirs in zip(
        ("du", "dk", "dskip"),
        _grads(got, inputs, weight),
        _grads(want, inputs, weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-10, msg=name)


@pytest.mark.parametrize("two_sided", [False, True], ids=["causal", "two-sided"])
def test_the_reference_is_the_same_some_rows_at_a_time(
    two_sided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = _inputs(63, two_sided)
    weight = torch.randn(3, 5, 63, dtype=torch.float64)
    whole = _long_conv_reference(*inputs, two_sided=two_sided)
    monkeypatch.setattr(module, "_MATRIX_ELEMENTS", 5 * 63 * 10)
    parts = _long_conv_reference(*inputs, two_sided=two_sided)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-12)
    for some, all_ in zip(
        _grads(parts, inputs, weight), _grads(whole, inputs, weight), strict=True
    ):
        torch.testing.assert_close(some, all_, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("two_sided", [False, True], ids=["causal", "two-sided"])
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_gradcheck(length: int, two_sided: bool) -> None:
    inputs = _inputs(length, two_sided, batch=2)
    assert torch.autograd.gradcheck(
        lambda u, k, skip: long_conv(u, k, skip, two_sided=two_sided), inputs
    )
    assert torch.autograd.gradcheck(lambda u, k: long_conv(u, k, two_sided=two_sided), inputs[:2])


def test_equals_numpy() -> None:
    u, k, skip = (x.detach() for x in _inputs(100, False))
    want = (
        np.stack([[np.convolve(u[b, d], k[d])[:100] for d in range(5)] for b in range(3)])
        + (skip[:, None] * u).numpy()
    )
    np.testing.assert_allclose(long_conv(u, k, skip).numpy(), want, atol=1e-12)


def test_worked_example() -> None:
    u = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    k = torch.tensor([[1.0, 0.5, 0.25, 0.125]])
    y = long_conv(u, k, torch.tensor([0.1]))
    torch.testing.assert_close(y, torch.tensor([[[1.1, 2.7, 4.55, 6.525]]]))


@pytest.mark.parametrize("samples", [16, 400, 5000])
def test_blocks_do_not_change_values(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(63, False, batch=7)
    weight = torch.randn(7, 5, 63, dtype=torch.float64)
    whole = long_conv(*inputs)
    grads = _grads(whole, inputs, weight)
    monkeypatch.setattr(module, "BLOCK_SAMPLES", samples)
    monkeypatch.setattr(module, "_MIN_ROWS", 1)
    cut = long_conv(*inputs)
    torch.testing.assert_close(cut, whole, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(_grads(cut, inputs, weight), grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1), (torch.float16, 1e-2)]
)
def test_half_inputs_are_summed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    u, k, skip = (x.detach() for x in _inputs(1000, False))
    want = _long_conv_reference(u.to(dtype).double(), k, skip)
    got = long_conv(u.to(dtype), k.float(), skip.float())
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=tolerance * 30, rtol=tolerance)


def test_only_the_inputs_are_kept_for_backward() -> None:
    u, k, skip = _inputs(63, False)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        long_conv(u, k, skip)
    assert set(kept) == {u.data_ptr(), k.data_ptr(), skip.data_ptr()}


def test_gradients_that_are_not_wanted_are_not_computed() -> None:
    u, k, skip = _inputs(16, False)
    y = long_conv(u.detach(), k, skip.detach())
    y.sum().backward()
    assert k.grad is not None
    assert u.grad is None
    y = long_conv(u, k.detach(), None)
    y.sum().backward()
    assert u.grad is not None


def test_backend_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.detach() for x in _inputs(8, False)]
    with monkeypatch.context() as patch:
        patch.setattr("megabase.ops.long_conv._forward", lambda *_: "fast")
        assert long_conv(*inputs) == "fast"
    monkeypatch.setattr(module, "_long_conv_reference", lambda *_, **__: "reference")
    with backend.override("reference"):
        assert long_conv(*inputs) == "reference"


@pytest.mark.parametrize(
    ("u", "k", "skip", "two_sided"),
    [
        ((2, 3, 8), (3, 7), None, False),
        ((2, 3, 8), (3, 8), None, True),
        ((2, 3, 8), (4, 8), None, False),
        ((3, 8), (3, 8), None, False),
        ((2, 3, 8), (3, 8), (2,), False),
        ((2, 3, 0), (3, 0), None, False),
    ],
)
def test_wrong_shapes_are_named(
    u: tuple[int, ...], k: tuple[int, ...], skip: tuple[int, ...] | None, two_sided: bool
) -> None:
    given = None if skip is None else torch.zeros(skip)
    with pytest.raises(OperatorError, match="must have shape"):
        long_conv(torch.zeros(u), torch.zeros(k), given, two_sided=two_sided)


def _smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


@pytest.mark.parametrize("length", [1, 2, 31, 251, 1000, 1024, 4096, 160_002, 450_002, 1_000_002])
def test_transform_length_is_long_enough_smooth_and_not_wasteful(length: int) -> None:
    n = fft_length(2 * length - 1)
    assert n >= 2 * length - 1
    if length > 16:
        assert _smooth(n)
    assert n <= max(2 * length, 1 << (2 * length - 2).bit_length())


def test_transform_length_of_awkward_sizes() -> None:
    # 502 = 2 x 251 costs several times 512.
    assert fft_length(2 * 251 - 1) == 512
    assert fft_length(2047) == 2048
    assert fft_length(2 * 1000 - 1) == 2048

"""The mixer by pieces and groups equals the composition of the references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import same_with_gradients
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import kernels, products
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer, kernel, passes
from megabase.ops.hyena_mixer import _hyena_mixer_by_parts as reference

pytestmark = pytest.mark.usefixtures("path")

NAMES = (
    "dx", "dnorm_w", "dnorm_b", "dw_in", "db_in", "dw", "db", "dk", "dskip", "dw_out", "db_out",
)  # fmt: skip


def _inputs(
    length: int, two_sided: bool = False, batch: int = 3, width: int = 6, taps: int = 3
) -> list[Any]:
    torch.manual_seed(length)
    lags = 2 * length - 1 if two_sided else length
    shapes = (
        (batch, length, width), (width,), (width,), None, (3 * width, width), (3 * width,),
        (3 * width, taps), (3 * width,), (width, lags), (width,), (width, width), (width,),
    )  # fmt: skip
    return [
        1e-5 if shape is None else torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def _mix(x: Any, *weights: Any, **options: Any) -> Tensor:
    return hyena_mixer(x, MixerWeights(*weights), **options)


def _definition(x: Any, *weights: Any, **options: Any) -> Tensor:
    return reference(x, MixerWeights(*weights), **options)


def _tensors(inputs: list[Any]) -> list[Tensor]:
    return [value for value in inputs if isinstance(value, Tensor)]


def _compare(inputs: list[Any], **options: Any) -> None:
    want = _definition(*inputs, **options)
    got = _mix(*inputs, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(want)
    ours = torch.autograd.grad(got, _tensors(inputs), weight)
    theirs = torch.autograd.grad(want, _tensors(inputs), weight)
    for name, a, b in zip(NAMES, ours, theirs, strict=False):
        atol = 1e-10 * b.abs().max().item()
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("centered", "two_sided"),
    [(False, False), (False, True), (True, True)],
    ids=["causal", "published", "two-sided"],
)
@pytest.mark.parametrize("length", [1, 2, 63, 300])
@pytest.mark.parametrize("kept", [True, False])
def test_equals_the_reference(
    length: int, centered: bool, two_sided: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:  # the backward pass computes everything again
        monkeypatch.setattr(kernels, "KEEP_BYTES", 0)
    _compare(_inputs(length, two_sided), centered=centered, two_sided=two_sided)


@pytest.mark.parametrize(("width", "taps"), [(2, 1), (33, 2), (70, 5)])
@pytest.mark.parametrize("length", [191, 193, 400])
def test_lengths_and_widths_around_a_block(length: int, width: int, taps: int) -> None:
    centered = taps == 5
    inputs = _inputs(length, centered, batch=2, width=width, taps=taps)
    _compare(inputs, centered=centered, two_sided=centered)


@pytest.mark.parametrize("width", [16, 64, 70])
def test_groups_of_channels_do_not_change_values(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "GROUP_BYTES", 1)
    _compare(_inputs(200, batch=2, width=width))


@pytest.mark.parametrize("positions", [1, 3, 7, 64])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("centered", [False, True])
def test_pieces_and_groups_do_not_change_values(
    positions: int, channels: int, centered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "PIECE_POSITIONS", positions)
    monkeypatch.setattr(passes, "MIN_GROUP", channels)
    monkeypatch.setattr(passes, "GROUP_SAMPLES", 100)
    monkeypatch.setattr(passes, "CHANNEL_SAMPLES", 100)
    monkeypatch.setattr(passes, "BLOCK_SAMPLES", 100)
    monkeypatch.setattr(passes, "MIN_ROWS", 1)
    _compare(_inputs(29, centered, taps=4), centered=centered, two_sided=centered)


def test_nothing_is_kept_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 1 << 19)  # 4 MiB
    assert kernels.keeps(x)
    monkeypatch.setattr(kernels, "available_bytes", lambda _: kernels.KEEP_ROOM * 4 * 2**20 - 1)
    assert not kernels.keeps(x)
    assert kernels.keeps(x[:, :100])


@pytest.mark.parametrize("length", [1, 5])
def test_gradcheck(length: int) -> None:
    inputs = _inputs(length, batch=2, width=2)
    assert torch.autograd.gradcheck(_mix, inputs)


def test_without_norm_and_skip() -> None:
    inputs = _inputs(40)
    inputs[1] = inputs[2] = inputs[9] = None
    want, got = _definition(*inputs), _mix(*inputs)
    same_with_gradients(got, want, _tensors(inputs))


def test_frozen_weights_leave_the_input_gradient() -> None:
    inputs = _inputs(50)
    weight = torch.randn_like(inputs[0])
    (want,) = torch.autograd.grad(_mix(*inputs), inputs[:1], weight)
    frozen = [inputs[0], *(v.detach() if isinstance(v, Tensor) else v for v in inputs[1:])]
    got = torch.autograd.grad(_mix(*frozen), frozen[:1], weight)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("length", "width"), [(700, 16), (2048, 16), (193, 70)])
def test_float32_and_half_products(length: int, width: int) -> None:
    inputs = _inputs(length, batch=2, width=width)
    with torch.no_grad():
        for i in (4, 5, 10):
            inputs[i] *= 0.1
    want = _definition(*inputs)
    single = [v.detach().float().requires_grad_() if isinstance(v, Tensor) else v for v in inputs]
    got = _mix(*single)
    half = _mix(*single, product=torch.bfloat16)
    scale = want.abs().max().item()
    assert (got.double() - want).abs().max().item() < 1e-5 * scale
    assert half.dtype == torch.float32
    assert (half.double() - want).abs().max().item() < 3e-2 * scale
    weight = torch.randn_like(want)
    exact = torch.autograd.grad(want, _tensors(inputs), weight)
    ours = torch.autograd.grad(got, _tensors(single), weight.float())
    rounded = torch.autograd.grad(half, _tensors(single), weight.float())
    for name, a, b, c in zip(NAMES, exact, ours, rounded, strict=False):
        size = a.abs().max().item()
        assert (b.double() - a).abs().max().item() < 1e-4 * size, name
        assert (c.double() - a).abs().max().item() < 5e-2 * size, name


def test_shapes_are_checked() -> None:
    inputs = _inputs(9)
    inputs[8] = inputs[8][:, :8]
    with pytest.raises(OperatorError, match="k must have shape"):
        _mix(*inputs)
    inputs = _inputs(9)
    torch.testing.assert_close(_mix(*inputs), _definition(*inputs))


def test_the_default_device_does_not_matter() -> None:
    inputs = _inputs(33)
    want = _mix(*inputs)
    with torch.device("meta"):
        got = _mix(*inputs)
        gradients = torch.autograd.grad(got.sum(), _tensors(inputs))
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients, torch.autograd.grad(want.sum(), _tensors(inputs)), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles() -> None:
    inputs = _inputs(33)
    compiled = torch.compile(lambda *a: _mix(*a) * 2, backend="aot_eager")
    got, want = compiled(*inputs), _mix(*inputs) * 2
    same_with_gradients(got, want, _tensors(inputs))

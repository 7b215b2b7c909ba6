"""The mixer by pieces and groups equals the composition of the references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import pieces
from megabase.ops.hyena_mixer import (
    hyena_mixer,
    hyena_mixer_blocked,
    hyena_mixer_reference,
    kernel,
    plan,
)

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


def _tensors(inputs: list[Any]) -> list[Tensor]:
    return [value for value in inputs if isinstance(value, Tensor)]


def _compare(inputs: list[Any], **options: Any) -> None:
    want = hyena_mixer_reference(*inputs, **options)
    got = hyena_mixer_blocked(*inputs, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(want)
    ours = torch.autograd.grad(got, _tensors(inputs), weight)
    theirs = torch.autograd.grad(want, _tensors(inputs), weight)
    for name, a, b in zip(NAMES, ours, theirs, strict=False):
        atol = 1e-10 * b.abs().max().item()
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("centred", "two_sided"),
    [(False, False), (False, True), (True, True)],
    ids=["causal", "published", "two-sided"],
)
@pytest.mark.parametrize("length", [1, 2, 63, 300])
@pytest.mark.parametrize("kept", [True, False])
def test_equals_the_reference(
    length: int, centred: bool, two_sided: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:  # the backward pass computes the transforms' result again
        monkeypatch.setattr(kernel, "KEEP_BYTES", 0)
    _compare(_inputs(length, two_sided), centred=centred, two_sided=two_sided)


@pytest.mark.parametrize(("width", "taps"), [(2, 1), (33, 2), (70, 5)])
@pytest.mark.parametrize("length", [191, 193, 400])
def test_lengths_and_widths_around_a_block(length: int, width: int, taps: int) -> None:
    centred = taps == 5
    inputs = _inputs(length, centred, batch=2, width=width, taps=taps)
    _compare(inputs, centred=centred, two_sided=centred)


@pytest.mark.parametrize("width", [16, 64, 70])
def test_groups_of_channels_do_not_change_values(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "GROUP_BYTES", 1)
    _compare(_inputs(200, batch=2, width=width))


@pytest.mark.parametrize("positions", [1, 3, 7, 64])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("centred", [False, True])
def test_pieces_and_groups_do_not_change_values(
    positions: int, channels: int, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_POSITIONS", positions)
    monkeypatch.setattr(plan, "MIN_GROUP", channels)
    monkeypatch.setattr(plan, "GROUP_SAMPLES", 100)
    monkeypatch.setattr(plan, "CHANNEL_SAMPLES", 100)
    monkeypatch.setattr(plan, "TRANSFORM_SAMPLES", 100)
    monkeypatch.setattr(plan, "MIN_ROWS", 1)
    _compare(_inputs(29, centred, taps=4), centred=centred, two_sided=centred)


@pytest.mark.parametrize("length", [1, 5])
def test_gradcheck(length: int) -> None:
    inputs = _inputs(length, batch=2, width=2)
    assert torch.autograd.gradcheck(hyena_mixer_blocked, inputs)


def test_without_norm_and_skip() -> None:
    inputs = _inputs(40)
    inputs[1] = inputs[2] = inputs[9] = None
    want, got = hyena_mixer_reference(*inputs), hyena_mixer_blocked(*inputs)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, _tensors(inputs), weight),
        torch.autograd.grad(want, _tensors(inputs), weight),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_frozen_weights_leave_the_input_gradient() -> None:
    inputs = _inputs(50)
    weight = torch.randn_like(inputs[0])
    (want,) = torch.autograd.grad(hyena_mixer_blocked(*inputs), inputs[:1], weight)
    frozen = [inputs[0], *(v.detach() if isinstance(v, Tensor) else v for v in inputs[1:])]
    got = torch.autograd.grad(hyena_mixer_blocked(*frozen), frozen[:1], weight)[0]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("length", "width"), [(700, 16), (2048, 16), (193, 70)])
def test_float32_and_half_products(length: int, width: int) -> None:
    inputs = _inputs(length, batch=2, width=width)
    with torch.no_grad():
        for i in (4, 5, 10):
            inputs[i] *= 0.1
    want = hyena_mixer_reference(*inputs)
    single = [v.detach().float().requires_grad_() if isinstance(v, Tensor) else v for v in inputs]
    got = hyena_mixer_blocked(*single)
    half = hyena_mixer_blocked(*single, product=torch.bfloat16)
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
        hyena_mixer(*inputs)
    inputs = _inputs(9)
    torch.testing.assert_close(hyena_mixer(*inputs), hyena_mixer_reference(*inputs))


def test_the_default_device_does_not_matter() -> None:
    inputs = _inputs(33)
    want = hyena_mixer_blocked(*inputs)
    with torch.device("meta"):
        got = hyena_mixer_blocked(*inputs)
        gradients = torch.autograd.grad(got.sum(), _tensors(inputs))
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients, torch.autograd.grad(want.sum(), _tensors(inputs)), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles() -> None:
    inputs = _inputs(33)
    compiled = torch.compile(lambda *a: hyena_mixer_blocked(*a) * 2, backend="aot_eager")
    got, want = compiled(*inputs), hyena_mixer_blocked(*inputs) * 2
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got.sum(), _tensors(inputs)),
        torch.autograd.grad(want.sum(), _tensors(inputs)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)

"""The causal convolution is the library's, in torch and in C++: values, gradients, directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.errors import OperatorError
from megabase.ops import backend, kernels
from megabase.ops.causal_conv import (
    _causal_conv_reference,
    _causal_conv_shifted,
    causal_conv,
)

needs_kernels = pytest.mark.skipif(kernels.package() is None, reason=kernels.why_missing() or "")


def causal_conv_kernel(
    x: Tensor, taps: Tensor, bias: Tensor | None = None, past: Tensor | None = None
) -> Tensor:
    with backend.override("kernels"):
        return causal_conv(x, taps, bias, past)


IMPLEMENTATIONS = [
    pytest.param(_causal_conv_shifted, id="shifted"),
    pytest.param(causal_conv_kernel, id="kernel", marks=needs_kernels),
]


def make(batch: int, length: int, channels: int, taps: int, options: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(length + taps)
    shapes = [(batch, length, channels), (channels, taps)]
    shapes += [(channels,), (batch, taps - 1, channels)] if options else []
    draw = [torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes]
    return [t.requires_grad_() for t in draw]


def run(conv: Callable[..., Tensor], given: list[Any], **more: Any) -> list[Tensor]:
    y = conv(*given, **more)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad(y, given, dy)]


def compare(want: list[Tensor], got: list[Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)


def test_the_definition_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])[None, :, None]
    y = _causal_conv_reference(x, torch.tensor([[10.0, 1.0]]), torch.tensor([0.5]))
    torch.testing.assert_close(y.flatten(), F.silu(torch.tensor([1.5, 12.5, 23.5])))
    past = torch.full((1, 1, 1), 7.0)
    y = _causal_conv_reference(x, torch.tensor([[10.0, 1.0]]), None, past)
    torch.testing.assert_close(y.flatten(), F.silu(torch.tensor([71.0, 12.0, 23.0])))


@pytest.mark.parametrize("conv", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 2, 63, 128, 130, 1000])
@pytest.mark.parametrize("options", [True, False])
def test_values_and_gradients_are_those_of_the_definition(
    conv: Callable[..., Tensor], length: int, options: bool
) -> None:
    given = make(3 if length < 1000 else 1, length, 19, 4, options)
    compare(run(_causal_conv_reference, given), run(conv, given))


@needs_kernels
@pytest.mark.usefixtures("each_set")
@pytest.mark.parametrize("taps", range(1, 9))
def test_any_number_of_taps(taps: int) -> None:
    given = make(2, 140, 21, taps)
    compare(run(_causal_conv_reference, given), run(causal_conv_kernel, given))


@pytest.mark.parametrize("name", ["kernels", "fast", "reference"])
def test_against_the_direction_is_turning_around_twice(name: str) -> None:
    if name == "kernels" and kernels.package() is None:
        pytest.skip(str(kernels.why_missing()))
    given = make(2, 150, 5, 4)

    def turned(x: Tensor, *more: Tensor) -> Tensor:
        return _causal_conv_reference(x.flip(1), *more).flip(1)

    with backend.override(name):
        compare(run(turned, given), run(causal_conv, given, reverse=True))


@pytest.mark.parametrize("conv", IMPLEMENTATIONS)
def test_gradients_are_derivatives(conv: Callable[..., Tensor]) -> None:
    assert torch.autograd.gradcheck(conv, make(2, 5, 3, 3))


@needs_kernels
def test_torch_accepts_the_operators() -> None:
    given = make(2, 9, 3, 4)
    torch.library.opcheck(torch.ops.megabase.causal_conv.default, (*given, True))
    plain = [t.detach() for t in given]
    dy = torch.ones_like(plain[0])
    torch.library.opcheck(torch.ops.megabase.causal_conv_backward.default, (dy, *plain, False))


@needs_kernels
def test_strided_inputs_are_read_as_they_are() -> None:
    x, taps, bias, past = make(2, 33, 6, 4)
    wide = torch.cat([x, x + 1], dim=-1).chunk(2, dim=-1)[0]
    assert not wide.is_contiguous()
    want = _causal_conv_reference(x, taps, bias, past)
    torch.testing.assert_close(causal_conv_kernel(wide, taps, bias, past), want)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(causal_conv_kernel(turned, taps, bias, past), want)


@needs_kernels
def test_many_taps_run_in_torch() -> None:
    given = make(2, 30, 3, 12)
    with backend.override("kernels"):
        compare(run(_causal_conv_reference, given), run(causal_conv, given))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, int, int, int]) -> None:
    given = make(*shape)
    y = causal_conv(*given)
    assert y.shape == given[0].shape
    grads = torch.autograd.grad(y.sum(), given)
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_lower_precision_keeps_its_dtype() -> None:
    given = [t.detach().to(torch.bfloat16) for t in make(2, 30, 6, 4)]
    y = causal_conv(*given)
    assert y.dtype == torch.bfloat16
    want = _causal_conv_reference(*(t.float() for t in given))
    torch.testing.assert_close(y.float(), want, atol=0.05, rtol=0.05)


def test_shapes_that_do_not_fit_are_all_named() -> None:
    x, taps, bias, past = make(2, 6, 3, 4)
    with pytest.raises(OperatorError, match=r"bias must have .*; past must have"):
        causal_conv(x, taps, bias[:2], past[:, :2])
    with pytest.raises(OperatorError, match="K >= 1"):
        causal_conv(x, taps[:, :0])

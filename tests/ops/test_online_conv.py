"""Fed one by one, the long convolution gives what it gives on everything at once."""

import pytest
import torch

from megabase.errors import OperatorError
from megabase.ops import backend, kernels
from megabase.ops.long_conv import _long_conv_reference
from megabase.ops.online_conv import _OnlineConvReference, online_conv


def case(
    length: int, batch: int = 2, channels: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    u = torch.randn(batch, channels, length, generator=g, dtype=dtype)
    return u, torch.randn(channels, length, generator=g, dtype=dtype), torch.randn(
        channels, generator=g, dtype=dtype
    )  # fmt: skip


@pytest.mark.parametrize("name", backend.BACKENDS)
@pytest.mark.parametrize("prompt", [0, 1, 63, 64, 77, 299, 300])
def test_steps_after_any_prompt_equal_the_whole(name: str, prompt: int) -> None:
    if name == "kernels" and kernels.package() is None:
        pytest.skip(str(kernels.why_missing()))
    u, k, skip = case(300)
    with backend.override(name):
        conv = online_conv(k, skip, batch=2)
    parts = [conv.prefill(u[..., :prompt])]
    parts += [conv.step(u[..., t])[..., None] for t in range(prompt, 300)]
    assert torch.allclose(torch.cat(parts, -1), _long_conv_reference(u, k, skip), atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129, 257, 513, 520, 1030])
def test_every_length(length: int) -> None:
    u, k, _ = case(length, batch=1)
    conv = online_conv(k, None, batch=1)
    found = torch.stack([conv.step(x) for x in u.unbind(-1)], -1)
    assert torch.allclose(found, _long_conv_reference(u, k), atol=1e-10)


def test_the_steps_of_a_gate_in_two_parts() -> None:
    u, k, skip = case(200, batch=1)
    one, two = online_conv(k, skip, 1), online_conv(k, skip, 1)
    for x in u.unbind(-1):
        two.slot.copy_(x)
        assert torch.equal(one.step(x), two.advance())
        two.go_on()


def test_float32_over_many_tiles() -> None:
    u, k, skip = case(3000, batch=1, channels=2, dtype=torch.float32)
    conv = online_conv(k, skip, 1)
    found = torch.stack([conv.step(x) for x in u.unbind(-1)], -1)
    wanted = _long_conv_reference(u.double(), k.double(), skip.double())
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-6


def test_a_filter_may_reach_further_than_the_positions_that_are_read() -> None:
    u, k, skip = case(500)
    conv = online_conv(k, skip, 2)
    for x in u[..., :130].unbind(-1):
        found = conv.step(x)
    wanted = _long_conv_reference(u[..., :130], k[:, :130], skip)[..., -1]
    assert torch.allclose(found, wanted, atol=1e-10)


def test_the_backend_and_the_shapes() -> None:
    _, k, skip = case(5)
    with backend.override("reference"):
        assert isinstance(online_conv(k, skip, 1), _OnlineConvReference)
    with pytest.raises(OperatorError, match="skip must have shape"):
        online_conv(k, skip[:2], 1)
    with pytest.raises(OperatorError, match="batch of 1 or more"):
        online_conv(k, skip, 0)

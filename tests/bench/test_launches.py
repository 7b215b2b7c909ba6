"""What a training step launches on an accelerator, counted on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.harness import BenchError
from benchmarks.launches import LaunchConfig, Launches, count_step, fake_device
from torch.nn import functional as F


def test_launches_and_bytes_of_known_calls() -> None:
    with fake_device():
        x = torch.empty(8, 16, device="cuda", requires_grad=True)
        w = torch.empty(4, 16, device="cuda", requires_grad=True)
        with Launches() as counted:
            y = F.gelu(x.view(2, 4, 16) @ w.t()).sum()
        assert dict(counted.calls) == {"mm": 1, "gelu": 1, "sum": 1}
        assert counted.bytes == 4 * ((8 * 16 + 4 * 16 + 8 * 4) + 2 * (8 * 4) + (8 * 4 + 1))
        assert y.device.type == "cuda"
        with Launches() as counted:
            y.backward()
        assert counted.calls["mm"] == 2
        assert x.grad is not None


def test_padding_is_a_fill_and_a_copy_and_views_are_nothing() -> None:
    with fake_device():
        x = torch.empty(8, 16, device="cuda")
        with Launches() as counted:
            F.pad(x, (1, 1)).t()[1:].unsqueeze(0).expand(5, -1, -1)
        assert dict(counted.calls) == {"constant_pad_nd": 2}


def test_waiting_for_the_device_is_an_error() -> None:
    with (
        fake_device(),
        pytest.raises(BenchError, match="waits for it"),
        Launches(),
    ):
        bool(torch.empty(3, device="cuda").isnan().any())


@pytest.mark.parametrize(
    ("batch", "length", "width", "layers"), [(256, 1024, 128, 2), (1, 1 << 20, 256, 1)]
)
def test_hyenadna_launches_and_touches_no_more_than_the_published_way(
    batch: int, length: int, width: int, layers: int
) -> None:
    config = LaunchConfig(batch=batch, length=length, width=width, layers=layers)
    ours, published = count_step(config), count_step(config, "plain")
    # An independent count of the published code gave 244 and 126.
    assert published.total == pytest.approx(244 if layers == 2 else 126, rel=0.06)
    assert ours.total <= 1.1 * published.total
    assert ours.bytes <= published.bytes


def test_strands_of_caduceus_are_told_apart_once_and_not_in_every_layer() -> None:
    shape: dict[str, Any] = {"batch": 8, "width": 256, "backend": "triton"}
    for model in ("caduceus", "caduceus-ps"):
        one, two = (
            count_step(LaunchConfig(model=model, layers=layers, **shape)).total for layers in (1, 2)
        )
        assert two - one == 57


@pytest.mark.parametrize("model", ["hyenadna", "gpt", "mamba", "caduceus", "caduceus-ps"])
@pytest.mark.parametrize("mask", [False, True])
def test_no_family_waits_for_the_device_and_none_cuts_its_work(model: str, mask: bool) -> None:
    small = LaunchConfig(model=model, batch=2, length=256, width=32, layers=2, mask=mask)
    large = LaunchConfig(model=model, batch=64, length=256, width=256, layers=2, mask=mask)
    assert count_step(small).calls == count_step(large).calls

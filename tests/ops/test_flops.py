"""FlopCounterMode sees what the operators compute."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operator_cases import FUNCTIONS, B, D, L, N, tensors
from torch.utils.flop_counter import FlopCounterMode

from megabase.ops import backend, kernels
from megabase.ops.long_conv import fft_length

POINTS = fft_length(2 * L - 1)
TRANSFORMS = (2 * B + 1) * D * round(2.5 * POINTS * math.log2(POINTS))
MATRIX = 2 * B * D * L * L
"""What the definition's matrix of all pairs of positions counts in place of the transforms."""
BEYOND = {"short_conv": 96, "long_conv": 0, "hyena_mixer": 3 * 96}
"""What definitions count for outputs of the short convolution behind the end, cut off."""


@pytest.fixture(params=["kernels", "fast"], autouse=True)
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "kernels" and kernels.package() is None:
        pytest.skip(str(kernels.why_missing()))
    with backend.override(request.param):
        yield


def _count(name: str, backward: bool) -> int:
    given: list[Any] = tensors(name, torch.float32)
    for i, t in enumerate(given):
        t.requires_grad_(backward and not (name == "implicit_filter" and i in (0, 1, 8)))
    with FlopCounterMode(display=False) as counter:
        y = FUNCTIONS[name](*given)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["norm_mlp", "implicit_filter"])
def test_products_count_as_in_the_definition(name: str, backward: bool) -> None:
    found = _count(name, backward)
    with backend.override("reference"):
        assert found == _count(name, backward) > 0


@pytest.mark.parametrize("name", ["short_conv", "long_conv", "hyena_mixer"])
def test_convolutions_count_as_in_the_definition_with_transforms(name: str) -> None:
    found, long = _count(name, False), name != "short_conv"
    with backend.override("reference"):
        want = _count(name, False) - long * MATRIX - BEYOND[name]
    assert found == want + long * TRANSFORMS


def test_backward_passes_of_convolutions() -> None:
    short, long = _count("short_conv", False), TRANSFORMS
    assert _count("short_conv", True) == 3 * short
    assert _count("long_conv", True) == 2 * long
    products = 8 * B * L * D * D
    assert _count("hyena_mixer", True) == 3 * products + 3 * (3 * short) + 2 * long


def test_the_scan() -> None:
    assert _count("selective_scan", False) == 6 * B * L * D * N
    assert _count("selective_scan", True) == 3 * 6 * B * L * D * N

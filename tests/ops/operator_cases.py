"""Small inputs of every operator: for the Python functions, and for ``torch.ops.megabase``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megabase.ops.causal_conv import causal_conv
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.long_conv import long_conv
from megabase.ops.norm_mlp import MlpWeights, norm_mlp
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.ops.short_conv import short_conv

B, L, D, E, K, N = 2, 7, 4, 6, 3, 3
OPTIONAL = {"norm_w", "norm_b", "skip", "b", "bias", "past", "rate", "D", "z", "initial"}

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "short_conv": {"x": (B, D, L), "w": (D, K), "b": (D,)},
    "long_conv": {"u": (B, D, L), "k": (D, L), "skip": (D,)},
    "norm_mlp": {
        "x": (B, L, D), "norm_w": (D,), "norm_b": (D,), "w1": (E, D), "b1": (E,), "w2": (D, E),
        "b2": (D,),
    },
    "hyena_mixer": {
        "x": (B, L, D), "norm_w": (D,), "norm_b": (D,), "w_in": (3 * D, D), "b_in": (3 * D,),
        "w": (3 * D, K), "_b": (3 * D,), "k": (D, L), "skip": (D,), "w_out": (D, D),
        "b_out": (D,),
    },
    "implicit_filter": {
        "features": (L, 5), "t": (L,), "freq": (1, D), "w0": (D, 5), "w1": (D, D), "b0": (D,),
        "b1": (D,), "last": (E, D), "rate": (E,),
    },
    "causal_conv": {"x": (B, L, D), "taps": (D, K), "bias": (D,), "past": (B, K - 1, D)},
    "selective_scan": {
        "u": (B, L, D), "delta": (B, L, D), "A": (D, N), "B": (B, L, N), "C": (B, L, N), "D": (D,),
        "z": (B, L, D), "bias": (D,), "initial": (B, D, N),
    },
}  # fmt: skip
"""Tensors of each operator in the order of its arguments."""


def tensors(name: str, dtype: torch.dtype = torch.float64, plain: bool = False) -> list[Any]:
    """Draw the tensors of an operator; `plain` leaves out what may be missing."""
    generator = torch.Generator().manual_seed(len(name))
    found: list[Any] = []
    for key, shape in SHAPES[name].items():
        value = 0.3 * torch.randn(shape, dtype=torch.float64, generator=generator)
        found.append(None if plain and key in OPTIONAL else value.to(dtype))
    if name == "selective_scan":
        found[2] = -found[2].abs()
    return found


def _mlp(x: Any, norm_w: Any, norm_b: Any, *weights: Any) -> Tensor:
    return norm_mlp(x, MlpWeights(norm_w, norm_b, 1e-5, *weights))


def _mixer(x: Any, norm_w: Any, norm_b: Any, *weights: Any) -> Tensor:
    return hyena_mixer(x, MixerWeights(norm_w, norm_b, 1e-5, *weights))


def _filter(z: Any, t: Any, freq: Any, w0: Any, w1: Any, b0: Any, b1: Any, *last: Any) -> Tensor:
    return implicit_filter(z, t, FilterWeights(freq, [w0, w1], [b0, b1], *last, 0.1))


def _scan(*inputs: Any) -> Tensor:
    y, state = selective_scan(ScanInputs(*inputs))
    return torch.cat([y.flatten(1), state.flatten(1)], dim=1)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "short_conv": short_conv,
    "long_conv": long_conv,
    "norm_mlp": _mlp,
    "hyena_mixer": _mixer,
    "implicit_filter": _filter,
    "causal_conv": causal_conv,
    "selective_scan": _scan,
}
"""The Python functions, of tensors alone."""


def same_with_gradients(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    """Compare two results, and the gradients of a random sum of each."""
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad(one, inputs, weight) for one in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)

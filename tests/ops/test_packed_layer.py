"""A layer packed for the kernels, and letters, against the modules they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.inference.variants.prefix import _Layers
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.ops import backend, kernels
from megabase.ops.hyena_mixer.packed import letter_log_probs

needs_kernels = pytest.mark.skipif(kernels.package() is None, reason=kernels.why_missing() or "")
TOLERANCES = {torch.float32: 3e-5, torch.float64: 1e-12}


def pieces(dtype: torch.dtype, width: int = 24) -> _Layers:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=width, n_layer=2, max_seq_len=600, initializer_range=0.3)
    model: Any = HyenaDNAForCausalLM(config).eval().to(dtype)
    for parameter in model.parameters():  # no bias may be 0, no norm 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return _Layers(list(model.hyena.backbone.layers), 64)


def both(own: _Layers, run: Any) -> tuple[Any, Any]:
    with torch.inference_mode():
        with backend.override("fast"):
            own.pack()
            assert own._packed == [None, None]
            plain = run()
        own.pack()
        assert None not in own._packed
        return plain, run()


@needs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("first", [0, 2, 7])
@pytest.mark.parametrize(("batch", "length"), [(1, 9), (2, 8), (3, 450)])
def test_open_gives_what_norm_projection_and_short_convolution_give(
    dtype: torch.dtype, first: int, batch: int, length: int
) -> None:
    own = pieces(dtype)
    x = torch.randn(batch, length, 24, dtype=dtype)
    plain, found = both(own, lambda: own.open(1, x, first))
    for one, other in zip(plain, found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, rtol=0, atol=10 * TOLERANCES[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 24), (2, 70, 24), (2, 450, 40)])
def test_close_gives_what_gate_projection_and_mlp_give(
    dtype: torch.dtype, batch: int, length: int, width: int
) -> None:
    own = pieces(dtype, width)
    x, gate = torch.randn(2, batch, length, width, dtype=dtype)
    # Views, as callers have them: of a longer sequence.
    y = torch.randn(batch, width, length + 5, dtype=dtype)[..., 5:]
    plain, found = both(own, lambda: own.close(0, y, gate.clone(), x))
    torch.testing.assert_close(found, plain, rtol=0, atol=10 * TOLERANCES[dtype])


def by_hand(
    x: Tensor, norm: torch.nn.LayerNorm, weight: Tensor, before: Tensor | None, codes: Tensor
) -> Tensor:
    logits = norm(x) @ weight.T
    if before is not None:
        logits = torch.cat((before[:, None], logits), dim=1)
    log_probs = logits.log_softmax(-1)
    found = torch.full(codes.shape, torch.nan, dtype=x.dtype)
    for b in range(codes.shape[0]):
        for t in range(codes.shape[1]):
            if codes[b, t] < 4:
                found[b, t] = log_probs[b, t, int(codes[b, t])]
    return found


@needs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("preceded", [False, True])
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 1, 16), (2, 33, 19), (3, 200, 128)])
def test_letters_are_looked_up(
    dtype: torch.dtype, preceded: bool, batch: int, length: int, width: int
) -> None:
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(width, dtype=dtype)
    norm.weight.data, norm.bias.data = torch.randn(2, width, dtype=dtype)
    x, weight = torch.randn(batch, length, width, dtype=dtype), torch.randn(4, width, dtype=dtype)
    before = 30 * torch.randn(batch, 4, dtype=dtype) if preceded else None
    codes = torch.randint(0, 6, (batch, length + preceded), dtype=torch.uint8)
    with torch.inference_mode():
        of_norm = (norm.weight, norm.bias, norm.eps)
        found = letter_log_probs(x, of_norm, weight, before, codes)
        assert found is not None
        expected = by_hand(x, norm, weight, before, codes)
        torch.testing.assert_close(found[0], expected.float(), rtol=1e-5, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(
            found[1], norm(x) @ weight.T, rtol=0, atol=10 * TOLERANCES[dtype]
        )


def test_without_kernels_it_is_left_to_torch() -> None:
    with backend.override("fast"):
        own = pieces(torch.float32)
        own.pack()
        assert own._packed == [None, None]
        x, weight = torch.randn(1, 3, 24), torch.randn(4, 24)
        codes = torch.zeros(1, 3, dtype=torch.uint8)
        norm = torch.ones(24), torch.zeros(24), 1e-5
        assert letter_log_probs(x, norm, weight, None, codes) is None

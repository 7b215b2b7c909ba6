"""The Hyena operator: its formula, its layouts, its filter and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.errors import InputError, MegabaseError
from megabase.layers.hyena import (
    Bidirectional,
    FilterLayout,
    FilterOptions,
    HyenaFilter,
    HyenaOperator,
    PositionalFeatures,
    _ExponentialWindow,
    _published_two_sided,
)
from megabase.layers.incremental import BackboneSteps
from megabase.layers.mamba import BidirectionalMamba
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAModel
from megabase.ops import backend


def _operator(order: int = 2, **options: object) -> HyenaOperator:
    torch.manual_seed(order)
    return HyenaOperator(6, 40, order=order, **options).double()  # pyright: ignore[reportArgumentType]


def _plain(operator: HyenaOperator, x: Tensor) -> Tensor:
    """Equation 3 of the HyenaDNA paper, position by position."""
    _, length, width = x.shape
    p = operator.in_proj(x).transpose(1, 2)
    short = operator.short_filter
    p = F.conv1d(p, short.weight, short.bias, padding=short.padding, groups=p.shape[1])
    first, *gates, v = p[..., :length].split(width, dim=1)
    taps, skip = operator.filter_fn(length)
    count = operator.order - 1
    for o, gate in enumerate(reversed(gates)):
        v = v * gate
        out = torch.zeros_like(v)
        for c in range(width):
            channel = c * count + o if operator.filter_layout == "training" else o * width + c
            for t in range(length):
                past = v[:, c, : t + 1].flip(-1)
                out[:, c, t] = past @ taps[channel, : t + 1] + skip[channel] * v[:, c, t]
        v = out
    return operator.out_proj((v * first).transpose(1, 2))


@pytest.mark.parametrize("layout", ["training", "standalone"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_equals_the_formula(order: int, layout: FilterLayout) -> None:
    operator = _operator(order, filter_options=FilterOptions(layout=layout))
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    torch.testing.assert_close(operator(x), _plain(operator, x), atol=1e-10, rtol=1e-10)


def test_layouts_differ_above_order_two() -> None:
    x = torch.randn(1, 17, 6, dtype=torch.float64)
    training, standalone = (
        _operator(3),
        _operator(3, filter_options=FilterOptions(layout="standalone")),
    )
    standalone.load_state_dict(training.state_dict())
    assert not torch.allclose(training(x), standalone(x))


@pytest.mark.parametrize("mode", ["none", "published", "two_sided"])
def test_fast_and_reference_paths_agree(mode: Bidirectional) -> None:
    operator = _operator(bidirectional=mode)
    x = torch.randn(2, 33, 6, dtype=torch.float64)
    fast = operator(x)
    with backend.override("reference"):
        torch.testing.assert_close(operator(x), fast, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mode", ["none", "two_sided"])
def test_masked_path_agrees_with_the_unmasked_one(mode: Bidirectional) -> None:
    operator = _operator(bidirectional=mode)
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    everything = torch.ones(2, 20, dtype=torch.bool)
    torch.testing.assert_close(operator(x, everything), operator(x), atol=1e-12, rtol=1e-12)


def test_dropout_takes_the_general_path_and_acts() -> None:
    operator = _operator(dropout=0.5)
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    operator.eval()
    still = operator(x)
    torch.testing.assert_close(operator(x), still)
    operator.train()
    assert not torch.allclose(operator(x), still)


def test_two_sided_sees_both_ways_and_none_is_causal() -> None:
    for mode, later in (("none", False), ("two_sided", True)):
        operator = _operator(bidirectional=mode)
        x = torch.randn(1, 20, 6, dtype=torch.float64, requires_grad=True)
        operator(x)[0, 10].sum().backward()
        assert x.grad is not None
        reach = x.grad[0].abs().sum(-1)
        assert bool((reach[:11] > 0).all())
        assert bool((reach[11:] > 1e-12).all()) == later


def test_two_sided_filter_continues_the_one_sided_one() -> None:
    module = HyenaFilter(4, 30).double()
    (one, _), (both, _) = module(12), module(12, "both")
    assert both.shape == (4, 23)
    torch.testing.assert_close(both[:, 11:], one)
    # Negative lags are the network at negative time: not a mirror image.
    assert not torch.allclose(both[:, :11].flip(1), one[:, 1:])
    module.modulation.shift = 0.0
    assert bool((module(30, "both")[0][-1].abs() < 1.0).all())


def test_shorter_inputs_take_the_first_taps() -> None:
    module = HyenaFilter(4, 30)
    torch.testing.assert_close(module(12)[0], module(30)[0][:, :12])


def test_taps_stay_float32_under_autocast() -> None:
    module = HyenaFilter(4, 30)
    want, _ = module(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(30)[0], want)
    half = HyenaFilter(4, 30).bfloat16()
    assert half(30)[0].dtype == torch.float32


def test_positional_features_of_the_worked_example() -> None:
    z, t = PositionalFeatures(5, 6).tables().values()
    rows = [
        [0.0, 1.0, 1.0, 0.0, 0.0],
        [0.2, 1.0, 0.5, -1.0472e-4, -0.86603],
        [0.4, 1.0, -0.5, -2.0944e-4, -0.86603],
        [0.6, 1.0, -1.0, -3.1416e-4, 0.0],
        [0.8, 1.0, -0.5, -4.1888e-4, 0.86603],
        [1.0, 1.0, 0.5, -5.2360e-4, 0.86603],
    ]
    torch.testing.assert_close(z[0], torch.tensor(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(t[0, :, 0], torch.linspace(0, 1, 6))


def test_window_decays_and_shifts() -> None:
    window = _ExponentialWindow(8, shift=0.05)
    values = window(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(values[:, 0], torch.full((8,), 1.05))
    torch.testing.assert_close(values[0, 1].item(), math.exp(math.log(0.01) / 1.5) + 0.05)
    torch.testing.assert_close(values[-1, 1].item(), math.exp(math.log(0.01) / 0.3) + 0.05)


def test_one_frequency_under_three_names() -> None:
    module = HyenaFilter(4, 30)
    names = [name for name in module.state_dict() if name.endswith("freq")]
    assert names == [f"implicit_filter.{i}.freq" for i in (1, 3, 5)]
    assert sum(p.numel() for n, p in module.named_parameters() if n.endswith("freq")) == 64


def test_normalized_taps_have_unit_norm_over_channels() -> None:
    module = HyenaFilter(4, 30, FilterOptions(normalized=True))
    torch.testing.assert_close(module(30)[0].abs().sum(0), torch.ones(30))


def test_without_bias_the_skip_term_is_off_and_frozen() -> None:
    operator = _operator(filter_options=FilterOptions(use_bias=False))
    assert not operator.filter_fn.bias.requires_grad
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    before = operator(x)
    operator.filter_fn.bias.data.add_(1.0)
    assert torch.equal(operator(x), before)


def test_too_long_inputs_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"41 positions.*at most 40.*windows"):
        _operator()(torch.zeros(1, 41, 6, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_published_bidirectional_arithmetic(length: int) -> None:
    """Against the published recipe: pad on both sides, a circle of 2L, keep the first L."""
    torch.manual_seed(length)
    u, k = torch.randn(length, dtype=torch.float64), torch.randn(1, length, dtype=torch.float64)
    padded = length + 2 * (length // 2)
    before = padded // 2 - length // 2
    x = F.pad(u, (before, padded - length - before))
    n = 2 * length
    want = torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(k[0], n), n)[:length]
    taps = _published_two_sided(k)[0]
    got = torch.stack(
        [sum(taps[t - s + length - 1] * u[s] for s in range(length)) for t in range(length)]  # pyright: ignore
    )
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_what_cannot_be_built_is_refused_with_what_was_given() -> None:
    ahead = HyenaDNAModel(HyenaDNAConfig(d_model=8, n_layer=1, bidirectional="two_sided"))
    for make, message in (
        (lambda: PositionalFeatures(4, 8), "odd number of features of at least 3, got 4"),
        (lambda: HyenaOperator(4, 8, order=1), "at least 2, got 1"),
        (lambda: BidirectionalMamba(4, strategy="both"), "found 'both'"),  # pyright: ignore[reportArgumentType]
        (lambda: BackboneSteps(ahead.backbone, 8, True), "reads ahead"),
    ):
        with pytest.raises(MegabaseError, match=message):
            make()

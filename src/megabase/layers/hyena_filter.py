"""The implicit filter of the Hyena operator: a small network of the lag, times a decaying window.

Shape suffixes: L lags from 0, M lags of both signs, E positional features, C filter channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError, sequence_too_long
from megabase.layers.linear import present, untouched
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.registry import without_autocast


class Sine(nn.Module):
    """``sin(freq * x)`` with one frequency per channel, learned when `trainable`."""

    def __init__(self, width: int, frequency: float, trainable: bool = True) -> None:
        super().__init__()
        self.frequency = frequency
        self.freq = nn.Parameter(torch.full((1, width), float(frequency)), requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor whose last axis is the channels."""
        return torch.sin(self.freq.to(x.dtype) * x)


class _FilterLinear(nn.Linear):
    """A linear map of the filter network, computed in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., in)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class PositionalFeatures(nn.Module):
    """Table of positional features ``z`` and normalized times ``t`` for `l_max` lags.

    The features, an odd number of 3 or more, are time, cosines and negative sines. The table
    depends on `l_max`, so it is part of the model; `trainable` makes ``z`` a parameter.
    """

    z: Tensor
    t: Tensor

    def __init__(self, features: int, l_max: int, trainable: bool = False) -> None:
        super().__init__()
        if features < 3 or features % 2 == 0:
            raise MegabaseError(f"expected an odd number of features of at least 3, got {features}")
        self.features = features
        self.l_max = l_max
        z, t = self.tables()
        if trainable:
            self.z = nn.Parameter(z)
        else:
            self.register_buffer("z", z)
        self.register_buffer("t", t)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Compute ``z`` (1, l_max, features) and ``t`` (1, l_max, 1) from their formula."""
        bands = (self.features - 1) // 2
        t_L1 = torch.linspace(0, 1, self.l_max)[:, None]
        angle_L1 = 2 * math.pi * torch.linspace(0, self.l_max - 1, self.l_max)[:, None] / self.l_max
        phase_LF = torch.linspace(1e-4, bands - 1, bands)[None] * angle_L1
        z_LE = torch.cat([t_L1, phase_LF.cos(), -phase_LF.sin()], dim=-1)
        return z_LE[None], t_L1[None]

    def forward(
        self, length: int, sides: Literal["one", "both"], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Give features (lags, features) and times (lags,) of the lags of an input."""
        h_ME, t_M = self.z[0, :length].to(dtype), self.t[0, :length, 0].to(dtype)
        if sides == "both":
            bands = (self.features - 1) // 2
            sign_E = h_ME.new_tensor([-1.0] + [1.0] * bands + [-1.0] * bands)
            h_ME = torch.cat([(h_ME[1:] * sign_E).flip(0), h_ME])
            t_M = torch.cat([t_M[1:].flip(0), t_M])
        return h_ME, t_M


class ExponentialWindow(nn.Module):
    """The window ``exp(-t |delta|) + shift``, one decay rate per channel, channel 0 the slowest.

    `fast_decay` and `slow_decay` are shares of the longest input after which the fastest and
    slowest channel fall to `target`. The published training code has a shift of 0.0, the published
    loaders 0.05; a state dict does not tell.
    """

    deltas: Tensor

    def __init__(
        self,
        channels: int,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.05,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.rates = (math.log(target) / slow_decay, math.log(target) / fast_decay)
        self.shift = shift
        self.register_buffer("deltas", self.table())

    def table(self) -> Tensor:
        """Compute ``deltas`` (1, 1, channels) from their formula."""
        return torch.linspace(*self.rates, self.channels)[None, None]

    def forward(self, t_L: Tensor) -> Tensor:
        """Give the window, shape (channels, lags), of the normalised times `t_L`."""
        rate_C = self.deltas.reshape(-1).abs().to(t_L.dtype)
        return torch.exp(-rate_C[:, None] * t_L) + self.shift


FilterLayout = Literal["training", "standalone"]
"""How filter channels are numbered for order > 2: ``"training"`` channel = v (order - 1) + o (the
public training repository), ``"standalone"`` channel = o D + v (the standalone file)."""


@dataclass(frozen=True)
class FilterOptions:
    """Settings of :class:`HyenaFilter`."""

    layout: FilterLayout = "training"
    """Numbering of channels for order > 2."""
    emb_dim: int = 5
    """Positional features per lag, odd."""
    width: int = 64
    """Width of the network."""
    num_inner_mlps: int = 2
    """Hidden layers after the first."""
    sine_freq: float = 10.0
    """Initial frequency of the sine activations."""
    train_freq: bool = True
    """Whether the frequencies learn. All sines of a filter share one parameter."""
    modulate: bool = True
    """Whether taps are multiplied by the decaying window."""
    window: Mapping[str, float] = field(default_factory=dict[str, float])
    """Arguments of :class:`ExponentialWindow`."""
    normalized: bool = False
    """Whether the taps of each lag are divided by their L1 norm over channels."""
    use_bias: bool = True
    """Whether the skip term acts. Without it the parameter stays, frozen, under its name."""
    train_positions: bool = False
    """Whether the positional table learns."""


class HyenaFilter(nn.Module):
    """Taps of `channels` filters as a function of the lag (arXiv 2306.15794, section 3.1)."""

    def __init__(self, channels: int, l_max: int, options: FilterOptions = FilterOptions()) -> None:
        super().__init__()
        self.l_max, self.options = l_max, options
        width = options.width
        self.bias = nn.Parameter(torch.randn(channels), requires_grad=options.use_bias)
        self.pos_emb = PositionalFeatures(options.emb_dim, l_max, options.train_positions)
        network: list[nn.Module] = []
        for inputs in [options.emb_dim] + [width] * options.num_inner_mlps:
            sine = Sine(width, options.sine_freq, options.train_freq)
            network += [_FilterLinear(inputs, width), sine]
        network.append(_FilterLinear(width, channels, bias=False))
        self.implicit_filter = nn.Sequential(*network)
        self.modulation = ExponentialWindow(channels, **options.window)
        # Built without values, each name waits for its own tensor of the checkpoint: the model ties
        # them afterwards.
        if self.bias.device.type != "meta":
            self._share_frequencies()

    def _sines(self) -> list[Sine]:
        return [module for module in self.implicit_filter if isinstance(module, Sine)]

    def _share_frequencies(self) -> None:
        # One parameter, one gradient, listed under the name of every sine. The modules are
        # different ones: a module listed twice would be changed twice by who swaps its tensors.
        first, *others = self._sines()
        for sine in others:
            sine.freq = first.freq

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Moves that make new parameters (from meta, say) make one for each name.
        shared = len({id(sine.freq) for sine in self._sines()}) == 1
        super()._apply(fn, recurse)
        if shared:
            self._share_frequencies()
        return self

    def forward(
        self, length: int, sides: Literal["one", "both"] = "one"
    ) -> tuple[Tensor, Tensor | None]:
        """Give taps (channels, lags), float32 at least whatever the autocast, and the skip term.

        ``"one"``: lags 0 to length - 1, the first rows of the table; taps are never resampled.
        ``"both"``: lags -(length - 1) to length - 1; negative ones are the same network and window
        at negative time, where time and sines change sign. The skip term, (channels,), is None when
        off. InputError when `length` is over ``l_max``.
        """
        if length > self.l_max:
            raise sequence_too_long(length, self.l_max, "max_seq_len")
        with without_autocast(self.bias):
            # A copy: libraries may take the parameter itself away after the call.
            skip_C = self.bias.clone() if self.options.use_bias else None
            return self._taps(length, sides), skip_C

    def _is_plain(self) -> bool:
        """Whether the operator computes the same as the modules of the network."""
        network = list(self.implicit_filter)
        parts = (*network, self.modulation)
        return (
            not self.options.normalized
            and all(type(module) in (_FilterLinear, Sine) for module in network)
            and len({id(sine.freq) for sine in self._sines()}) == 1
            and untouched(self.implicit_filter, *parts)
            and present(*parts, device=self.bias.device)
        )

    def _taps(self, length: int, sides: Literal["one", "both"]) -> Tensor:
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        h_ME, t_M = self.pos_emb(length, sides, dtype)
        if self._is_plain():
            *linears, out = cast("list[nn.Linear]", list(self.implicit_filter)[::2])
            freq = self._sines()[0].freq.to(dtype)
            rate_C = (
                self.modulation.deltas.reshape(-1).abs().to(dtype)
                if self.options.modulate
                else None
            )
            weights = FilterWeights(
                freq, [m.weight.to(dtype) for m in linears], [m.bias.to(dtype) for m in linears],
                out.weight.to(dtype), rate_C, self.modulation.shift,
            )  # fmt: skip
            return implicit_filter(h_ME, t_M, weights)
        k_CM = self.implicit_filter(h_ME).t()
        if self.options.modulate:
            k_CM = k_CM * self.modulation(t_M)
        if self.options.normalized:
            k_CM = k_CM / k_CM.abs().sum(dim=0, keepdim=True)
        return k_CM.contiguous()

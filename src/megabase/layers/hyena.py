"""The Hyena operator: gates around long convolutions, whose filter is a network of the lag.

Shape suffixes: B batch, L positions or lags from 0, D model width, P projected channels
((order + 1) D), M lags of both signs, O long convolutions (order - 1), E positional features, C
filter channels (O D).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError, sequence_too_long
from megabase.layers import linear
from megabase.ops import backend
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.long_conv import long_conv
from megabase.ops.registry import exact_products, without_autocast
from megabase.ops.short_conv import short_conv


class _Sine(nn.Module):
    """``sin(freq * x)`` with one frequency per channel, learned when `trainable`."""

    def __init__(self, width: int, frequency: float, trainable: bool = True) -> None:
        super().__init__()
        self.frequency = frequency
        self.freq = nn.Parameter(torch.empty(1, width), requires_grad=trainable)
        nn.init.constant_(self.freq, frequency)

    def tables(self) -> dict[str, Tensor]:
        """Compute the initial frequencies."""
        return {"freq": torch.full_like(self.freq, self.frequency)}

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor whose last axis is the channels."""
        return torch.sin(self.freq.to(x.dtype) * x)


class _FilterLinear(nn.Linear):
    """A linear map of the filter network, computed in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., in)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class _WideTables(nn.Module):
    """Tables that stay in float32 in a model of half precision: most lags would share values."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(table: Tensor) -> Tensor:
            found = fn(table)
            narrower = found.is_floating_point() and found.itemsize < min(4, table.itemsize)
            return table.to(found.device) if narrower else found

        return super()._apply(moved, recurse)


class PositionalFeatures(_WideTables):
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
        self.features, self.l_max = features, l_max
        z, t = self.tables().values()
        if trainable:
            self.z = nn.Parameter(z)
        else:
            self.register_buffer("z", z)
        self.register_buffer("t", t)

    def tables(self) -> dict[str, Tensor]:
        """Compute ``z`` (1, l_max, features) and ``t`` (1, l_max, 1) from their formula."""
        bands = (self.features - 1) // 2
        t_L1 = torch.linspace(0, 1, self.l_max)[:, None]
        angle_L1 = 2 * math.pi * torch.linspace(0, self.l_max - 1, self.l_max)[:, None] / self.l_max
        phase_LF = torch.linspace(1e-4, bands - 1, bands)[None] * angle_L1
        z_LE = torch.cat([t_L1, phase_LF.cos(), -phase_LF.sin()], dim=-1)
        return {"z": z_LE[None], "t": t_L1[None]}

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


class _ExponentialWindow(_WideTables):
    """The window ``exp(-t |delta|) + shift``, one decay rate per channel, channel 0 the slowest.

    `fast_decay` and `slow_decay` are shares of the longest input after which the fastest and
    slowest channel fall to `target`. The published training code has a shift of 0.0, the published
    loaders 0.05; a state dict does not tell.
    """

    deltas: Tensor

    def __init__(
        self, channels: int, fast_decay: float = 0.3, slow_decay: float = 1.5,
        target: float = 1e-2, shift: float = 0.05,
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.shift = channels, shift
        self.rates = (math.log(target) / slow_decay, math.log(target) / fast_decay)
        self.register_buffer("deltas", self.tables()["deltas"])

    def tables(self) -> dict[str, Tensor]:
        """Compute ``deltas`` (1, 1, channels) from their formula."""
        return {"deltas": torch.linspace(*self.rates, self.channels)[None, None]}

    def forward(self, t_L: Tensor) -> Tensor:
        """Give the window, shape (channels, lags), of the normalized times `t_L`."""
        rate_C = self.deltas.reshape(-1).abs().to(t_L.dtype)
        return torch.exp(-rate_C[:, None] * t_L) + self.shift


FilterLayout = Literal["training", "standalone"]
"""How filter channels are numbered for order > 2: ``"training"`` channel = v (order - 1) + o (the
public training repository), ``"standalone"`` channel = o D + v (the standalone file)."""


@dataclass(frozen=True)
class FilterOptions:
    """Settings of :class:`HyenaFilter`."""

    layout: FilterLayout = "training"
    emb_dim: int = 5
    """Positional features per lag, odd."""
    width: int = 64
    num_inner_mlps: int = 2
    """Hidden layers after the first."""
    sine_freq: float = 10.0
    """Initial frequency of the sine activations, which share one parameter."""
    train_freq: bool = True
    modulate: bool = True
    """Whether taps are multiplied by the decaying window."""
    window: Mapping[str, float] = field(default_factory=dict[str, float])
    """Arguments of :class:`_ExponentialWindow`."""
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
            sine = _Sine(width, options.sine_freq, options.train_freq)
            network += [_FilterLinear(inputs, width), sine]
        network.append(_FilterLinear(width, channels, bias=False))
        self.implicit_filter = nn.Sequential(*network)
        self.modulation = _ExponentialWindow(channels, **options.window)
        # Built without values, each name waits for its own tensor of the checkpoint: the model ties
        # them afterwards.
        if self.bias.device.type != "meta":
            self._share_frequencies()

    def _sines(self) -> list[_Sine]:
        return [module for module in self.implicit_filter if isinstance(module, _Sine)]

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
        self, length: int, sides: Literal["one", "both"] = "one", rows: Tensor | None = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Give taps (channels, lags), float32 at least whatever the autocast, and the skip term.

        ``"one"``: lags 0 to length - 1, the first rows of the table; taps are never resampled.
        ``"both"``: lags -(length - 1) to length - 1; negative ones are the same network and window
        at negative time, where time and sines change sign. The skip term, (channels,), is None when
        off. InputError when `length` is over ``l_max``. With `rows`, numbers of channels, only
        these are computed; `add_up` adds what they have to those computed elsewhere.
        """
        if length > self.l_max:
            raise sequence_too_long(length, self.l_max, "max_seq_len")
        with without_autocast(self.bias), exact_products():
            # A copy: libraries may take the parameter itself away after the call.
            skip_C = self.bias.clone() if self.options.use_bias else None
            if rows is None:
                return self._taps(length, sides), skip_C
            rows = rows.to(self.bias.device)
            skip_C = None if skip_C is None else skip_C[rows]
            return self._taps(length, sides, rows, add_up or (lambda x: x)), skip_C

    def _is_plain(self) -> bool:
        """Whether the operator computes the same as the modules of the network."""
        parts = (*self.implicit_filter, self.modulation)
        known = all(type(module) in (_FilterLinear, _Sine) for module in self.implicit_filter)
        shared = len({id(sine.freq) for sine in self._sines()}) == 1
        whole = linear.untouched(self.implicit_filter, *parts) and linear.present(
            *parts, device=self.bias.device
        )
        return known and shared and whole and not self.options.normalized

    def _taps(
        self, length: int, sides: Literal["one", "both"], rows: Tensor | slice = slice(None),
        add_up: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Tensor:  # fmt: skip
        dtype = torch.promote_types(self.bias.dtype, torch.float32)
        h_ME, t_M = self.pos_emb(length, sides, dtype)
        if self._is_plain():
            *linears, out = cast("list[nn.Linear]", list(self.implicit_filter)[::2])
            rate_C = self.modulation.deltas.reshape(-1)[rows].abs().to(dtype)
            weights = FilterWeights(
                self._sines()[0].freq.to(dtype), [m.weight.to(dtype) for m in linears],
                [m.bias.to(dtype) for m in linears], out.weight[rows].to(dtype),
                rate_C if self.options.modulate else None, self.modulation.shift,
            )  # fmt: skip
            return implicit_filter(h_ME, t_M, weights)
        k_CM = self.implicit_filter(h_ME).t()[rows]
        if self.options.modulate:
            k_CM = k_CM * self.modulation(t_M)[rows]
        if self.options.normalized:
            k_CM = k_CM / add_up(k_CM.abs().sum(dim=0, keepdim=True))
        return k_CM.contiguous()


Bidirectional = Literal["none", "published", "two_sided"]
"""``"none"`` causal; ``"published"`` the published arithmetic, which reaches only positions about
half a sequence away; ``"two_sided"`` with positive and negative lags."""
ACTIVATIONS = {"id": lambda x: x, "gelu": F.gelu, "relu": F.relu, "silu": F.silu,
               "tanh": F.tanh, "sigmoid": F.sigmoid}  # fmt: skip
"""Functions that may stand between the last gate and the output projection."""


def _published_two_sided(k_DL: Tensor) -> Tensor:
    """Arrange one-sided taps as the published bidirectional mode applies them: (channels, 2L - 1).

    The published code pads the input by half its length on both sides, convolves on a circle of
    2L, and keeps the first L samples instead of the central ones. Tap j is thus applied at lag
    j + L // 2 (about), or at j + L // 2 - 2L around the circle; nearby positions are not reached.
    """
    length = k_DL.shape[1]
    before = (length + 2 * (length // 2)) // 2 - length // 2
    # Lag g >= before: tap g - before. Lag g < before - L: tap g - before + 2L, around the circle.
    later, earlier = k_DL[:, : length - before], k_DL[:, length + 1 - before :]
    gap = 2 * length - 1 - earlier.shape[1] - later.shape[1]
    return torch.cat([earlier, k_DL.new_zeros(len(k_DL), gap), later], dim=1)


class HyenaOperator(nn.Module):
    """Hyena mixer of any order (HyenaDNA paper, arXiv 2306.15794, equation 3).

    For order 2, with ``x0, x1, v`` the three blocks of the projected, short-convolved input: ``y =
    x0 * (h conv (x1 * v) + bias * (x1 * v))``. Higher orders have as many gates. `dropout` is of
    gated values before a long convolution, `output_activation` a name in :data:`ACTIVATIONS`;
    ``"two_sided"`` also centers the short convolution, of `short_filter_order` taps.
    """

    without_kernels = "Hyena blocks run in torch; their C++ operators are about 1.5 times as fast"

    def __init__(
        self, d_model: int, l_max: int, order: int = 2, short_filter_order: int = 3,
        bidirectional: Bidirectional = "none", output_activation: str = "id",
        dropout: float = 0.0, filter_options: FilterOptions = FilterOptions(),
    ) -> None:  # fmt: skip
        super().__init__()
        if order < 2:
            raise MegabaseError(f"expected a Hyena order of at least 2, got {order}")
        self.d_model, self.l_max, self.order = d_model, l_max, order
        self.filter_layout = filter_options.layout
        self.bidirectional, self.output_activation = bidirectional, output_activation
        self.dropout = dropout
        projected = d_model * (order + 1)
        self.in_proj = nn.Linear(d_model, projected)
        self.out_proj = linear.ResidualLinear(d_model, d_model)
        # Holds the weights under their published names; the operator does the work.
        taps = short_filter_order
        self.short_filter = nn.Conv1d(
            projected, projected, taps, groups=projected, padding=taps - 1
        )
        self.filter_fn = HyenaFilter(d_model * (order - 1), l_max, filter_options)

    def per_convolution(self, x_C: Tensor) -> list[Tensor]:
        """Split filter channels (axis 0) into one tensor per long convolution."""
        if self.order == 2:
            return [x_C]
        if self.filter_layout == "training":
            return list(x_C.unflatten(0, (self.d_model, self.order - 1)).unbind(1))
        return list(x_C.unflatten(0, (self.order - 1, self.d_model)).unbind(0))

    def filters(
        self, length: int, channels: slice | None = None,
        add_up: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:  # fmt: skip
        """Compute taps and skip terms of the long convolutions for `length` positions.

        With `channels` for these alone; `add_up` is that of :meth:`HyenaFilter.forward`.
        """
        sides, rows = "both" if self.bidirectional == "two_sided" else "one", None
        split = self.per_convolution
        if channels is not None:
            numbers = self.per_convolution(torch.arange(self.d_model * (self.order - 1)))
            rows = torch.cat([number_D[channels] for number_D in numbers])
            split = partial(torch.chunk, chunks=self.order - 1)
        k_CM, skip_C = self.filter_fn(length, sides, rows, add_up)
        if self.bidirectional == "published":
            k_CM = _published_two_sided(k_CM)
        k_ODM = list(split(k_CM))
        return k_ODM, [None] * len(k_ODM) if skip_C is None else [*split(skip_C)]

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Mix positions of (batch, length, width); InputError for inputs longer than ``l_max``.

        Positions where `mask_BL` is False are emptied before every convolution, so that real ones
        do not see them. A causal operator on right-padded input needs no mask.
        """
        k_ODM, skips = self.filters(x_BLD.shape[1])
        p_BPL = linear.to_channel_major(self.in_proj, x_BLD)
        mask_B1L = None if mask_BL is None else mask_BL[:, None].to(p_BPL.dtype)
        y_BDL = ACTIVATIONS[self.output_activation](self.mix(p_BPL, k_ODM, skips, mask_B1L))
        return linear.from_channel_major(self.out_proj, y_BDL)

    def fuses(self, x_BLD: Tensor, norm: nn.Module, mask_BL: Tensor | None) -> bool:
        """Whether :meth:`fused` gives what the separate modules would."""
        return (
            self.order == 2
            and mask_BL is None
            and not (self.dropout > 0 and self.training)
            and self.output_activation == "id"
            and linear.untouched(self)
            and linear.bare(
                norm, self.in_proj, self.short_filter, self.out_proj, device=x_BLD.device
            )
            and backend.active() != "reference"
            and not backend.use_plain(x_BLD)
        )

    def fused(self, x_BLD: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """Mix the LayerNorm of `x_BLD`, keeping only it and the filter for the backward pass.

        Without a norm `x_BLD` itself is mixed.
        """
        (k_DM,), (skip_D,) = self.filters(x_BLD.shape[1])
        normed = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        weights = MixerWeights(
            *normed, self.in_proj.weight, self.in_proj.bias,
            self.short_filter.weight.squeeze(1), cast("Tensor", self.short_filter.bias),
            k_DM, skip_D, self.out_proj.weight, self.out_proj.bias,
        )  # fmt: skip
        return hyena_mixer(
            x_BLD, weights, centered=self.bidirectional == "two_sided",
            two_sided=self.bidirectional != "none", product=linear.product_dtype(x_BLD),
        )  # fmt: skip

    def short(self, p_BPL: Tensor) -> Tensor:
        """Apply the short convolution to projected channels."""
        short, centered = self.short_filter, self.bidirectional == "two_sided"
        if linear.bare(short, device=p_BPL.device):
            return short_conv(p_BPL, short.weight.squeeze(1), short.bias, centered=centered)
        # The module pads both ends by taps - 1 and so gives more positions than there are: causal
        # ones come first.
        first = (short.kernel_size[0] - 1) // 2 if centered else 0
        return short(p_BPL)[..., first : first + p_BPL.shape[-1]]

    def mix(
        self, p_BPL: Tensor, k_ODM: list[Tensor], skips: list[Tensor | None],
        mask_B1L: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Apply short convolution, gates and long convolutions to projected channels."""
        dropping = self.dropout > 0 and self.training
        if mask_B1L is not None:
            p_BPL = p_BPL * mask_B1L
        p_BPL = self.short(p_BPL)
        first, *gates, v_BDL = p_BPL.split(self.d_model, dim=1)
        for gate, k_DM, skip_D in zip(reversed(gates), k_ODM, skips, strict=True):
            v_BDL = v_BDL * gate
            if dropping:
                v_BDL = F.dropout(v_BDL, self.dropout)
            if mask_B1L is not None:
                v_BDL = v_BDL * mask_B1L
            v_BDL = long_conv(v_BDL, k_DM, skip_D, two_sided=self.bidirectional != "none")
        return v_BDL * first

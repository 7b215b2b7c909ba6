"""HyenaDNA computed the published way: what the fast paths of megabase are measured against.

One linear layer for the projections and a transposed copy of its output, a grouped convolution, a
filter network over (1, length, features), FFTs of twice the length of the whole tensor, the skip
term added afterwards, and autograd for the rest. Module names are the published ones, so the
weights of a megabase model load as they are. Dropout is left out: both sides are measured without.

Shapes: (batch, length, width) outside, (batch, channels, length) inside the operator.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlainHyenaDNA"]


class Sin(nn.Module):
    """``sin(freq x)``."""

    def __init__(self, width: int, frequency: float) -> None:
        super().__init__()
        self.freq = nn.Parameter(torch.full((1, width), float(frequency)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq * x)


class Positions(nn.Module):
    """Positional features and normalized times of every lag."""

    z: Tensor
    t: Tensor

    def __init__(self, features: int, l_max: int) -> None:
        super().__init__()
        t = torch.linspace(0, 1, l_max)[None, :, None]
        bands = (features - 1) // 2
        w = 2 * math.pi * torch.linspace(0, l_max - 1, l_max)[None, :, None] / l_max
        f = torch.linspace(1e-4, bands - 1, bands)[None, None]
        wave = torch.exp(-1j * f * w)
        self.register_buffer("z", torch.cat([t, wave.real, wave.imag], dim=-1))
        self.register_buffer("t", t)


class Window(nn.Module):
    """The decaying window."""

    deltas: Tensor

    def __init__(
        self, channels: int, fast: float, slow: float, target: float, shift: float
    ) -> None:
        super().__init__()
        rates = torch.linspace(math.log(target) / slow, math.log(target) / fast, channels)
        self.shift = shift
        self.register_buffer("deltas", rates[None, None])

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return x * (torch.exp(-t * self.deltas.abs()) + self.shift)


class Filter(nn.Module):
    """The implicit filter and the convolution with it."""

    def __init__(self, d_model: int, l_max: int, config: Any) -> None:
        super().__init__()
        width = config.filter_order
        self.bias = nn.Parameter(torch.randn(d_model))
        self.pos_emb = Positions(config.emb_dim, l_max)
        act = Sin(width, config.activation_freq)
        network: list[nn.Module] = [nn.Linear(config.emb_dim, width), act]
        for _ in range(config.num_inner_mlps):
            network += [nn.Linear(width, width), act]
        self.implicit_filter = nn.Sequential(*network, nn.Linear(width, d_model, bias=False))
        self.modulation = Window(
            d_model, config.fast_decay_pct, config.slow_decay_pct, config.decay_target,
            config.window_shift,
        )  # fmt: skip

    def filter(self, length: int) -> Tensor:
        z, t = self.pos_emb.z[:, :length], self.pos_emb.t[:, :length]
        return self.modulation(t, self.implicit_filter(z))

    def forward(self, x: Tensor, k: Tensor, bias: Tensor) -> Tensor:
        size = 2 * x.shape[-1]
        k_f = torch.fft.rfft(k, n=size) / size
        x_f = torch.fft.rfft(x.to(k.dtype), n=size)
        y = torch.fft.irfft(x_f * k_f, n=size, norm="forward")[..., : x.shape[-1]]
        return (y + x * bias.unsqueeze(-1)).to(x.dtype)


class Hyena(nn.Module):
    """The Hyena operator of order 2."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d_model, self.l_max = config.d_model, config.max_seq_len
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.short_filter = nn.Conv1d(
            3 * d_model, 3 * d_model, config.short_filter_order, groups=3 * d_model,
            padding=config.short_filter_order - 1,
        )  # fmt: skip
        self.filter_fn = Filter(d_model, self.l_max, config)

    def forward(self, u: Tensor) -> Tensor:
        length = min(u.shape[1], self.l_max)
        u = self.in_proj(u).transpose(1, 2)
        x0, x1, v = self.short_filter(u)[..., :length].chunk(3, dim=1)
        with torch.autocast(u.device.type, enabled=False):
            k = self.filter_fn.filter(length)[0].transpose(0, 1)
        v = v * x1
        with torch.autocast(u.device.type, enabled=False):
            v = self.filter_fn(v, k, self.filter_fn.bias)
        return self.out_proj((v * x0).transpose(1, 2))


class Mlp(nn.Module):
    """The position-wise network."""

    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_model, d_inner), nn.Linear(d_inner, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm block in add-before-norm form."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.mixer = Hyena(config)
        self.norm1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.mlp = Mlp(config.d_model, config.d_inner)
        self.norm2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        hidden = self.mixer(self.norm1(residual.to(self.norm1.weight.dtype)))
        residual = (hidden + residual).float()
        return self.mlp(self.norm2(residual.to(self.norm2.weight.dtype))), residual


class Backbone(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(config.vocab_rows, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(self, input_ids: Tensor) -> Tensor:
        embed: Any = self.embeddings.word_embeddings
        hidden, residual = embed(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.ln_f(hidden + residual)


class PlainHyenaDNA(nn.Module):
    """A causal language model with the published names below ``hyena.backbone``.

    Parameters
    ----------
    config
        A HyenaDNA configuration of order 2, causal, without options the published models lack.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.hyena = nn.Module()
        self.hyena.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)
        embeddings: Any = self.hyena.backbone.embeddings
        if config.tie_word_embeddings:
            self.lm_head.weight = embeddings.word_embeddings.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits (batch, length, columns)."""
        backbone: Any = self.hyena.backbone
        return self.lm_head(backbone(input_ids))

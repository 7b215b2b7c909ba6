"""HyenaDNA computed the published way: what the fast paths of megabase are measured against.

One linear layer for the projections and a transposed copy of its output, a grouped convolution, a
filter network over (1, length, features), FFTs of twice the length of the whole tensor, the skip
term added afterwards, and autograd for the rest. Dropout is left out: both sides are measured
without.

Shapes: (batch, length, width) outside, (batch, channels, length) inside the operator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class PlainHyenaDNA(nn.Module):
    """The published computation with a copy of a model's weights.

    Parameters
    ----------
    model
        A HyenaDNA language model of order 2, causal, without options the published models lack.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(model)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits (batch, length, columns)."""
        backbone = self.model.base_model.backbone
        hidden, residual = backbone.embeddings.word_embeddings(input_ids), None
        for layer in backbone.layers:
            residual = hidden if residual is None else hidden + residual
            mixed = _mix(layer.mixer, layer.norm1(residual.to(layer.norm1.weight.dtype)))
            residual = (mixed + residual).float()
            hidden = layer.mlp(layer.norm2(residual.to(layer.norm2.weight.dtype)))
        return self.model.lm_head(backbone.ln_f(hidden if residual is None else hidden + residual))


def _mix(mixer: Any, x: Tensor) -> Tensor:
    """Apply the Hyena operator of order 2."""
    length = x.shape[1]
    projected = mixer.in_proj(x).transpose(1, 2)
    x0, x1, v = mixer.short_filter(projected)[..., :length].chunk(3, dim=1)
    with torch.autocast(x.device.type, enabled=False):
        taps = _taps(mixer.filter_fn, length)
    v = v * x1
    with torch.autocast(x.device.type, enabled=False):
        size = 2 * length
        taps_f = torch.fft.rfft(taps, n=size) / size
        v_f = torch.fft.rfft(v.to(taps.dtype), n=size)
        y = torch.fft.irfft(v_f * taps_f, n=size, norm="forward")[..., :length]
        v = (y + v * mixer.filter_fn.bias.unsqueeze(-1)).to(v.dtype)
    return mixer.out_proj((v * x0).transpose(1, 2))


def _taps(filters: Any, length: int) -> Tensor:
    """Compute the implicit filter, (channels, length)."""
    z, t = filters.pos_emb.z[:, :length], filters.pos_emb.t[:, :length]
    window = torch.exp(-t * filters.modulation.deltas.abs()) + filters.modulation.shift
    return (filters.implicit_filter(z) * window)[0].transpose(0, 1)

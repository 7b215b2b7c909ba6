"""The shell over one very long sequence without gradients, in little more than two copies of it.

Nothing is cut: every position sees all that it sees in an ordinary pass. What acts on positions
(norms, projections, the MLP) runs piece by piece along the sequence; what acts on channels (short
convolution, gates, long convolutions) runs channel by channel along the whole of it. One copy is
the running sum, updated in place; the other holds the filter of a layer, whose rows are replaced by
the mixer's outputs as channels are done.

Shape suffixes: L positions, D model width, l a piece of L, d some of D, F frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import ACTIVATIONS, HyenaOperator
from megabase.layers.linear import bare, untouched
from megabase.ops.long_conv import long_conv
from megabase.ops.short_conv import short_conv

__all__ = ["can_stream", "stream_backbone"]

_PIECE = 1 << 14
_CHANNELS = 16
"""Channels projected at a time: the normalised input is computed once for each such block."""
_CONVOLVED = 4
"""Channels convolved at a time."""


def can_stream(backbone: Backbone) -> bool:
    """Whether :func:`stream_backbone` gives what the backbone gives: Hyena blocks, float32 up."""
    if backbone.embeddings.word_embeddings.weight.dtype not in (torch.float32, torch.float64):
        return False
    if not bare(backbone.ln_f):
        return False
    for layer in backbone.layers:
        block = cast("Block", layer)
        mixer = block.mixer
        if not isinstance(mixer, HyenaOperator) or mixer.bidirectional != "none":
            return False
        parts = (block.norm1, block.norm2, mixer.in_proj, mixer.out_proj, mixer.short_filter)
        if not bare(*parts) or not untouched(block, mixer):
            return False
    return True


def stream_backbone(backbone: Backbone, ids_1L: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give the final vectors of one sequence, piece by piece.

    Parameters
    ----------
    backbone
        A backbone of causal Hyena blocks (:func:`can_stream`), taken as in evaluation.
    ids_1L
        Token ids, shape (1, length), without padding before or between them.

    Yields
    ------
    where : slice
        Positions.
    hidden : Tensor
        Output of the final norm there, shape (1, positions, width).
    """
    with torch.no_grad():
        total_LD = backbone.embeddings(ids_1L)[0]
        for layer in backbone.layers:
            _block(cast("Block", layer), total_LD)
        for at in _pieces(len(total_LD)):
            yield at, _normed(backbone.ln_f, total_LD[at])[None]


def _pieces(length: int) -> Iterator[slice]:
    return (slice(begin, min(begin + _PIECE, length)) for begin in range(0, length, _PIECE))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _block(block: Block, total_LD: Tensor) -> None:
    """Add what a block adds to the running sum, in place."""
    mixer = cast("HyenaOperator", block.mixer)
    y_DL = _mix(mixer, block.norm1, total_LD)
    for at in _pieces(len(total_LD)):
        y_Dl = ACTIVATIONS[mixer.output_activation](y_DL[:, at])
        total_LD[at] += F.linear(y_Dl.t(), mixer.out_proj.weight, mixer.out_proj.bias)
    del y_DL
    for at in _pieces(len(total_LD)):
        total_LD[at] += block.mlp(_normed(block.norm2, total_LD[at]))


def _mix(mixer: HyenaOperator, norm: nn.LayerNorm, total_LD: Tensor) -> Tensor:
    """Give the gated outputs of all channels, (width, length), in the place of the filter."""
    length, width = total_LD.shape
    k_ODL, skips = mixer.filters(length)
    y_DL = k_ODL[0]
    groups = mixer.order + 1
    bias = cast("Tensor", mixer.short_filter.bias)
    for begin in range(0, width, _CHANNELS):
        d = slice(begin, min(begin + _CHANNELS, width))
        count = d.stop - d.start
        p_gdL = total_LD.new_empty(groups, count, length)
        weight_gdD = mixer.in_proj.weight.unflatten(0, (groups, width))[:, d]
        bias_gd1 = mixer.in_proj.bias.unflatten(0, (groups, width))[:, d, None]
        for at in _pieces(length):
            x_Dl = _normed(norm, total_LD[at]).t()
            p_gdL[:, :, at] = torch.matmul(weight_gdD, x_Dl) + bias_gd1
        taps_gdK = mixer.short_filter.weight[:, 0].unflatten(0, (groups, width))[:, d]
        bias_gd = bias.unflatten(0, (groups, width))[:, d]
        for first in range(0, count, _CONVOLVED):
            c = slice(first, min(first + _CONVOLVED, count))
            own = slice(d.start + c.start, d.start + c.stop)
            out, *gates, v = (
                short_conv(p_gdL[g : g + 1, c], taps_gdK[g, c], bias_gd[g, c])
                for g in range(groups)
            )
            pairs = zip(reversed(gates), k_ODL, skips, strict=True)
            for gate, k_DL, skip_D in pairs:
                v *= gate
                k_dL = k_DL[own].contiguous()
                v = long_conv(v, k_dL, None if skip_D is None else skip_D[own])
            y_DL[own] = v[0].mul_(out[0])
    return y_DL

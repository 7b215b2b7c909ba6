"""The decoder backbone without gradients over very long sequences: step by step, or streamed.

:class:`BackboneSteps` reads one position at a time, in few calls: at one position of a small model
these cost more than the arithmetic. :func:`stream_backbone` reads one whole sequence in little more
than two copies of it, the running sum and the filter of a layer, whose rows are replaced by the
mixer's outputs: norms, projections and MLP run piece by piece along the sequence, convolutions
channel by channel along the whole of it. Nothing is cut.

Shape suffixes: B batch, L positions, D model width, P projected channels, K taps of the short
convolution, N heads, H width of a head, T positions of a block; l and d are pieces of L and D.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers import linear
from megabase.layers.backbone import Backbone, Block, SelfAttention
from megabase.layers.hyena import ACTIVATIONS, HyenaOperator
from megabase.ops import backend
from megabase.ops.long_conv import long_conv
from megabase.ops.online_conv import online_conv
from megabase.ops.short_conv import short_conv

_BLOCK = 64
"""Positions between two shifts of the short convolutions' buffer: views of it are made once."""
_PIECE = 1 << 14
"""Positions streamed at a time: long enough for products, small beside the sequence."""
_CHANNELS = 16
"""Channels projected at a time: the normalized input is computed once for each such block."""
_CONVOLVED = 4  # channels convolved at a time: their spectra are alive together


class _At(NamedTuple):
    """Position of a step, and its place in a block of :data:`_BLOCK`: (1,), on the device."""

    position: Tensor
    place: Tensor


class _HyenaSteps:
    """A causal Hyena operator of any order, by position; time and memory depend on `length`."""

    def __init__(self, operator: HyenaOperator, length: int) -> None:
        if operator.bidirectional != "none":
            raise MegabaseError("a bidirectional Hyena operator has no steps: it reads ahead")
        self.operator = operator
        k_ODM, self.skips = operator.filters(length)
        self.k_ODM = [k_DM.contiguous() for k_DM in k_ODM]
        self._in = linear.function_of(operator.in_proj, k_ODM[0].device)
        self._out = linear.function_of(operator.out_proj, k_ODM[0].device)
        self._short_K1P, self._bias_P = _short_taps(operator.short_filter, k_ODM[0].device)
        self.reset(1)

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        pairs = zip(self.k_ODM, self.skips, strict=True)
        self.convolutions: Any = [online_conv(k_DM, skip_D, batch) for k_DM, skip_D in pairs]
        taps, _, channels = self._short_K1P.shape
        self._sums = self._bias_P.expand(_BLOCK + taps - 1, batch, channels).clone()
        # Each input is added to the positions its short taps reach; views are made once.
        self._reached = [self._sums[j : j + taps] for j in range(_BLOCK)]
        self._parts = [self._split(self._sums[j]) for j in range(_BLOCK)]
        self._lags = torch.arange(taps, device=self._sums.device)
        self._place = 0

    def _split(self, sums_BP: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        first, *gates, v_BD = sums_BP.split(self.operator.d_model, dim=1)
        return first, v_BD, gates[::-1]

    def prefill(self, x_BLD: Tensor) -> Tensor:
        """Read a prompt of 1 position or more, at the beginning only."""
        operator, length = self.operator, x_BLD.shape[1]
        p_BPL = linear.to_channel_major(operator.in_proj, x_BLD)
        taps = len(self._short_K1P)
        for lag in range(1, min(taps, length + 1)):  # of the first position after the prompt
            reached = self._sums[: taps - lag]
            reached.addcmul_(self._short_K1P[lag:], p_BPL[..., length - lag])
        p_BPL = operator.short(p_BPL)
        first, *gates, v_BDL = p_BPL.split(operator.d_model, dim=1)
        for gate, conv in zip(reversed(gates), self.convolutions, strict=True):
            v_BDL = conv.prefill(v_BDL * gate)
        y_BDL = ACTIVATIONS[operator.output_activation](v_BDL * first)
        return linear.from_channel_major(operator.out_proj, y_BDL)

    def step(self, x_BD: Tensor, at: _At | None) -> Tensor:
        """Read one position of every sequence, shape (batch, width)."""
        if at is None:
            self._reached[self._place].addcmul_(self._short_K1P, self._in(x_BD))
            first, v_BD, gates = self._parts[self._place]
        else:
            self._sums.index_add_(0, at.place + self._lags, self._short_K1P * self._in(x_BD))
            first, v_BD, gates = self._split(self._sums.index_select(0, at.place)[0])
        for gate, conv in zip(gates, self.convolutions, strict=True):
            if at is None:
                torch.mul(v_BD, gate, out=conv.slot)
                v_BD = conv.advance()
            else:
                v_BD = conv.advance_at(v_BD * gate, at.place)
        y_BD = ACTIVATIONS[self.operator.output_activation](v_BD * first)
        return self._out(y_BD.to(x_BD.dtype))

    def go_on(self) -> None:
        """Go on to the next position."""
        for conv in self.convolutions:
            conv.go_on()
        self._place += 1
        if self._place == _BLOCK:
            rest = len(self._sums) - _BLOCK
            self._sums[:rest] = self._sums[_BLOCK:].clone()
            self._sums[rest:] = self._bias_P
            self._place = 0


def _short_taps(short: nn.Conv1d, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give the taps of a short convolution, the current position first, and its bias."""
    if linear.bare(short, device=device):
        taps_PK, bias_P = short.weight[:, 0].flip(1), cast("Tensor", short.bias)
    else:  # what it answers to nothing is its bias, to a one its taps
        one_1P1 = torch.ones(1, short.in_channels, 1, dtype=short.weight.dtype, device=device)
        bias_P = short(torch.zeros_like(one_1P1))[0, :, 0]
        taps_PK = short(one_1P1)[0] - bias_P[:, None]
    return taps_PK.t()[:, None].contiguous(), bias_P


def _place(weight: Tensor) -> torch.device:
    """Give where numbers of steps are kept: beside a weight, unless that is offloaded."""
    return torch.device("cpu") if weight.is_meta else weight.device


class _AttentionSteps:
    """Causal self-attention with the keys and values of all positions so far, `length` at most."""

    def __init__(self, attention: SelfAttention, length: int) -> None:
        if not attention.causal:
            raise MegabaseError("bidirectional attention has no steps: it reads ahead")
        self.attention, self.length = attention, length
        self._places_L = torch.arange(length, device=_place(attention.Wqkv.weight))
        self.reset(1)

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        self._kept_2BNLH: Tensor | None = None
        self._position = 0

    def prefill(self, x_BLD: Tensor) -> Tensor:
        """Read a prompt of 1 position or more, at the beginning only."""
        return self._read(x_BLD, causal=True)

    def step(self, x_BD: Tensor, at: _At | None) -> Tensor:
        """Read one position of every sequence, shape (batch, width)."""
        kept_2BNLH = self._kept_2BNLH
        if at is None or kept_2BNLH is None:
            return self._read(x_BD[:, None], causal=False)[:, 0]
        # All places are attended to, and those that are still empty hidden.
        qkv = self.attention.Wqkv(x_BD).unflatten(-1, (3, self.attention.num_heads, 1, -1))
        q_BN1H, *new_2BN1H = qkv.unbind(1)
        kept_2BNLH.index_copy_(3, at.position, torch.stack(new_2BN1H))
        seen_11L = (self._places_L.to(x_BD.device) <= at.position)[None, None]
        y = F.scaled_dot_product_attention(q_BN1H, *kept_2BNLH.unbind(0), attn_mask=seen_11L)
        return self.attention.out_proj(y.flatten(1))

    def _read(self, x_BLD: Tensor, causal: bool) -> Tensor:
        qkv = self.attention.Wqkv(x_BLD).unflatten(-1, (3, self.attention.num_heads, -1))
        qkv_3BNLH = qkv.permute(2, 0, 3, 1, 4)
        begin, self._position = self._position, self._position + x_BLD.shape[1]
        kept = self._kept_2BNLH
        if kept is None:
            _, batch, heads, _, width = qkv_3BNLH.shape
            make = qkv_3BNLH.new_zeros if backend.fixed_steps() else qkv_3BNLH.new_empty
            kept = make(2, batch, heads, self.length, width)
            self._kept_2BNLH = kept
        kept[:, :, :, begin : self._position] = qkv_3BNLH[1:]
        k_BNLH, v_BNLH = kept[:, :, :, : self._position].unbind(0)
        y = F.scaled_dot_product_attention(qkv_3BNLH[0], k_BNLH, v_BNLH, is_causal=causal)
        return self.attention.out_proj(y.transpose(1, 2).flatten(2))


class _BlockSteps:
    """A block: two norms, the mixer's steps and the MLP."""

    def __init__(self, block: Block, length: int) -> None:
        mixer = block.mixer
        if isinstance(mixer, HyenaOperator):
            self.mixer: _HyenaSteps | _AttentionSteps = _HyenaSteps(mixer, length)
        elif isinstance(mixer, SelfAttention):
            self.mixer = _AttentionSteps(mixer, length)
        else:
            raise MegabaseError(f"a block with {type(mixer).__name__} has no steps")
        self.block = block
        device = block.norm1.weight.device
        self._norm1 = linear.function_of(block.norm1, device)
        self._norm2 = linear.function_of(block.norm2, device)
        mlp = block.mlp
        self._mlp: Callable[[Tensor], Tensor] = mlp
        if linear.untouched(mlp):
            fc1, fc2 = linear.function_of(mlp.fc1, device), linear.function_of(mlp.fc2, device)
            self._mlp = lambda x_BD: fc2(F.gelu(fc1(x_BD), approximate="tanh"))
        self._dtype = block.norm1.weight.dtype

    def prefill(self, residual_BLD: Tensor) -> Tensor:
        block = self.block
        residual_BLD = residual_BLD + self.mixer.prefill(block.norm1(residual_BLD.to(self._dtype)))
        return residual_BLD + block.mlp(block.norm2(residual_BLD.to(self._dtype)))

    def step(self, residual_BD: Tensor, at: _At | None) -> Tensor:
        residual_BD = residual_BD + self.mixer.step(self._norm1(residual_BD.to(self._dtype)), at)
        return residual_BD + self._mlp(self._norm2(residual_BD.to(self._dtype)))


class BackboneSteps:
    """Embeddings, blocks and final norm, by position: `length` at most, without dropout."""

    def __init__(self, backbone: Backbone, length: int, residual_in_fp32: bool) -> None:
        self.backbone = backbone
        self.blocks = [_BlockSteps(cast("Block", layer), length) for layer in backbone.layers]
        tokens = backbone.embeddings.word_embeddings
        plain = type(tokens) is nn.Embedding and linear.untouched(tokens) and linear.present(tokens)
        table = tokens.weight
        self._tokens = partial(torch.index_select, table, 0) if plain else tokens
        self._dtype = table.dtype
        wide = torch.promote_types(self._dtype, torch.float32)
        self._wide = wide if residual_in_fp32 else self._dtype
        self._norm = linear.function_of(backbone.ln_f, table.device)
        self._fixed, self._start = backend.fixed_steps(), 0
        self._told = self._fixed or backbone.embeddings.position_embeddings is not None
        self._position_1 = torch.zeros(1, dtype=torch.long, device=_place(table))

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        for block in self.blocks:
            block.mixer.reset(batch)
        self._start = 0
        self._position_1.zero_()

    def prefill(self, ids_BL: Tensor) -> Tensor:
        """Read a prompt, at the beginning only; give its last final vector, (batch, width)."""
        residual = self.backbone.embeddings(ids_BL).to(self._wide)
        for block in self.blocks:
            residual = block.prefill(residual)
        self._start = ids_BL.shape[1]
        self._position_1.fill_(self._start)
        return self._norm(residual[:, -1].to(self._dtype))

    def step(self, ids_B: Tensor) -> Tensor:
        """Read one token of every sequence, before :meth:`go_on`; give its final vector."""
        at, residual = None, self._tokens(ids_B)
        position_1 = self._position_1.to(ids_B.device)  # elsewhere only where weights are offloaded
        if self._fixed:
            at = _At(position_1, (position_1 - self._start) % _BLOCK)
        if (positions := self.backbone.embeddings.position_embeddings) is not None:
            residual = residual + positions(position_1)
        residual = residual.to(self._wide)
        for block in self.blocks:
            residual = block.step(residual, at)
        return self._norm(residual.to(self._dtype))

    def go_on(self) -> None:
        """Go on to the next position."""
        for block in self.blocks:
            if isinstance(block.mixer, _HyenaSteps):
                block.mixer.go_on()
        if self._told:
            self._position_1 += 1


def can_stream(backbone: Backbone) -> bool:
    """Whether :func:`stream_backbone` gives what the backbone gives: Hyena blocks, float32 up."""

    def streams(block: Block) -> bool:
        mixer = block.mixer
        if not isinstance(mixer, HyenaOperator) or mixer.bidirectional != "none":
            return False
        parts = (block.norm1, block.norm2, mixer.in_proj, mixer.out_proj, mixer.short_filter)
        return linear.bare(*parts) and linear.untouched(block, mixer)

    dtype, layers = backbone.embeddings.word_embeddings.weight.dtype, backbone.layers
    known = dtype in (torch.float32, torch.float64) and linear.bare(backbone.ln_f)
    return known and all(streams(cast("Block", layer)) for layer in layers)


def stream_backbone(backbone: Backbone, ids_1L: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Give positions and final vectors, (1, positions, width), of one sequence, piece by piece.

    The backbone (:func:`can_stream`) is taken as in evaluation; ids are without padding before or
    between them.
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
            for gate, k_DL, skip_D in zip(reversed(gates), k_ODL, skips, strict=True):
                v *= gate
                skip_d = None if skip_D is None else skip_D[own]
                v = long_conv(v, k_DL[own].contiguous(), skip_d)
            y_DL[own] = v[0].mul_(out[0])
    return y_DL

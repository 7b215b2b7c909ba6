"""The shell's blocks, one position at a time, with what each mixer remembers.

A step does in few calls what a full pass does at one position: at one position of a small model the
calls cost more than the arithmetic.

Shape suffixes: B batch, L positions, D model width, P projected channels, K taps of the short
convolution, N heads, H width of a head, T positions of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers.attention import SelfAttention
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import ACTIVATIONS, HyenaOperator
from megabase.layers.linear import (
    bare,
    from_channel_major,
    function_of,
    present,
    to_channel_major,
    untouched,
)
from megabase.ops.online_conv import online_conv

__all__ = ["AttentionSteps", "BackboneSteps", "HyenaSteps"]

_BLOCK = 64


class _Steps(Protocol):
    def reset(self, batch: int) -> None: ...
    def prefill(self, x_BLD: Tensor) -> Tensor: ...
    def step(self, x_BD: Tensor) -> Tensor: ...


class HyenaSteps:
    """A causal Hyena operator of any order, position by position.

    Parameters
    ----------
    operator
        The operator; it is read, not changed.
    length
        Positions there will be at most. Time of a step and memory depend on it.
    """

    def __init__(self, operator: HyenaOperator, length: int) -> None:
        if operator.bidirectional != "none":
            raise MegabaseError("a bidirectional Hyena operator has no steps: it reads ahead")
        self.operator = operator
        k_ODM, self.skips = operator.filters(length)
        self.k_ODM = [k_DM.contiguous() for k_DM in k_ODM]
        self._in = function_of(operator.in_proj, k_ODM[0].device)
        self._out = function_of(operator.out_proj, k_ODM[0].device)
        self._short_K1P, self._bias_P = _short_taps(operator.short_filter, k_ODM[0].device)
        self.reset(1)

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        pairs = zip(self.k_ODM, self.skips, strict=True)
        self.convolutions = [online_conv(k_DM, skip_D, batch) for k_DM, skip_D in pairs]
        taps, _, channels = self._short_K1P.shape
        self._sums = self._bias_P.expand(_BLOCK + taps - 1, batch, channels).clone()
        # Each input is added to the positions its short taps reach; views are made once.
        self._reached = [self._sums[j : j + taps] for j in range(_BLOCK)]
        self._parts = [self._split(self._sums[j]) for j in range(_BLOCK)]
        self._place = 0

    def _split(self, sums_BP: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        first, *gates, v_BD = sums_BP.split(self.operator.d_model, dim=1)
        return first, v_BD, gates[::-1]

    def prefill(self, x_BLD: Tensor) -> Tensor:
        """Read a prompt of 1 position or more, at the beginning only."""
        operator, length = self.operator, x_BLD.shape[1]
        p_BPL = to_channel_major(operator.in_proj, x_BLD)
        taps = len(self._short_K1P)
        for lag in range(1, min(taps, length + 1)):  # of the first position after the prompt
            reached = self._sums[: taps - lag]
            reached.addcmul_(self._short_K1P[lag:], p_BPL[..., length - lag])
        p_BPL = operator.short(p_BPL)
        first, *gates, v_BDL = p_BPL.split(operator.d_model, dim=1)
        for gate, conv in zip(reversed(gates), self.convolutions, strict=True):
            v_BDL = conv.prefill(v_BDL * gate)
        y_BDL = ACTIVATIONS[operator.output_activation](v_BDL * first)
        return from_channel_major(operator.out_proj, y_BDL)

    def step(self, x_BD: Tensor) -> Tensor:
        """Read one position of every sequence, shape (batch, width)."""
        place = self._place
        self._reached[place].addcmul_(self._short_K1P, self._in(x_BD))
        first, v_BD, gates = self._parts[place]
        for gate, conv in zip(gates, self.convolutions, strict=True):
            torch.mul(v_BD, gate, out=conv.slot)
            v_BD = conv.advance()
        y_BD = v_BD * first
        if self.operator.output_activation != "id":
            y_BD = ACTIVATIONS[self.operator.output_activation](y_BD)
        self._place = place + 1
        if self._place == _BLOCK:
            rest = len(self._sums) - _BLOCK
            self._sums[:rest] = self._sums[_BLOCK:].clone()
            self._sums[rest:] = self._bias_P
            self._place = 0
        return self._out(y_BD.to(x_BD.dtype))


def _short_taps(short: nn.Conv1d, device: torch.device) -> tuple[Tensor, Tensor]:
    """Give the taps of a short convolution, the current position first, and its bias."""
    if bare(short, device=device):
        taps_PK, bias_P = short.weight[:, 0].flip(1), cast("Tensor", short.bias)
    else:  # what it answers to nothing is its bias, to a one its taps
        one_1P1 = torch.ones(1, short.in_channels, 1, dtype=short.weight.dtype, device=device)
        bias_P = short(torch.zeros_like(one_1P1))[0, :, 0]
        taps_PK = short(one_1P1)[0] - bias_P[:, None]
    return taps_PK.t()[:, None].contiguous(), bias_P


class AttentionSteps:
    """Causal self-attention with the keys and values of all positions so far.

    Parameters
    ----------
    attention
        The layer; it is read, not changed.
    length
        Positions there will be at most.
    """

    def __init__(self, attention: SelfAttention, length: int) -> None:
        if not attention.causal:
            raise MegabaseError("bidirectional attention has no steps: it reads ahead")
        self.attention, self.length = attention, length
        self.reset(1)

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        self._kept_2BNLH: Tensor | None = None
        self._position = 0

    def prefill(self, x_BLD: Tensor) -> Tensor:
        """Read a prompt of 1 position or more, at the beginning only."""
        return self._read(x_BLD, causal=True)

    def step(self, x_BD: Tensor) -> Tensor:
        """Read one position of every sequence, shape (batch, width)."""
        return self._read(x_BD[:, None], causal=False)[:, 0]

    def _read(self, x_BLD: Tensor, causal: bool) -> Tensor:
        qkv = self.attention.Wqkv(x_BLD).unflatten(-1, (3, self.attention.num_heads, -1))
        qkv_3BNLH = qkv.permute(2, 0, 3, 1, 4)
        begin, self._position = self._position, self._position + x_BLD.shape[1]
        kept = self._kept_2BNLH
        if kept is None:
            _, batch, heads, _, width = qkv_3BNLH.shape
            kept = qkv_3BNLH.new_empty(2, batch, heads, self.length, width)
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
            self.mixer: _Steps = HyenaSteps(mixer, length)
        elif isinstance(mixer, SelfAttention):
            self.mixer = AttentionSteps(mixer, length)
        else:
            raise MegabaseError(f"a block with {type(mixer).__name__} has no steps")
        self.block = block
        device = block.norm1.weight.device
        self._norm1 = function_of(block.norm1, device)
        self._norm2 = function_of(block.norm2, device)
        mlp = block.mlp
        self._mlp: Callable[[Tensor], Tensor] = mlp
        if untouched(mlp):
            fc1, fc2 = function_of(mlp.fc1, device), function_of(mlp.fc2, device)
            self._mlp = lambda x_BD: fc2(F.gelu(fc1(x_BD), approximate="tanh"))
        self._dtype = block.norm1.weight.dtype

    def prefill(self, residual_BLD: Tensor) -> Tensor:
        block = self.block
        residual_BLD = residual_BLD + self.mixer.prefill(block.norm1(residual_BLD.to(self._dtype)))
        return residual_BLD + block.mlp(block.norm2(residual_BLD.to(self._dtype)))

    def step(self, residual_BD: Tensor) -> Tensor:
        residual_BD = residual_BD + self.mixer.step(self._norm1(residual_BD.to(self._dtype)))
        return residual_BD + self._mlp(self._norm2(residual_BD.to(self._dtype)))


class BackboneSteps:
    """Embeddings, blocks and final norm, position by position.

    Parameters
    ----------
    backbone
        The shell; it is read, not changed, and has no dropout here.
    length
        Positions there will be at most.
    residual_in_fp32
        Whether the running sum is kept in float32 at least.
    """

    def __init__(self, backbone: Backbone, length: int, residual_in_fp32: bool) -> None:
        self.backbone = backbone
        self.blocks = [_BlockSteps(cast("Block", layer), length) for layer in backbone.layers]
        tokens = backbone.embeddings.word_embeddings
        plain = type(tokens) is nn.Embedding and untouched(tokens) and present(tokens)
        table = tokens.weight
        self._tokens = partial(torch.index_select, table, 0) if plain else tokens
        self._dtype = table.dtype
        wide = torch.promote_types(self._dtype, torch.float32)
        self._wide = wide if residual_in_fp32 else self._dtype
        self._norm = function_of(backbone.ln_f, table.device)
        self._position = 0

    def reset(self, batch: int) -> None:
        """Forget everything read; expect `batch` sequences."""
        for block in self.blocks:
            block.mixer.reset(batch)
        self._position = 0

    def prefill(self, ids_BL: Tensor) -> Tensor:
        """Read a prompt of 1 position or more, at the beginning only.

        Gives the final vector of its last position, shape (batch, width).
        """
        residual = self.backbone.embeddings(ids_BL).to(self._wide)
        for block in self.blocks:
            residual = block.prefill(residual)
        self._position = ids_BL.shape[1]
        return self._norm(residual[:, -1].to(self._dtype))

    def step(self, ids_B: Tensor) -> Tensor:
        """Read one token of every sequence; give its final vector, shape (batch, width)."""
        residual = self._tokens(ids_B)
        if (positions := self.backbone.embeddings.position_embeddings) is not None:
            residual = residual + positions(torch.full_like(ids_B[:1], self._position))
        residual = residual.to(self._wide)
        for block in self.blocks:
            residual = block.step(residual)
        self._position += 1
        return self._norm(residual.to(self._dtype))

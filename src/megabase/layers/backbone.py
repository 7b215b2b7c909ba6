"""The decoder backbone shared by HyenaDNA and the Transformer baseline.

Embeddings, blocks of mixer and MLP that each read a LayerNorm of the running sum, and a final
LayerNorm. The names are those of the published checkpoints, those of the attention too.

Shape suffixes of the attention: B batch, L positions, D model width, N heads, H width of a head,
Q query, K key.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import ResidualLinear, bare, product_dtype, untouched
from megabase.ops import backend
from megabase.ops.norm_mlp import MlpWeights, NormKind, NormWeights, add_norm, norm_mlp


class SelfAttention(nn.Module):
    """Self-attention through torch's fused operator.

    The thirds of ``Wqkv`` give queries, keys and values of all heads; when `causal` a position sees
    only itself and earlier ones; `dropout` is of attention weights.
    """

    def __init__(
        self, d_model: int, num_heads: int, causal: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise MegabaseError(
                f"expected a number of heads that divides the width {d_model}, got {num_heads}"
            )
        self.num_heads, self.causal, self.dropout = num_heads, causal, dropout
        self.Wqkv = nn.Linear(d_model, 3 * d_model)
        self.out_proj = ResidualLinear(d_model, d_model)

    def forward(
        self, x_BLD: Tensor, mask_BL: Tensor | None = None, attentions: list[Tensor] | None = None
    ) -> Tensor:
        """Mix positions of (batch, length, width); those masked by `mask_BL` are not attended to.

        `attentions` takes the attention weights, (batch, heads, length, length), which the fused
        operator never writes down.
        """
        qkv = self.Wqkv(x_BLD).unflatten(-1, (3, self.num_heads, -1))
        q_BNLH, k_BNLH, v_BNLH = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        if attentions is not None:
            scores_BNQK = q_BNLH @ k_BNLH.mT / q_BNLH.shape[-1] ** 0.5
            real_BL = x_BLD.new_ones(x_BLD.shape[:2]) if mask_BL is None else mask_BL
            scores_BNQK = scores_BNQK.masked_fill(~self.allowed(real_BL), float("-inf"))
            weights_BNQK = scores_BNQK.softmax(dim=-1)
            attentions.append(weights_BNQK)
            y_BNLH = F.dropout(weights_BNQK, dropout) @ v_BNLH
        else:
            y_BNLH = F.scaled_dot_product_attention(
                q_BNLH, k_BNLH, v_BNLH, None if mask_BL is None else self.allowed(mask_BL),
                dropout, is_causal=self.causal and mask_BL is None,
            )  # fmt: skip
        return self.out_proj(y_BNLH.transpose(1, 2).flatten(2))

    def allowed(self, mask_BL: Tensor) -> Tensor:
        """Give which key each query may see, (batch, 1, length, length)."""
        length = mask_BL.shape[1]
        allowed_B1QK = mask_BL.bool()[:, None, None, :].expand(-1, 1, length, -1)
        itself_QK = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
        if self.causal:
            allowed_B1QK = allowed_B1QK & torch.ones_like(itself_QK).tril()
        # A padded query may see itself: a row without any key has no softmax.
        return allowed_B1QK | itself_QK


def _drop(x: Tensor, probability: float, training: bool, sharded: Any) -> Tensor:
    if probability == 0 or not training:
        return x
    return F.dropout(x, probability) if sharded is None else sharded.dropout(x, probability)


def _normed(norm: nn.LayerNorm, residual: Tensor) -> Tensor:
    # The running sum may be wider (float32) than the weights; the block works in their dtype.
    return norm(residual.to(norm.weight.dtype))


def _add_norm(
    norm: nn.LayerNorm, hidden: Tensor, residual: Tensor | None, wide: bool
) -> tuple[Tensor | None, Tensor]:
    """Add to the running sum; give its norm too where one kernel does both."""
    if bare(norm, device=hidden.device) and backend.use_triton(hidden, residual, norm.weight):
        kind = NormKind(wide=wide, dtype=product_dtype(hidden))
        return add_norm(hidden, residual, NormWeights(norm.weight, norm.bias, norm.eps), kind)
    total = hidden if residual is None else hidden + residual
    return None, total.to(torch.promote_types(total.dtype, torch.float32)) if wide else total


class Embeddings(nn.Module):
    """Token embeddings, plus learned position embeddings when `positions` is above 0.

    Positions count from the left end of the input.
    """

    sharded: Any = None
    """What :mod:`megabase.parallel` puts here when a sequence lies on several processes."""

    def __init__(self, rows: int, d_model: int, positions: int = 0) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(rows, d_model)
        self.position_embeddings = nn.Embedding(positions, d_model) if positions > 0 else None

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Embed ids of shape (batch, length), or add positions to given embeddings."""
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.position_embeddings is not None:
            where = torch.arange if self.sharded is None else self.sharded.places
            places = where(hidden.shape[1], device=hidden.device)
            hidden = hidden + self.position_embeddings(places)
        return hidden


class _Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the tanh form of GELU."""

    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_inner)
        self.fc2 = ResidualLinear(d_inner, d_model)

    def fuses(self, x: Tensor, norm: nn.Module) -> bool:
        """Whether :meth:`fused` gives what the separate modules would."""
        plain = backend.active() == "reference" or backend.use_plain(x)
        known = untouched(self) and bare(norm, self.fc1, self.fc2, device=x.device)
        return known and self.fc1.bias is not None and not plain

    def fused(self, x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """Apply to the LayerNorm of `x` (to `x` without one), keeping only `x` for the gradient."""
        fc1, fc2 = self.fc1, self.fc2
        normed = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        weights = MlpWeights(*normed, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return norm_mlp(x, weights, product_dtype(x))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., d_model)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``, in add-before-norm form.

    The mixer is called as ``mixer(x, mask)``. `dropout_in` and `dropout` are of the block's input
    and of the mixer's output before they join the running sum, which is kept in float32 at least
    when `residual_in_fp32`.
    """

    sharded: Any = None  # as in Embeddings

    def __init__(
        self, mixer: nn.Module, d_model: int, d_inner: int, norm_eps: float = 1e-5,
        dropout_in: float = 0.0, dropout: float = 0.0, residual_in_fp32: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mixer = mixer
        self.norm1 = nn.LayerNorm(d_model, eps=norm_eps)
        self.mlp = _Mlp(d_model, d_inner)
        self.norm2 = nn.LayerNorm(d_model, eps=norm_eps)
        self.dropout_in, self.dropout = dropout_in, dropout
        self.residual_in_fp32 = residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
        attentions: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Give (output of the MLP, running sum before it), each (batch, length, width).

        A mixer that attends adds its weights to `attentions`.
        """
        hidden = _drop(hidden, self.dropout_in, self.training, self.sharded)
        normed, residual = _add_norm(self.norm1, hidden, residual, self.residual_in_fp32)
        mixer = self.mixer
        if self.sharded is not None:
            hidden = self.sharded.mix(self, residual, mask)
        elif isinstance(mixer, HyenaOperator) and mixer.fuses(residual, self.norm1, mask):
            hidden = mixer.fused(*((residual, self.norm1) if normed is None else (normed, None)))
        else:
            normed = _normed(self.norm1, residual) if normed is None else normed
            attends = attentions is not None and isinstance(mixer, SelfAttention)
            hidden = mixer(normed, mask, attentions) if attends else mixer(normed, mask)
        hidden = _drop(hidden, self.dropout, self.training, self.sharded)
        normed, residual = _add_norm(self.norm2, hidden, residual, self.residual_in_fp32)
        if self.mlp.fuses(residual, self.norm2):
            read = (residual, self.norm2) if normed is None else (normed, None)
            return self.mlp.fused(*read), residual
        return self.mlp(_normed(self.norm2, residual) if normed is None else normed), residual


class Backbone(nn.Module):
    """Embeddings, blocks, dropout of the last block's output, and the final LayerNorm."""

    sharded: Any = None  # as in Embeddings

    def __init__(
        self, embeddings: Embeddings, layers: Sequence[Block], d_model: int,
        norm_eps: float = 1e-5, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.ln_f = nn.LayerNorm(d_model, eps=norm_eps)
        self.dropout = dropout
        self.gradient_checkpointing = False
        self.segment = 1
        """Blocks in a row of which only the first one's input is kept from the forward pass, when
        they are computed again in the backward pass. Of N blocks N / segment + segment - 1 inputs
        are alive at once instead of N, and blocks are computed once more."""

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
        mask: Tensor | None = None, collect: bool = False, attentions: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:  # fmt: skip
        """Run the backbone on ids (batch, length) or embeddings (batch, length, width).

        Gives the output of the final LayerNorm and, when `collect`, the input of every block
        followed by that output. `mask` is True at real positions; `attentions` takes the weights of
        every block that attends.
        """
        hidden = self.embeddings(input_ids, inputs_embeds)
        residual: Tensor | None = None
        states: list[Tensor] = []
        # Models set the flag of a block that is computed again, and what computes it.
        recomputing = self.gradient_checkpointing and self.training
        segment = self.segment if recomputing and not collect else 1
        for first in range(0, len(self.layers), segment):
            if collect:
                states.append(hidden if residual is None else hidden + residual)
            run = self._blocks
            if segment > 1:
                hidden, residual = self._joined(first, hidden, residual)
                run = partial(cast("Any", self)._gradient_checkpointing_func, run)
            hidden, residual = run(first, first + segment, hidden, residual, mask, attentions)
        hidden = _drop(hidden, self.dropout, self.training, self.sharded)
        normed, total = _add_norm(self.ln_f, hidden, residual, False)
        out = _normed(self.ln_f, total) if normed is None else normed
        return out, (*states, out) if collect else None

    def _blocks(
        self, first: int, stop: int, hidden: Tensor, residual: Tensor | None,
        mask: Tensor | None, attentions: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Run some blocks in a row."""
        for i in range(first, min(stop, len(self.layers))):
            layer = self.layers[i]
            if self.training and getattr(layer, "gradient_checkpointing", False):
                hidden, residual = self._joined(i, hidden, residual)
            hidden, residual = layer(hidden, residual, mask, attentions)
        return hidden, residual

    def _joined(
        self, i: int, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Give what enters a block as one tensor to keep instead of two, where that is the same."""
        layer = self.layers[i]
        if residual is not None and isinstance(layer, Block) and layer.dropout_in == 0:
            total = hidden + residual
            wide = torch.promote_types(total.dtype, torch.float32)
            return (total.to(wide) if layer.residual_in_fp32 else total), None
        return hidden, residual

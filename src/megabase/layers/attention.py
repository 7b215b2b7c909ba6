"""Multi-head attention under the names of the published Transformer baseline.

Shape suffixes: B batch, L positions, D model width, N heads, H width of a head, Q query, K key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers.linear import ResidualLinear


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

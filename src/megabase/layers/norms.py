"""Norms of the running sum in the Mamba family.

Shape suffixes: B batch, L positions, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, over the last axis; see :class:`LayerNorm`."""

    bias = None

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, residual_BLD: Tensor, strands: int = 1) -> Tensor:
        """Normalize a running sum; see :meth:`LayerNorm.forward`."""
        return _normed(self, residual_BLD, strands)


class LayerNorm(nn.LayerNorm):
    """LayerNorm of one strand or of two."""

    def forward(self, input: Tensor, strands: int = 1) -> Tensor:
        """Normalize a running sum in float32 at least; give the dtype of the weights.

        With two strands the channels are two halves, each normalized by itself; the second one is
        in reverse order, and so are the weights it is multiplied by.
        """
        return _normed(self, input, strands)


Norm = RMSNorm | LayerNorm
"""The norm of a block."""


def make_norm(d_model: int, rms: bool, eps: float = 1e-5) -> Norm:
    """Build the norm of a block: :class:`RMSNorm`, or :class:`LayerNorm`."""
    return RMSNorm(d_model, eps) if rms else LayerNorm(d_model, eps=eps)


def _normed(norm: Norm, residual_BLD: Tensor, strands: int) -> Tensor:
    wide = residual_BLD.to(torch.promote_types(residual_BLD.dtype, torch.float32))
    weight = norm.weight.to(wide.dtype)
    bias = None if norm.bias is None else norm.bias.to(wide.dtype)
    if strands == 1:
        y = _normalise(norm, wide, weight, bias)
    else:
        y = _normalise(norm, wide.unflatten(-1, (2, -1)), None, None)
        y = y * torch.stack([weight, weight.flip(0)])
        if bias is not None:
            y = y + torch.stack([bias, bias.flip(0)])
        y = y.flatten(-2)
    return y.to(norm.weight.dtype)


def _normalise(norm: Norm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if isinstance(norm, RMSNorm):
        return F.rms_norm(x, norm.weight.shape, weight, norm.eps)
    return F.layer_norm(x, norm.weight.shape, weight, bias, norm.eps)


def add_norm(
    norm: nn.Module,
    hidden_BLD: Tensor,
    residual_BLD: Tensor | None,
    residual_in_fp32: bool = False,
    strands: int = 1,
) -> tuple[Tensor, Tensor]:
    """Add what the last block gave to the running sum (None at the first) and normalize it.

    Gives both; the sum in float32 at least when `residual_in_fp32`. `strands` is 2 when the
    channels are those of two strands, the second in reverse order.
    """
    total = hidden_BLD if residual_BLD is None else hidden_BLD + residual_BLD
    if residual_in_fp32:
        total = total.to(torch.promote_types(total.dtype, torch.float32))
    return norm(total) if strands == 1 else norm(total, strands), total

"""Linear maps between position-major and channel-major layouts, without transposed copies.

Shape suffixes: B batch, L positions, D input channels, E output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResidualLinear", "from_channel_major", "to_channel_major"]


class ResidualLinear(nn.Linear):
    """A linear map whose output joins the running sum; its first weights are drawn smaller."""


def to_channel_major(linear: nn.Linear, x_BLD: Tensor) -> Tensor:
    """Apply `linear` to (batch, length, in) and give a contiguous (batch, out, length)."""
    weight_BED = linear.weight.expand(x_BLD.shape[0], -1, -1)
    x_BDL = x_BLD.transpose(1, 2)
    if linear.bias is None:
        return torch.bmm(weight_BED, x_BDL)
    return torch.baddbmm(linear.bias[:, None], weight_BED, x_BDL)


def from_channel_major(linear: nn.Linear, x_BDL: Tensor) -> Tensor:
    """Apply `linear` to (batch, in, length) and give a contiguous (batch, length, out)."""
    weight_BDE = linear.weight.t().expand(x_BDL.shape[0], -1, -1)
    x_BLD = x_BDL.transpose(1, 2)
    if linear.bias is None:
        return torch.bmm(x_BLD, weight_BDE)
    return torch.baddbmm(linear.bias, x_BLD, weight_BDE)

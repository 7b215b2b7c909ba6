"""Linear maps between position-major and channel-major layouts, without transposed copies.

Shape suffixes: B batch, L positions, D input channels, E output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "ResidualLinear",
    "bare",
    "from_channel_major",
    "product_dtype",
    "to_channel_major",
]

_PLAIN = (nn.Linear, nn.LayerNorm, nn.Conv1d)


class ResidualLinear(nn.Linear):
    """A linear map whose output joins the running sum; its first weights are drawn smaller."""


def bare(*modules: nn.Module) -> bool:
    """Whether modules do nothing but what their weights say, so that an operator may use these.

    False for a module of another class (an adapter in its place), with hooks or with computed
    weights.
    """
    for module in modules:
        plain = type(module) in _PLAIN or type(module) is ResidualLinear
        hooked = (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        if not plain or hooked or "parametrizations" in module._modules:
            return False
    return True


def product_dtype(like: Tensor) -> torch.dtype | None:
    """Give the dtype autocast asks of matrix products where it is on, else None."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


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

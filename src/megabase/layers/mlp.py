"""The position-wise network of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from megabase.layers.linear import ResidualLinear, bare, product_dtype
from megabase.ops import backend
from megabase.ops.norm_mlp import norm_mlp

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the tanh form of GELU.

    Parameters
    ----------
    d_model
        Width of input and output.
    d_inner
        Width between the two maps.
    """

    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_inner)
        self.fc2 = ResidualLinear(d_inner, d_model)

    def fuses(self) -> bool:
        """Whether :meth:`fused` gives what the separate modules would."""
        hooked = self._forward_hooks or self._forward_pre_hooks or self._backward_hooks
        linear = bare(self.fc1, self.fc2) and self.fc1.bias is not None
        return linear and not hooked and backend.active() != "reference"

    def fused(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Apply to the LayerNorm of `x`, keeping only `x` for the backward pass."""
        return norm_mlp(
            x, norm.weight, norm.bias, norm.eps, self.fc1.weight, self.fc1.bias, self.fc2.weight,
            self.fc2.bias, product_dtype(x),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., d_model)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

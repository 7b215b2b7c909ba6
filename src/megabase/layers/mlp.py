"""The position-wise network of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from megabase.layers.linear import ResidualLinear, bare, product_dtype, untouched
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

    def fuses(self, x: Tensor, norm: nn.Module) -> bool:
        """Whether :meth:`fused` gives what the separate modules would."""
        return (
            untouched(self)
            and bare(norm, self.fc1, self.fc2, device=x.device)
            and self.fc1.bias is not None
            and backend.active() != "reference"
        )

    def fused(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Apply to the LayerNorm of `x`, keeping only `x` for the backward pass."""
        return norm_mlp(
            x, norm.weight, norm.bias, norm.eps, self.fc1.weight, self.fc1.bias, self.fc2.weight,
            self.fc2.bias, product_dtype(x),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., d_model)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

"""The position-wise network of a block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from megabase.layers.linear import ResidualLinear

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

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of shape (..., d_model)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

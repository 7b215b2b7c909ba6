"""LayerNorm and the position-wise network of a block, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from megabase.ops import backend
from megabase.ops.norm_mlp.blocked import OPERATOR, norm_mlp_blocked
from megabase.ops.norm_mlp.reference import norm_mlp_reference

__all__ = ["norm_mlp", "norm_mlp_blocked", "norm_mlp_reference"]


def norm_mlp(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None = None,
) -> Tensor:
    """Compute ``w2 gelu(w1 norm(x) + b1) + b2`` with the tanh form of GELU.

    Parameters
    ----------
    x
        Input, shape (..., width).
    norm_w, norm_b
        Weight and bias of the LayerNorm, shape (width,); without a weight nothing is normalised.
    eps
        Epsilon of the LayerNorm.
    w1_ED, b1_E, w2_DE, b2_D
        The two linear maps, shapes (inner, width), (inner,), (width, inner) and (width,).
    product
        Dtype of the matrix products; that of the weights when None.

    Returns
    -------
    Tensor
        Shape of `x`, in the dtype of the products.

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.

    Notes
    -----
    The fast path keeps only its inputs for the backward pass and computes the inner values again,
    piece by piece; sums over positions are in float32 at least.
    """
    given = (x, norm_w, norm_b, eps, w1_ED, b1_E, w2_DE, b2_D, product)
    if backend.active() == "reference":
        OPERATOR.check(*given)
        return norm_mlp_reference(*given)
    return norm_mlp_blocked(*given)

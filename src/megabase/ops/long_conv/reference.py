"""The definition of the long convolution, written as a matrix product.

Shape suffixes: B batch, D channels, L positions, M lags, T output position, S input position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_ELEMENTS = 1 << 27
"""Elements of the matrix that exist at a time: 512 MB in float32."""


def long_conv_reference(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve along the last axis by building the L x L matrix; see :func:`long_conv`.

    A matrix that is too large is built some rows at a time, and those again for the gradient.
    """
    channels, length = u_BDL.shape[-2:]
    dtype = torch.promote_types(torch.promote_types(u_BDL.dtype, k_DM.dtype), torch.float32)
    u, k_DM = u_BDL.to(dtype), k_DM.to(dtype)
    rows = max(1, _ELEMENTS // max(1, channels * length))
    if rows >= length:
        y_BDL = _rows(u, k_DM, 0, length, two_sided)
    else:
        parts = [
            checkpoint(
                _rows, u, k_DM, begin, min(begin + rows, length), two_sided, use_reentrant=False
            )
            for begin in range(0, length, rows)
        ]
        y_BDL = torch.cat(parts, dim=-1)
    if skip_D is not None:
        y_BDL = y_BDL + skip_D.to(dtype)[:, None] * u
    return y_BDL.to(u_BDL.dtype)


def _rows(u_BDL: Tensor, k_DM: Tensor, begin: int, end: int, two_sided: bool) -> Tensor:
    """Give the output positions from `begin` to `end`, (B, D, T)."""
    length = u_BDL.shape[-1]
    position = torch.arange(length, device=u_BDL.device)
    lag_TS = position[begin:end, None] - position[None, :]
    if two_sided:
        matrix_DTS = k_DM[:, lag_TS + length - 1]
    else:
        matrix_DTS = k_DM[:, lag_TS.clamp(min=0)] * (lag_TS >= 0)
    return torch.einsum("dts,bds->bdt", matrix_DTS, u_BDL)

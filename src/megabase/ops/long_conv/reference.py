"""The definition of the long convolution, written as a matrix product.

Shape suffixes: B batch, D channels, L positions, M lags, T output position, S input position.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["long_conv_reference"]


def long_conv_reference(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve along the last axis by building the whole L x L matrix; see :func:`long_conv`."""
    length = u_BDL.shape[-1]
    dtype = torch.promote_types(torch.promote_types(u_BDL.dtype, k_DM.dtype), torch.float32)
    position = torch.arange(length, device=u_BDL.device)
    lag_TS = position[:, None] - position[None, :]
    if two_sided:
        matrix_DTS = k_DM.to(dtype)[:, lag_TS + length - 1]
    else:
        taps_DTS = k_DM.to(dtype)[:, lag_TS.clamp(min=0)]
        matrix_DTS = taps_DTS * (lag_TS >= 0)
    y_BDL = torch.einsum("dts,bds->bdt", matrix_DTS, u_BDL.to(dtype))
    if skip_D is not None:
        y_BDL = y_BDL + skip_D.to(dtype)[:, None] * u_BDL.to(dtype)
    return y_BDL.to(u_BDL.dtype)

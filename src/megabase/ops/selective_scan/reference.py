"""The definition of the selective scan: one position after another.

Shape suffixes: B batch, L positions, E channels, N states per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan_reference(
    u_BLE: Tensor,
    delta_BLE: Tensor,
    A_EN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    *,
    D_E: Tensor | None = None,
    z_BLE: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state_BEN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan in a loop over positions; see :func:`megabase.ops.selective_scan.selective_scan`."""
    dtype = torch.promote_types(u_BLE.dtype, torch.float32)
    u, delta, B, C = (x.to(dtype) for x in (u_BLE, delta_BLE, B_BLN, C_BLN))
    if delta_bias_E is not None:
        delta = delta + delta_bias_E.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(u.shape[0], *A_EN.shape)
    if initial_state_BEN is not None:
        state = state + initial_state_BEN.to(dtype)
    y = []
    for t in range(u.shape[1]):
        delta_t, u_t = delta[:, t, :, None], u[:, t, :, None]
        state = torch.exp(delta_t * A_EN) * state + delta_t * B[:, t, None, :] * u_t
        y.append((state * C[:, t, None, :]).sum(dim=-1))
    y_BLE = torch.stack(y, dim=1)
    if D_E is not None:
        y_BLE = y_BLE + D_E * u
    if z_BLE is not None:
        y_BLE = y_BLE * F.silu(z_BLE.to(dtype))
    return y_BLE.to(u_BLE.dtype), state

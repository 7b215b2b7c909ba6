"""The selective scan: a linear recurrence whose step and gates depend on the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend
from megabase.ops.registry import Arguments, wants_gradient, wide_dtype, without_autocast
from megabase.ops.selective_scan.blocked import ScanInputs, scan_blocked
from megabase.ops.selective_scan.kernel import scan_kernel


def selective_scan(
    x: ScanInputs, *, softplus: bool = True, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence along a sequence.

    With ``d_t = softplus(delta_t + bias)``, for every channel and state::

        s_t = exp(d_t A) s_{t-1} + d_t B_t u_t
        y_t = (sum over states of C_t s_t + D u_t) * silu(z_t)

    Parameters
    ----------
    x
        The inputs.
    softplus
        Whether the step sizes go through softplus.
    reverse
        Whether to read from the last position to the first: every sequence is turned around, and
        the output back again. The initial state is then the one after the last position.

    Returns
    -------
    y_BLE : Tensor
        Shape and dtype of ``x.u``. Everything inside is float32 at least, under autocast too.
    state_BEN : Tensor
        States after the last position read, shape (batch, channels, states), float32 at least.

    Notes
    -----
    Mamba (arXiv 2312.00752), algorithm 2, with the discretization of its public code: the input
    matrix enters as ``d_t B_t`` (Euler), not as the zero-order hold of the paper's equation 4. The
    fast paths save their inputs and some states for the backward pass, and have no second
    derivative.
    """
    scan_blocked.check(*x, softplus, False)
    keep = wants_gradient(x)
    if backend.use_kernels(*x):
        dtype = wide_dtype(x.u.dtype)
        wide: Any = (t if t is None or t.dtype == dtype else t.to(dtype) for t in x)
        y_BLE, state_BEN, _ = scan_kernel(ScanInputs(*wide), softplus, reverse, keep, checked=True)
        return (y_BLE if y_BLE.dtype == x.u.dtype else y_BLE.to(x.u.dtype)), state_BEN
    with without_autocast(x.u):
        if reverse:
            u, delta, B, C = (t.flip(1) for t in (x.u, x.delta, x.B, x.C))
            z = None if x.z is None else x.z.flip(1)
            x = x._replace(u=u, delta=delta, B=B, C=C, z=z)
        if backend.use_reference():
            y_BLE, state_BEN = selective_scan_reference(x, softplus=softplus)
        else:
            y_BLE, state_BEN, _ = scan_blocked(x, softplus, keep, checked=True)
        return (y_BLE.flip(1) if reverse else y_BLE), state_BEN


def selective_scan_reference(x: ScanInputs, *, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """Scan one position after another: the definition of :func:`selective_scan`."""
    dtype = wide_dtype(x.u.dtype)
    u, delta, B, C = (t.to(dtype) for t in (x.u, x.delta, x.B, x.C))
    if x.bias is not None:
        delta = delta + x.bias.to(dtype)
    if softplus:
        delta = F.softplus(delta)
    state = u.new_zeros(u.shape[0], *x.A.shape)
    if x.initial is not None:
        state = state + x.initial.to(dtype)
    y = []
    for t in range(u.shape[1]):
        delta_t, u_t = delta[:, t, :, None], u[:, t, :, None]
        state = torch.exp(delta_t * x.A) * state + delta_t * B[:, t, None, :] * u_t
        y.append((state * C[:, t, None, :]).sum(dim=-1))
    y_BLE = torch.stack(y, dim=1)
    if x.D is not None:
        y_BLE = y_BLE + x.D * u
    if x.z is not None:
        y_BLE = y_BLE * F.silu(x.z.to(dtype))
    return y_BLE.to(x.u.dtype), state


_STEP = Arguments(
    "selective_step",
    {
        "u": "B E", "delta": "B E", "A": "E N", "B": "B N", "C": "B N", "D": "E", "z": "B E",
        "bias": "E", "initial": "B E N",
    },
)  # fmt: skip
"""Shapes of the inputs of one step."""


def selective_step(x: ScanInputs, *, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """Advance the recurrence of :func:`selective_scan` by one position.

    Parameters
    ----------
    x
        Inputs of the position: u, delta and z of shape (batch, channels), B and C of shape
        (batch, states). ``initial`` are the states before it, which are not changed.
    softplus
        As for :func:`selective_scan`.

    Returns
    -------
    y_BE : Tensor
        Output of the position, shape and dtype of ``x.u``.
    state_BEN : Tensor
        States after it.
    """
    _STEP.check(*x)
    with without_autocast(x.u):
        dtype = wide_dtype(x.u.dtype)
        u, delta, B, C = (t.to(dtype) for t in (x.u, x.delta, x.B, x.C))
        if x.bias is not None:
            delta = delta + x.bias
        if softplus:
            delta = F.softplus(delta)
        state_BEN = (delta * u)[..., None] * B[:, None]
        if x.initial is not None:
            state_BEN = torch.exp(delta[..., None] * x.A) * x.initial + state_BEN
        y_BE = (state_BEN * C[:, None]).sum(dim=-1)
        if x.D is not None:
            y_BE = y_BE + x.D * u
        if x.z is not None:
            y_BE = y_BE * F.silu(x.z.to(dtype))
        return y_BE.to(x.u.dtype), state_BEN

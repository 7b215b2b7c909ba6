"""The selective scan: a linear recurrence whose step and gates depend on the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops.long_conv.fft import without_autocast
from megabase.ops.selective_scan.blocked import OPERATOR, selective_scan_blocked
from megabase.ops.selective_scan.kernel import selective_scan_kernel
from megabase.ops.selective_scan.reference import selective_scan_reference

__all__ = [
    "selective_scan",
    "selective_scan_blocked",
    "selective_scan_kernel",
    "selective_scan_reference",
    "selective_step",
]


def selective_scan(
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
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence along a sequence.

    With ``d_t = softplus(delta_t + delta_bias)``, for every channel and state::

        s_t = exp(d_t A) s_{t-1} + d_t B_t u_t
        y_t = (sum over states of C_t s_t + D u_t) * silu(z_t)

    Parameters
    ----------
    u_BLE
        Input, shape (batch, length, channels).
    delta_BLE
        Step sizes before bias and softplus, shape of `u_BLE`.
    A_EN
        Decay rates, shape (channels, states). Negative in every published model.
    B_BLN, C_BLN
        What enters and what leaves the states, shape (batch, length, states).
    D_E
        Weight of the input that skips the states, shape (channels,); left out when None.
    z_BLE
        Gate, shape of `u_BLE`; left out when None.
    delta_bias_E
        Bias of the step sizes, shape (channels,); left out when None.
    delta_softplus
        Whether the step sizes go through softplus.
    initial_state_BEN
        States before the first position, shape (batch, channels, states); zeros when None.
    reverse
        Whether to read from the last position to the first: every sequence is turned around, and
        the output back again. The initial state is then the one after the last position.

    Returns
    -------
    y_BLE : Tensor
        Shape and dtype of `u_BLE`. Everything inside is float32 at least, under autocast too.
    state_BEN : Tensor
        States after the last position read, shape (batch, channels, states), float32 at least.

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.

    Notes
    -----
    Mamba (arXiv 2312.00752), algorithm 2, with the discretisation of its public code: the input
    matrix enters as ``d_t B_t`` (Euler), not as the zero-order hold of the paper's equation 4. The
    fast paths save their inputs and some states for the backward pass, and have no second
    derivative.
    """
    options: dict[str, Any] = {
        "D_E": D_E,
        "z_BLE": z_BLE,
        "delta_bias_E": delta_bias_E,
        "delta_softplus": delta_softplus,
        "initial_state_BEN": initial_state_BEN,
    }
    along = (u_BLE, delta_BLE, B_BLN, C_BLN)
    others = (D_E, z_BLE, delta_bias_E, initial_state_BEN)
    if backend.use_kernels(*along, A_EN, *others):
        u, delta, B, C = along
        return selective_scan_kernel(u, delta, A_EN, B, C, **options, reverse=reverse)
    OPERATOR.check(u_BLE, delta_BLE, A_EN, B_BLN, C_BLN, *others, delta_softplus)
    with without_autocast(u_BLE):
        if reverse:
            along = tuple(x.flip(1) for x in along)
            options["z_BLE"] = None if z_BLE is None else z_BLE.flip(1)
        u, delta, B, C = along
        run = selective_scan_reference if backend.use_reference() else selective_scan_blocked
        y_BLE, state_BEN = run(u, delta, A_EN, B, C, **options)  # pyright: ignore[reportCallIssue]
        return (y_BLE.flip(1) if reverse else y_BLE), state_BEN


def selective_step(
    state_BEN: Tensor,
    u_BE: Tensor,
    delta_BE: Tensor,
    A_EN: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    *,
    D_E: Tensor | None = None,
    z_BE: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Advance the recurrence of :func:`selective_scan` by one position.

    Parameters
    ----------
    state_BEN
        States before the position, shape (batch, channels, states).
    u_BE, delta_BE, z_BE
        Input, step size and gate of the position, shape (batch, channels).
    B_BN, C_BN
        Shape (batch, states).
    A_EN, D_E, delta_bias_E, delta_softplus
        As for :func:`selective_scan`.

    Returns
    -------
    y_BE : Tensor
        Output of the position, shape and dtype of `u_BE`.
    state_BEN : Tensor
        States after it; the given ones are not changed.
    """
    if state_BEN.dim() != 3:
        raise OperatorError(
            "selective_step: state must have shape (batch, channels, states), found "
            f"{tuple(state_BEN.shape)}"
        )
    batch, channels, states = state_BEN.shape
    expected = {
        "u": (u_BE, (batch, channels)), "delta": (delta_BE, (batch, channels)),
        "A": (A_EN, (channels, states)), "B": (B_BN, (batch, states)),
        "C": (C_BN, (batch, states)), "D": (D_E, (channels,)), "z": (z_BE, (batch, channels)),
        "delta_bias": (delta_bias_E, (channels,)),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise OperatorError(
                f"selective_step: {name} must have shape {shape} as state has "
                f"{tuple(state_BEN.shape)}, found {tuple(tensor.shape)}"
            )
    with without_autocast(u_BE):
        dtype = torch.promote_types(u_BE.dtype, torch.float32)
        u, delta, B, C = (x.to(dtype) for x in (u_BE, delta_BE, B_BN, C_BN))
        if delta_bias_E is not None:
            delta = delta + delta_bias_E
        if delta_softplus:
            delta = F.softplus(delta)
        decay_BEN = torch.exp(delta[..., None] * A_EN)
        state_BEN = decay_BEN * state_BEN + (delta * u)[..., None] * B[:, None]
        y_BE = (state_BEN * C[:, None]).sum(dim=-1)
        if D_E is not None:
            y_BE = y_BE + D_E * u
        if z_BE is not None:
            y_BE = y_BE * F.silu(z_BE.to(dtype))
        return y_BE.to(u_BE.dtype), state_BEN

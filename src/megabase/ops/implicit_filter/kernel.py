"""The implicit filter by ``megabase-kernels``, block of lags by block of lags.

Shape suffixes: M lags, E features, W width, C filter channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megabase.ops import backend, kernels


def takes(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
) -> bool:
    """Whether the kernels compute this: CPU tensors of float32 or float64, all alike."""
    given = (z_ME, t_M, freq_W, last_CW, rate_C, *weights, *biases)
    return (
        kernels.alike(z_ME.dtype, *given)
        and backend.use_kernels(*given)
        and len(weights) <= kernels.package().MAX_LAYERS
        and z_ME.numel() > 0
    )


def _run(
    inputs: tuple[Tensor | None, ...],
    filters: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    shift: float,
    found: Sequence[Tensor | None] = (),
) -> None:
    z_ME, _, _, _, last_CW = inputs
    assert z_ME is not None
    assert last_CW is not None
    kept = [kernels.dense(t) for t in (*inputs, filters, *weights, *biases)]
    kernels.package().native.filter(
        z_ME.dtype == torch.float64,
        [*z_ME.shape, last_CW.shape[1], last_CW.shape[0], len(weights)], shift,
        [kernels.array(t) for t in (*kept, *found)], len(found) > 0, torch.get_num_threads(),
    )  # fmt: skip


def forward(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    """Compute the taps, shape (channels, lags)."""
    k_CM = torch.empty(last_CW.shape[0], z_ME.shape[0], dtype=z_ME.dtype, device=z_ME.device)
    _run((z_ME, t_M, freq_W.view(-1), rate_C, last_CW), k_CM, weights, biases, shift)
    return k_CM


def backward(
    dk_CM: Tensor,
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
    grads: tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]],
) -> None:
    """Fill the gradients of z (unless it is empty), freq, last, weights and biases."""
    dz_ME, dfreq_W, dlast_CW, dweights, dbiases = grads
    found = [dz_ME if dz_ME.numel() else None, dfreq_W.view(-1), dlast_CW, *dweights, *dbiases]
    _run((z_ME, t_M, freq_W.view(-1), rate_C, last_CW), dk_CM, weights, biases, shift, found)

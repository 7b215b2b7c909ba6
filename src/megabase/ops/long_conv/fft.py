"""The long convolution by FFT, with a backward pass that keeps only its inputs.

Shape suffixes: B batch, D channels, L positions, M lags, N transform length, F frequencies;
b and c are blocks of B and D.

Work goes block by block of channels, so that one block's spectra stay in the cache and nothing of
size 2L lives longer than its block. The backward pass transforms `u`, `k` and the incoming
gradient anew: that is cheaper than reading saved spectra back from memory, and keeps memory at the
size of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megabase.ops.long_conv.lengths import fft_length

__all__ = ["block_slices", "circular_kernel", "long_conv_fft"]

BLOCK_SAMPLES = 1 << 20
"""Samples per transform call: large enough to fill all cores, small enough for the cache."""

MIN_ROWS = 16
"""Rows per transform call at least, because the library parallelises over rows."""


def block_slices(batch: int, channels: int, n_fft: int) -> tuple[list[slice], list[slice]]:
    """Cut batch and channels into blocks of about `BLOCK_SAMPLES` samples."""
    rows = max(MIN_ROWS, BLOCK_SAMPLES // n_fft)
    per_batch = min(batch, rows)
    per_channel = max(1, rows // max(1, per_batch))
    return (
        [slice(i, min(i + per_batch, batch)) for i in range(0, batch, max(1, per_batch))],
        [slice(i, min(i + per_channel, channels)) for i in range(0, channels, per_channel)],
    )


def circular_kernel(k_DM: Tensor, length: int, n_fft: int, two_sided: bool) -> Tensor:
    """Lay lags out on a circle of `n_fft`: lag j at j, lag -j at n_fft - j."""
    if not two_sided:
        return torch.nn.functional.pad(k_DM, (0, n_fft - length))
    k_DN = k_DM.new_zeros(k_DM.shape[0], n_fft)
    k_DN[:, :length] = k_DM[:, length - 1 :]
    if length > 1:
        k_DN[:, 1 - length :] = k_DM[:, : length - 1]
    return k_DN


def _lags_of_circle(k_DN: Tensor, length: int, two_sided: bool) -> Tensor:
    """Undo :func:`circular_kernel`."""
    if not two_sided:
        return k_DN[:, :length]
    if length == 1:
        return k_DN[:, :1]
    return torch.cat([k_DN[:, 1 - length :], k_DN[:, :length]], dim=1)


def _spectra(
    k_DM: Tensor,
    skip_D: Tensor | None,
    blocks: list[slice],
    length: int,
    n_fft: int,
    two_sided: bool,
    dtype: torch.dtype,
) -> Iterator[tuple[slice, Tensor]]:
    for c in blocks:
        K_cF = torch.fft.rfft(circular_kernel(k_DM[c].to(dtype), length, n_fft, two_sided))
        if skip_D is not None:
            # The skip term is a tap at lag 0, whose spectrum is flat.
            K_cF = K_cF + skip_D[c, None].to(dtype)
        yield c, K_cF


class _LongConv(torch.autograd.Function):
    """y = k * u + skip u, saving u, k and skip only."""

    @staticmethod
    def forward(
        ctx: Any, u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None, two_sided: bool
    ) -> Tensor:
        ctx.save_for_backward(u_BDL, k_DM, skip_D)
        ctx.two_sided = two_sided
        batch, channels, length = u_BDL.shape
        dtype = torch.promote_types(torch.promote_types(u_BDL.dtype, k_DM.dtype), torch.float32)
        n_fft = fft_length(2 * length - 1)
        rows, columns = block_slices(batch, channels, n_fft)
        y_BDL = torch.empty(u_BDL.shape, dtype=u_BDL.dtype, device=u_BDL.device)
        for c, K_cF in _spectra(k_DM, skip_D, columns, length, n_fft, two_sided, dtype):
            for b in rows:
                U_bcF = torch.fft.rfft(u_BDL[b, c].to(dtype), n=n_fft)
                y_BDL[b, c] = torch.fft.irfft(U_bcF.mul_(K_cF), n=n_fft)[..., :length]
        return y_BDL

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_BDL,) = grads
        u_BDL, k_DM, skip_D = ctx.saved_tensors
        needs_u, needs_k, needs_skip, _ = ctx.needs_input_grad
        batch, channels, length = u_BDL.shape
        dtype = torch.promote_types(torch.promote_types(u_BDL.dtype, k_DM.dtype), torch.float32)
        n_fft = fft_length(2 * length - 1)
        rows, columns = block_slices(batch, channels, n_fft)
        du_BDL = torch.empty(u_BDL.shape, dtype=u_BDL.dtype, device=u_BDL.device)
        dk_DM = torch.empty(k_DM.shape, dtype=k_DM.dtype, device=k_DM.device)
        dskip_D = None if skip_D is None else torch.empty_like(skip_D)
        needs_filter = needs_k or needs_skip
        for c, K_cF in _spectra(k_DM, skip_D, columns, length, n_fft, ctx.two_sided, dtype):
            K_cF = K_cF.conj_physical_()  # correlation, not convolution, in the backward pass
            dK_cF = torch.zeros_like(K_cF) if needs_filter else None
            for b in rows:
                G_bcF = torch.fft.rfft(dy_BDL[b, c].to(dtype), n=n_fft)
                if dK_cF is not None:
                    U_bcF = torch.fft.rfft(u_BDL[b, c].to(dtype), n=n_fft)
                    dK_cF += U_bcF.conj_physical_().mul_(G_bcF).sum(dim=0)
                if needs_u:
                    du_BDL[b, c] = torch.fft.irfft(G_bcF.mul_(K_cF), n=n_fft)[..., :length]
            if dK_cF is not None:
                dk_cN = torch.fft.irfft(dK_cF, n=n_fft)
                dk_DM[c] = _lags_of_circle(dk_cN, length, ctx.two_sided).to(dk_DM.dtype)
                if dskip_D is not None:
                    dskip_D[c] = dk_cN[:, 0].to(dskip_D.dtype)
        return (
            du_BDL if needs_u else None,
            dk_DM if needs_k else None,
            dskip_D if needs_skip else None,
            None,
        )


@torch.compiler.disable
def long_conv_fft(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve along the last axis by blocked FFTs; see :func:`megabase.ops.long_conv.long_conv`."""
    # FFTs run in at least float32 whatever autocast says; the casts above are explicit.
    with torch.autocast(device_type=u_BDL.device.type, enabled=False):
        return _LongConv.apply(u_BDL, k_DM, skip_D, two_sided)  # pyright: ignore[reportReturnType]

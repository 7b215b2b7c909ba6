"""The long convolution by FFT, with a backward pass that keeps only its inputs.

Shape suffixes: B batch, D channels, L positions, M lags, N transform length, F frequencies;
b and c are blocks of B and D.

Work goes block by block, so that one block's spectra stay in the cache and nothing of size 2L
lives longer than its block. The backward pass transforms `u`, `k` and the incoming gradient anew:
that is cheaper than reading saved spectra back from memory, and keeps memory at the size of the
inputs.

The two passes are registered as operators of torch, so that compilers take them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megabase.ops.fft_lengths import fft_length, lags
from megabase.ops.registry import Operator

BLOCK_SAMPLES = 1 << 20
"""Samples per transform call: large enough to fill all cores, small enough for the cache."""

MIN_ROWS = 16
"""Rows per transform call at least, because the library parallelises over rows."""


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """Give the dtype sums are formed in: float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: dtypes are chosen here, and transforms are in float32 at least."""
    kind = like.device.type
    if not torch.amp.autocast_mode.is_autocast_available(kind):  # of the meta device
        return nullcontext()
    return torch.autocast(device_type=kind, enabled=False)


def blocks(batch: int, channels: int, n_fft: int) -> tuple[list[slice], list[slice]]:
    """Cut batch and channels into blocks of about `BLOCK_SAMPLES` samples, channels first."""
    rows = max(MIN_ROWS, BLOCK_SAMPLES // n_fft)
    per_channel = max(1, min(channels, rows))
    per_batch = max(1, rows // per_channel)
    return (
        [slice(i, min(i + per_batch, batch)) for i in range(0, batch, per_batch)],
        [slice(i, min(i + per_channel, channels)) for i in range(0, channels, per_channel)],
    )


@dataclass
class FilterSpectra:
    """Transforms of a filter with its skip term, and the way back for their gradients.

    Attributes
    ----------
    taps, skip
        Taps (channels, lags) and skip term (channels,).
    length
        Positions of the input.
    two_sided
        Whether the taps have negative lags.
    dtype
        Dtype of the samples.
    """

    taps: Tensor
    skip: Tensor | None
    length: int
    two_sided: bool
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.n_fft = fft_length(2 * self.length - 1)

    def transform(self, c: slice) -> Tensor:
        """Transform the taps of channels `c`, laid on a circle: lag j at j, lag -j at N - j."""
        k_cM, length = self.taps[c].to(self.dtype), self.length
        if self.two_sided:
            k_cN = k_cM.new_zeros(k_cM.shape[0], self.n_fft)
            k_cN[:, :length] = k_cM[:, length - 1 :]
            k_cN[:, self.n_fft - length + 1 :] = k_cM[:, : length - 1]
            K_cF = torch.fft.rfft(k_cN)
        else:
            K_cF = torch.fft.rfft(k_cM, n=self.n_fft)
        if self.skip is not None:
            # The skip term is a tap at lag 0, whose spectrum is flat.
            K_cF += self.skip[c, None].to(self.dtype)
        return K_cF

    def gradient(self, dK_cF: Tensor, c: slice, dk_DM: Tensor, dskip_D: Tensor | None) -> None:
        """Write the gradients of channels `c` from the gradient of their spectrum."""
        dk_cN, length = torch.fft.irfft(dK_cF, n=self.n_fft), self.length
        if self.two_sided:
            dk_DM[c, length - 1 :] = dk_cN[:, :length].to(dk_DM.dtype)
            dk_DM[c, : length - 1] = dk_cN[:, self.n_fft - length + 1 :].to(dk_DM.dtype)
        else:
            dk_DM[c] = dk_cN[:, :length].to(dk_DM.dtype)
        if dskip_D is not None:
            dskip_D[c] = dk_cN[:, 0].to(dskip_D.dtype)


def _padded_blocks(
    x_BDL: Tensor, rows: list[slice], c: slice, work_bcN: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Transform blocks of rows of channels `c`, through one zero-padded buffer."""
    length = x_BDL.shape[-1]
    for b in rows:
        x_bcL = x_BDL[b, c]
        padded_bcN = work_bcN[: x_bcL.shape[0], : x_bcL.shape[1]]
        padded_bcN[..., :length] = x_bcL
        yield b, torch.fft.rfft(padded_bcN)


def _work(
    rows: list[slice], columns: list[slice], n_fft: int, like: Tensor, dtype: torch.dtype
) -> Tensor:
    batch = max((b.stop - b.start for b in rows), default=0)
    channels = max((c.stop - c.start for c in columns), default=0)
    return torch.zeros(batch, channels, n_fft, dtype=dtype, device=like.device)


@Operator(
    "long_conv",
    "(Tensor u, Tensor k, Tensor? skip, bool two_sided) -> Tensor",
    {"u": "B D L", "k": "D M", "skip": "D"},
    rules={"M": lags},
    least={"L": 1},
).implementation
def _forward(u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None, two_sided: bool) -> Tensor:
    batch, channels, length = u_BDL.shape
    dtype = wide_dtype(u_BDL, k_DM)
    spectra = FilterSpectra(k_DM, skip_D, length, two_sided, dtype)
    rows, columns = blocks(batch, channels, spectra.n_fft)
    y_BDL = torch.empty(u_BDL.shape, dtype=u_BDL.dtype, device=u_BDL.device)
    with without_autocast(u_BDL):
        work_bcN = _work(rows, columns, spectra.n_fft, u_BDL, dtype)
        for c in columns:
            K_cF = spectra.transform(c)
            for b, U_bcF in _padded_blocks(u_BDL, rows, c, work_bcN):
                y_BDL[b, c] = torch.fft.irfft(U_bcF.mul_(K_cF), n=spectra.n_fft)[..., :length]
    return y_BDL


@Operator(
    "long_conv_backward",
    "(Tensor dy, Tensor u, Tensor k, Tensor? skip, bool two_sided, bool needs_u, "
    "bool needs_filter) -> (Tensor, Tensor, Tensor)",
    {"dy": "B D L", "u": "B D L", "k": "D M", "skip": "D"},
    rules={"M": lags},
    least={"L": 1},
).implementation
def _backward(
    dy_BDL: Tensor,
    u_BDL: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None,
    two_sided: bool,
    needs_u: bool,
    needs_filter: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u_BDL.shape
    dtype = wide_dtype(u_BDL, k_DM)
    spectra = FilterSpectra(k_DM, skip_D, length, two_sided, dtype)
    rows, columns = blocks(batch, channels, spectra.n_fft)
    du_BDL, dk_DM, dskip_D = _backward_shapes(u_BDL, k_DM, skip_D, needs_u, needs_filter)
    with without_autocast(u_BDL):
        work_bcN = _work(rows, columns, spectra.n_fft, u_BDL, dtype)
        for c in columns:
            # A correlation is a product with the conjugate.
            K_cF = spectra.transform(c).conj_physical_()
            dK_cF = torch.zeros_like(K_cF)
            for b, G_bcF in _padded_blocks(dy_BDL, rows, c, work_bcN):
                if needs_filter:
                    _, U_bcF = next(_padded_blocks(u_BDL, [b], c, work_bcN))
                    dK_cF += U_bcF.conj_physical_().mul_(G_bcF).sum(dim=0)
                if needs_u:
                    du_bcN = torch.fft.irfft(G_bcF.mul_(K_cF), n=spectra.n_fft)
                    du_BDL[b, c] = du_bcN[..., :length].to(du_BDL.dtype)
            if needs_filter:
                spectra.gradient(dK_cF, c, dk_DM, None if skip_D is None else dskip_D)
    return du_BDL, dk_DM, dskip_D


def _backward_shapes(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None, needs_u: bool, needs_filter: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Make room for the gradients; one that is not wanted has no elements."""
    return (
        u_BDL.new_empty(u_BDL.shape if needs_u else (0,)),
        k_DM.new_empty(k_DM.shape if needs_filter else (0,)),
        k_DM.new_empty((0,))
        if skip_D is None or not needs_filter
        else skip_D.new_empty(skip_D.shape),
    )


@_forward.register_fake
def _(u_BDL: Tensor, *_: Any) -> Tensor:
    return u_BDL.new_empty(u_BDL.shape)


@_backward.register_fake
def _(
    dy_BDL: Tensor,
    u_BDL: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None,
    _: bool,
    needs_u: bool,
    needs_filter: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_shapes(u_BDL, k_DM, skip_D, needs_u, needs_filter)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.two_sided = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy_BDL: Tensor) -> tuple[Tensor | None, ...]:
    u_BDL, k_DM, skip_D = ctx.saved_tensors
    needs_u, needs_k, needs_skip, _ = ctx.needs_input_grad
    du_BDL, dk_DM, dskip_D = _backward(
        dy_BDL, u_BDL, k_DM, skip_D, ctx.two_sided, needs_u, needs_k or needs_skip
    )
    return (
        du_BDL if needs_u else None,
        dk_DM if needs_k else None,
        dskip_D if needs_skip else None,
        None,
    )


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def long_conv_fft(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve by blocked FFTs; see :func:`megabase.ops.long_conv.long_conv`."""
    return _forward(u_BDL, k_DM, skip_D, two_sided)

"""The Hyena mixer by ``megabase-kernels``: everything but the transforms in C++.

Shape suffixes: B batch, L positions, D width, K taps, N transform length, F frequencies; b and c
are a block of sequences and of channels.

Of the length of the sequence are only the input, the output and what the transforms read and write:
one array forward, two backward. LayerNorm, projection, short convolution and gates happen to blocks
of positions that stay in a core's cache; their values are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.hyena_mixer.plan import Mixer, transform_blocks

__all__ = ["backward", "forward", "takes"]

_OPEN, _CLOSE, _OPEN_BACKWARD, _BACKWARD = range(4)


def takes(m: Mixer) -> bool:
    """Whether the kernels compute this mixer: CPU tensors of float32 or float64, all alike."""
    given = (m.x, m.norm.weight, m.norm.bias, m.w_in, m.b_in, m.w, m.b, m.k, m.w_out, m.b_out)
    return (
        kernels.alike(m.dtype, *given)
        and backend.use_kernels(*given)
        and m.w.shape[-1] <= kernels.package().MAX_TAPS
        and m.x.numel() > 0
    )


class _Call:
    """Arguments of the kernels for one mixer."""

    def __init__(self, m: Mixer, sums: bool) -> None:
        self.m = m
        self.x = m.x.contiguous()
        self.given = [
            None if t is None else t.contiguous()
            for t in (
                m.norm.weight, m.norm.bias, self.x, m.w_in, m.b_in, m.w, m.b, m.w_out, m.b_out,
            )
        ]  # fmt: skip
        self.double = m.dtype == torch.float64
        self.sizes = [m.batch, m.length, m.width, m.w.shape[-1], m.after, int(sums)]

    def run(self, half: int, *further: Tensor | None) -> None:
        kernels.package().native.mixer(
            self.double, self.sizes, self.m.norm.eps,
            [kernels.address(t) for t in (*self.given, *further)], half, torch.get_num_threads(),
        )  # fmt: skip

    def spectra(
        self, U: Tensor, K: Tensor, G: Tensor | None = None, dK: Tensor | None = None
    ) -> None:
        kernels.package().native.spectra(
            self.double, [*U.shape], U.data_ptr(), kernels.address(G), K.data_ptr(),
            kernels.address(dK), torch.get_num_threads(),
        )  # fmt: skip


def _room(m: Mixer) -> Tensor:
    return torch.empty(m.batch, m.width, m.length, dtype=m.dtype)


def _blocks(m: Mixer) -> Iterator[tuple[slice, Tensor, list[slice]]]:
    """Give blocks of channels with the spectrum of their filter, and the sequences in blocks."""
    rows, channels = transform_blocks(m.batch, m.width, m.n_fft)
    for c in channels:
        yield c, m.spectra.transform(c).contiguous(), rows


def _padded(m: Mixer) -> Tensor:
    rows, channels = transform_blocks(m.batch, m.width, m.n_fft)
    return torch.zeros(rows[0].stop, channels[0].stop, m.n_fft, dtype=m.dtype)


def _transform(u_bcL: Tensor, work_bcN: Tensor) -> Tensor:
    part = work_bcN[: u_bcL.shape[0], : u_bcL.shape[1]]
    part[..., : u_bcL.shape[2]] = u_bcL
    return torch.fft.rfft(part)


def forward(m: Mixer) -> Tensor:
    """Compute the output, shape (batch, length, width)."""
    call, u_BDL = _Call(m, sums=False), _room(m)
    out_BLD = torch.empty(m.batch, m.length, m.width, dtype=m.dtype)
    call.run(_OPEN, u_BDL, out_BLD)
    work = _padded(m)
    for c, K_cF, rows in _blocks(m):
        for b in rows:
            U_bcF = _transform(u_BDL[b, c], work)
            call.spectra(U_bcF, K_cF)
            u_BDL[b, c] = torch.fft.irfft(U_bcF, n=m.n_fft)[..., : m.length]
    call.run(_CLOSE, u_BDL, out_BLD)
    return out_BLD


def backward(m: Mixer, dy_BLD: Tensor, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Fill `grads`, in the order of the inputs; one without elements is not wanted.

    Parameters
    ----------
    m
        The mixer.
    dy_BLD
        Gradient of the output, shape (batch, length, width).
    grads
        Of input, LayerNorm's weight and bias, projection, its bias, short convolution, its bias,
        filter, skip, output projection, its bias.
    """
    dx, dnorm_w, dnorm_b, dw_in, db_in, dw, db, dk, dskip, dw_out, db_out = grads
    sums = dw_in.numel() > 0
    call, u_BDL, g_BDL = _Call(m, sums), _room(m), _room(m)
    dy_BLD = dy_BLD.to(m.dtype).contiguous()
    call.run(_OPEN_BACKWARD, u_BDL, g_BDL, dy_BLD)
    work = _padded(m)
    needs_filter = dk.numel() > 0
    for c, K_cF, rows in _blocks(m):
        dK_cF = torch.zeros_like(K_cF) if needs_filter else None
        for b in rows:
            U_bcF, G_bcF = _transform(u_BDL[b, c], work), _transform(g_BDL[b, c], work)
            call.spectra(U_bcF, K_cF, G_bcF, dK_cF)
            u_BDL[b, c] = torch.fft.irfft(U_bcF, n=m.n_fft)[..., : m.length]
            del U_bcF
            g_BDL[b, c] = torch.fft.irfft(G_bcF, n=m.n_fft)[..., : m.length]
        if dK_cF is not None:
            m.spectra.gradient(dK_cF, c, dk, dskip if dskip.numel() else None)
    dw_PK = dw.new_empty(3, dw.shape[1], m.width) if sums else None
    call.run(
        _BACKWARD, u_BDL, g_BDL, dy_BLD,
        *(t if t is not None and t.numel() else None
          for t in (dx, dw_in, db_in, dw_PK, db, dw_out, db_out, dnorm_w, dnorm_b)),
    )  # fmt: skip
    if dw_PK is not None:
        dw.copy_(dw_PK.transpose(1, 2).reshape(dw.shape))
    return grads

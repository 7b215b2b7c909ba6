"""The Hyena mixer by ``megabase-kernels``: everything but the transforms in C++.

Shape suffixes: B batch, L positions, D width, K taps, N transform length, F frequencies; g is a
group of channels, b and c are a block of sequences and of channels of the group.

As long as the sequence are only the input, the output and what the transforms read and write: one
array forward, two backward, of all channels or, for long sequences, of a group of them. LayerNorm,
projection, short convolution and gates happen to blocks of positions that stay in a core's cache;
their values are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.hyena_mixer.plan import Mixer, transform_blocks

__all__ = ["backward", "forward", "takes"]

_OPEN, _GATE, _CLOSE, _OPEN_BACKWARD, _BACKWARD = range(5)

GROUP_BYTES = 1 << 27
"""Size of what the transforms of a group of channels read, about; a panel of channels at least."""


def takes(m: Mixer) -> bool:
    """Whether the kernels compute this mixer: CPU tensors of float32 or float64, all alike."""
    given = (m.x, m.norm.weight, m.norm.bias, *m.weights, m.w, m.b, m.k)
    return (
        kernels.alike(m.x.dtype, *given)
        and backend.use_kernels(*given)
        and kernels.multiplies(m.product, m.weights[0])
        and m.w.shape[-1] <= kernels.package().MAX_TAPS
        and m.x.numel() > 0
    )


class _Call:
    """Arguments of the kernels for one mixer."""

    def __init__(self, m: Mixer, sums: bool) -> None:
        self.m = m
        w_in, b_in, w_out, b_out = m.weights
        self.given = [
            None if t is None else t.contiguous()
            for t in (m.norm.weight, m.norm.bias, m.x, w_in, b_in, m.w, m.b, w_out, b_out)
        ]
        self.double = m.x.dtype == torch.float64
        self.half = m.product == torch.bfloat16
        self.sizes = [m.batch, m.length, m.width, m.w.shape[-1], m.after]
        self.sums = int(sums)

    def groups(self) -> list[slice]:
        """Cut the channels into groups that begin where the kernels can."""
        width, panel = self.m.width, kernels.package().native.panel(self.double)
        each = self.m.batch * self.m.length * self.m.x.element_size()
        step = max(1, GROUP_BYTES // each // panel) * panel
        return [slice(c, min(c + step, width)) for c in range(0, width, step)]

    def run(self, which: int, g: slice, *further: Tensor | None) -> None:
        kernels.package().native.mixer(
            self.double, [*self.sizes, g.start, g.stop, self.sums], self.m.norm.eps,
            [kernels.address(t) for t in (*self.given, *further)], self.half, which,
            torch.get_num_threads(),
        )  # fmt: skip

    def spectra(
        self, U: Tensor, K: Tensor, G: Tensor | None = None, dK: Tensor | None = None
    ) -> None:
        kernels.package().native.spectra(
            self.double, [*U.shape], U.data_ptr(), kernels.address(G), K.data_ptr(),
            kernels.address(dK), torch.get_num_threads(),
        )  # fmt: skip


def _room(m: Mixer, g: slice) -> Tensor:
    return torch.empty(m.batch, g.stop - g.start, m.length, dtype=m.wide)


def _blocks(m: Mixer, g: slice) -> Iterator[tuple[slice, Tensor, list[slice]]]:
    """Give blocks of the channels of a group with their filters' spectra, and of the sequences."""
    rows, channels = transform_blocks(m.batch, g.stop - g.start, m.n_fft)
    for c in channels:
        yield c, m.spectra.transform(slice(g.start + c.start, g.start + c.stop)).contiguous(), rows


def _padded(m: Mixer, g: slice) -> Tensor:
    rows, channels = transform_blocks(m.batch, g.stop - g.start, m.n_fft)
    return torch.zeros(rows[0].stop, channels[0].stop, m.n_fft, dtype=m.wide)


def _transform(u_bcL: Tensor, work_bcN: Tensor) -> Tensor:
    part = work_bcN[: u_bcL.shape[0], : u_bcL.shape[1]]
    part[..., : u_bcL.shape[2]] = u_bcL
    return torch.fft.rfft(part)


def forward(m: Mixer) -> Tensor:
    """Compute the output, shape (batch, length, width)."""
    call = _Call(m, sums=False)
    groups = call.groups()
    out_BLD = torch.empty(m.batch, m.length, m.width, dtype=m.wide)
    u_BgL, work = _room(m, groups[0]), _padded(m, groups[0])
    for g in groups:
        u_BgL = u_BgL.resize_(m.batch, g.stop - g.start, m.length)
        call.run(_OPEN, g, u_BgL, out_BLD)
        for c, K_cF, rows in _blocks(m, g):
            for b in rows:
                U_bcF = _transform(u_BgL[b, c], work)
                call.spectra(U_bcF, K_cF)
                u_BgL[b, c] = torch.fft.irfft(U_bcF, n=m.n_fft)[..., : m.length]
                del U_bcF  # before the next one is made
            del K_cF
        call.run(_GATE, g, u_BgL, out_BLD)
    call.run(_CLOSE, groups[-1], u_BgL, out_BLD)
    return out_BLD.to(m.out_dtype)


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
    call = _Call(m, sums)
    groups = call.groups()
    dy_BLD = dy_BLD.to(m.wide).contiguous()
    dx_BLD = dx if dx.numel() else torch.empty(m.x.shape, dtype=m.wide)
    dw_PK = dw.new_empty(3, dw.shape[1], m.width) if sums else None
    totals = (dw_in, db_in, dw_PK, db, dw_out, db_out, dnorm_w, dnorm_b) if sums else (None,) * 8
    for total in totals:
        if total is not None:
            total.zero_()
    needs_filter = dk.numel() > 0
    u_BgL, g_BgL, work = _room(m, groups[0]), _room(m, groups[0]), _padded(m, groups[0])
    for g in groups:
        for array in (u_BgL, g_BgL):
            array.resize_(m.batch, g.stop - g.start, m.length)
        call.run(_OPEN_BACKWARD, g, u_BgL, g_BgL, dy_BLD)
        for c, K_cF, rows in _blocks(m, g):
            dK_cF = torch.zeros_like(K_cF) if needs_filter else None
            for b in rows:
                U_bcF, G_bcF = _transform(u_BgL[b, c], work), _transform(g_BgL[b, c], work)
                call.spectra(U_bcF, K_cF, G_bcF, dK_cF)
                u_BgL[b, c] = torch.fft.irfft(U_bcF, n=m.n_fft)[..., : m.length]
                del U_bcF
                g_BgL[b, c] = torch.fft.irfft(G_bcF, n=m.n_fft)[..., : m.length]
                del G_bcF
            del K_cF
            if dK_cF is not None:
                at = slice(g.start + c.start, g.start + c.stop)
                m.spectra.gradient(dK_cF, at, dk, dskip if dskip.numel() else None)
            del dK_cF
        call.run(_BACKWARD, g, u_BgL, g_BgL, dy_BLD, dx_BLD, *totals)
    if dw_PK is not None:
        dw.copy_(dw_PK.transpose(1, 2).reshape(dw.shape))
    return grads

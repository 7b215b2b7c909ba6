"""The forward pass of the Hyena mixer.

Shape suffixes: B batch, L positions, D width, K taps, N transform length, F frequencies; b, c and t
are a group of sequences, a group of channels and the positions of a piece, q the 3 c projected
channels of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megabase.ops.hyena_mixer.plan import Mixer, product, transform_blocks


def run_forward(m: Mixer) -> Tensor:
    """Compute the output, shape (batch, length, width)."""
    columns, rows = m.groups()
    g_BDL = torch.empty(m.batch, m.width, m.length, dtype=m.dtype, device=m.x.device)
    padded, first = buffers(m, columns, rows)
    for c in columns:
        w_qD, b_q1, w_qK, b_q = m.part(c)
        kept: dict[int, Tensor] = {}
        count = c.stop - c.start
        for b in rows:
            u_bcN, x0_bcL = padded[: b.stop - b.start, :count], first[: b.stop - b.start, :count]
            for piece in m.pieces(b, m.before, m.after):
                r = slice(piece.b.start - b.start, piece.b.stop - b.start)
                s_bqt = m.short(m.project(piece, w_qD, b_q1), w_qK, b_q)
                x0, gate, v = s_bqt[..., piece.inner].split(count, dim=1)
                torch.mul(v, gate, out=u_bcN[r, :, piece.at])
                x0_bcL[r, :, piece.at] = x0
            over_rows, over_channels = transform_blocks(u_bcN.shape[0], count, m.n_fft)
            for j in over_channels:
                K_jF = m.spectrum(c, j, kept)
                for i in over_rows:
                    U = torch.fft.rfft(u_bcN[i, j]).mul_(K_jF)
                    y = torch.fft.irfft(U, n=m.n_fft)[..., : m.length]
                    at = slice(b.start + i.start, b.start + i.stop)
                    torch.mul(y, x0_bcL[i, j], out=y)
                    g_BDL[at, c.start + j.start : c.start + j.stop] = y
    out = torch.empty(m.x.shape, dtype=m.out_dtype, device=m.x.device)
    for piece in m.pieces(slice(0, m.batch)):
        g_btD = g_BDL[piece.b, :, piece.at].transpose(1, 2)
        out[piece.b, piece.at] = product(g_btD, m.w_out.t(), m.b_out)
    return out


def buffers(m: Mixer, columns: list[slice], rows: list[slice]) -> tuple[Tensor, Tensor]:
    """Make a zero-padded buffer and one of the input's length for a group."""
    shape = (max(b.stop - b.start for b in rows), max(c.stop - c.start for c in columns))
    like = m.b
    return like.new_zeros(*shape, m.n_fft), like.new_empty(*shape, m.length)

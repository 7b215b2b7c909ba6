"""Forward and backward pass of the Hyena mixer in torch.

One group of channels (and sequences) is worked on at a time: pieces of positions go through
LayerNorm, projection, short convolution and gate in a core's cache, then blocks of channels through
the transforms, then pieces again. Nothing of width 3 D is ever as long as the sequence.

Shape suffixes: B batch, L positions, D width, K taps, N transform length, F frequencies; b, c and t
are a group of sequences, a group of channels and the positions of a piece, q the 3 c projected
channels of a group.
"""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from megabase.ops.long_conv import BLOCK_SAMPLES, FilterSpectra
from megabase.ops.products import Norm, Piece, add_product, matmul, pieces
from megabase.ops.registry import wide_dtype
from megabase.ops.short_conv import apply_taps, correlate_taps

GROUP_SAMPLES = 1 << 22
"""Padded samples of a group of channels and sequences; several arrays of that size are alive."""
CHANNEL_SAMPLES = 1 << 23
"""Padded samples of one sequence in a group: more channels make quicker products."""
MIN_GROUP = 32  # channels of a group at least: products with fewer rows are slower
MIN_ROWS = 16
"""Rows per transform call if there is room: the library plans every call anew, and its threads
share rows."""
MIN_ROWS_SAMPLES = 1 << 22  # samples per transform call that `MIN_ROWS` may lead to


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (b, m, k) with (b, k, n), either of which may lack the first axis."""
    batch = max(a.shape[0] if a.dim() == 3 else 1, b.shape[0] if b.dim() == 3 else 1)
    if batch > 1 and min(a.shape[-2], b.shape[-1]) < 128:
        a, b = (x if x.dim() == 3 else x.expand(batch, -1, -1) for x in (a, b))
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
    found = [
        matmul(a[i] if a.dim() == 3 else a, b[i] if b.dim() == 3 else b, bias) for i in range(batch)
    ]
    return found[0][None] if batch == 1 else torch.stack(found)


def transform_blocks(rows: int, channels: int, n_fft: int) -> tuple[list[slice], list[slice]]:
    """Cut the sequences and channels of a group into blocks for one transform call."""
    some = min(MIN_ROWS, max(MIN_ROWS // 4, MIN_ROWS_SAMPLES // n_fft))
    return FilterSpectra.blocks(rows, channels, max(some, BLOCK_SAMPLES // n_fft))


class MixerWeights(NamedTuple):
    """Weights of a mixer behind a LayerNorm; without `norm_w` nothing is normalized."""

    norm_w: Annotated[Tensor | None, "D"]
    norm_b: Annotated[Tensor | None, "D"]
    eps: float
    w_in: Annotated[Tensor, "3D D"]  # projection to output gate, input gate and value
    b_in: Annotated[Tensor, "3D"]
    w: Annotated[Tensor, "3D K"]  # taps of the short convolution
    b: Annotated[Tensor, "3D"]
    k: Annotated[Tensor, "D M"]  # filter of the long convolution
    skip: Annotated[Tensor | None, "D"]  # weight of the unconvolved input
    w_out: Annotated[Tensor, "D D"]  # output projection
    b_out: Annotated[Tensor, "D"]


class MixerOptions(NamedTuple):
    """How a mixer works."""

    after: int  # taps of the short convolution behind the position
    two_sided: bool  # whether the filter has negative lags
    product: torch.dtype | None  # of the matrix products; that of the weights when None

    def product_dtype(self, weights: MixerWeights) -> torch.dtype:
        """Give the dtype of the matrix products."""
        return weights.w_in.dtype if self.product is None else self.product


class Mixer:
    """Input (batch, length, width) and weights, converted once, and what follows from them."""

    def __init__(self, x: Tensor, given: MixerWeights, options: MixerOptions) -> None:
        after, two_sided, product = options
        self.x, self.given, self.two_sided, self.product = x, given, two_sided, product
        self.batch, self.length, self.width = x.shape
        self.norm = Norm(given.norm_w, given.norm_b, given.eps)
        self.dtype = options.product_dtype(given)
        self.wide = wide_dtype(self.dtype)
        # What joins a running sum is not rounded further than the products were.
        self.out_dtype = self.dtype if product is None else x.dtype
        self.w_in, self.b_in = given.w_in.to(self.dtype), given.b_in.to(self.dtype)
        self.w_out, self.b_out = given.w_out.to(self.dtype), given.b_out.to(self.dtype)
        self.w, self.b = given.w.to(self.wide), given.b.to(self.wide)
        self.k, self.skip = given.k, given.skip
        self.after, self.before = after, self.w.shape[-1] - 1 - after
        self.spectra = FilterSpectra(self.k, self.skip, self.length, two_sided, self.wide)
        self.n_fft = self.spectra.n_fft

    def groups(self) -> tuple[list[slice], list[slice]]:
        """Cut channels and sequences into groups of about `GROUP_SAMPLES` padded samples."""
        channels = min(self.width, max(MIN_GROUP, CHANNEL_SAMPLES // self.n_fft))
        channels = -(-self.width // -(-self.width // channels))
        together = max(1, min(self.batch, GROUP_SAMPLES // self.n_fft // channels))
        return (
            [slice(i, min(i + channels, self.width)) for i in range(0, self.width, channels)],
            [slice(i, min(i + together, self.batch)) for i in range(0, self.batch, together)],
        )

    def pieces(self, b: slice, before: int = 0, after: int = 0) -> Iterator[Piece]:
        """Cut the sequences `b` into pieces of positions."""
        return pieces(b, self.length, before, after)

    def spectrum(self, c: slice, j: slice, kept: dict[int, Tensor]) -> Tensor:
        """Give the filter's spectrum for the block `j` of the channels `c`.

        Kept only while several groups of sequences need it: all together take much memory.
        """
        at = c.start + j.start
        found = kept.get(at)
        if found is None:
            found = self.spectra.transform(slice(at, c.start + j.stop))
        if len(self.groups()[1]) > 1:
            kept[at] = found
        return found

    def part(self, c: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give projection and short convolution of the channels `c` of gates and value."""
        at = [slice(c.start + i * self.width, c.stop + i * self.width) for i in range(3)]
        return tuple(
            torch.cat([tensor[s] for s in at])
            for tensor in (self.w_in, self.b_in[:, None], self.w, self.b)
        )  # pyright: ignore[reportReturnType]

    def project(self, piece: Piece, w_qD: Tensor, b_q1: Tensor) -> Tensor:
        """Normalize and project a piece and its neighbors: (b, 3 c, t) in the products' dtype."""
        h_btD = self.norm.apply(self.x[piece.b, piece.wide], self.dtype)
        return _product(w_qD, h_btD.transpose(1, 2), b_q1)

    def short(self, p_bqt: Tensor, w_qK: Tensor, b_q: Tensor) -> Tensor:
        """Convolve projected channels shortly, in the wide dtype."""
        out = torch.empty(p_bqt.shape, dtype=self.wide, device=p_bqt.device)
        return apply_taps(p_bqt.to(self.wide), w_qK, b_q, self.after, out)


def run_forward(m: Mixer) -> Tensor:
    """Compute the output, shape (batch, length, width)."""
    columns, rows = m.groups()
    g_BDL = torch.empty(m.batch, m.width, m.length, dtype=m.dtype, device=m.x.device)
    padded, first = _buffers(m, columns, rows)
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
        out[piece.b, piece.at] = _product(g_btD, m.w_out.t(), m.b_out)
    return out


def _buffers(m: Mixer, columns: list[slice], rows: list[slice]) -> tuple[Tensor, Tensor]:
    """Make a zero-padded buffer and one of the input's length for a group."""
    shape = (max(b.stop - b.start for b in rows), max(c.stop - c.start for c in columns))
    like = m.b
    return like.new_zeros(*shape, m.n_fft), like.new_empty(*shape, m.length)


class Backward:
    """The backward pass: the gradients it fills, unless one is without elements, and buffers."""

    def __init__(self, m: Mixer, dy_BLD: Tensor, grads: list[Tensor]) -> None:
        self.m, self.dy_BLD, self.grads = m, dy_BLD, grads
        (
            self.dx_BLD, self.dnorm_w, self.dnorm_b, self.dw_in_PD, self.db_in_P, self.dw_PK,
            self.db_P, self.dk_DM, self.dskip_D, self.dw_out_DD, self.db_out_D,
        ) = grads  # fmt: skip
        needs_x, needs_weights = self.dx_BLD.dim() == 3, self.dw_in_PD.dim() == 2
        self.needs_x, self.needs_weights = needs_x, needs_weights
        self.needs_filter = self.dk_DM.dim() == 2
        self.columns, self.rows = m.groups()
        self.padded, self.x0 = _buffers(m, self.columns, self.rows)
        self.dgate = torch.empty_like(self.x0)
        shape = (self.x0.shape[0], 3 * self.x0.shape[1], m.length)
        self.p = torch.empty(shape, dtype=m.dtype, device=self.x0.device)
        # Gradients of the normalized input add up over groups of channels, wide.
        needs_h = needs_x or (needs_weights and m.norm.weight is not None)
        self.needs_h, self.single = needs_h, len(self.columns) == 1
        self.dh_BLD: Tensor | None = None
        if needs_h and not self.single:
            own = needs_x and self.dx_BLD.dtype == m.wide
            self.dh_BLD = self.dx_BLD if own else m.b.new_empty(m.x.shape)

    def run(self) -> None:
        """Fill the gradients."""
        m = self.m
        if self.needs_weights:
            for total in (self.dnorm_w, self.dnorm_b, self.dw_out_DD, self.db_out_D):
                total.zero_()
            self.db_out_D += self.dy_BLD.sum((0, 1), dtype=m.wide)
        for c in self.columns:
            weights = m.part(c)
            self.spectra: dict[int, Tensor] = {}
            self.dspectra: dict[int, Tensor] = {}
            w_qD, _, w_qK, _ = weights
            self.sums = (
                w_qD.new_zeros(w_qD.shape, dtype=m.wide), w_qK.new_zeros(w_qD.shape[0]),
                torch.zeros_like(w_qK), w_qK.new_zeros(w_qD.shape[0]),
            )  # fmt: skip
            for b in self.rows:
                self._open(b, c, weights)
                self._transform(b, c)
                self._close(b, c, weights)
            if self.needs_weights:
                totals = (self.dw_in_PD, self.db_in_P, self.dw_PK, self.db_P)
                for total, group in zip(totals, self.sums, strict=True):
                    total.unflatten(0, (3, m.width))[:, c] = group.unflatten(0, (3, -1))
        if self.dh_BLD is not None:
            for piece in m.pieces(slice(0, m.batch)):
                self._norm(piece.b, piece.at, self.dh_BLD[piece.b, piece.at])

    def _cut(self, b: slice, c: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, count = b.stop - b.start, c.stop - c.start
        return (
            self.padded[:rows, :count], self.x0[:rows, :count], self.dgate[:rows, :count],
            self.p[:rows, : 3 * count],
        )  # fmt: skip

    def _open(self, b: slice, c: slice, weights: tuple[Tensor, ...]) -> None:
        """Compute the gated input, the output gate and the gradient of the gated output."""
        m, count = self.m, c.stop - c.start
        w_qD, b_q1, w_qK, b_q = weights
        u, x0_bcL, dg_bcL, p_bqL = self._cut(b, c)
        w_out_cD = m.w_out[:, c].t()
        for piece in m.pieces(b, m.before, m.after):
            r = slice(piece.b.start - b.start, piece.b.stop - b.start)
            p_bqt = m.project(piece, w_qD, b_q1)
            p_bqL[r, :, piece.at] = p_bqt[..., piece.inner]
            x0, gate, v = m.short(p_bqt, w_qK, b_q)[..., piece.inner].split(count, dim=1)
            torch.mul(v, gate, out=u[r, :, piece.at])
            x0_bcL[r, :, piece.at] = x0
            dy_btD = self.dy_BLD[piece.b, piece.at].to(m.dtype)
            dg_bcL[r, :, piece.at] = _product(w_out_cD, dy_btD.transpose(1, 2))

    def _transform(self, b: slice, c: slice) -> None:
        """Turn u, x0 and dg into du, the gated output and the gradient of the output gate."""
        m = self.m
        u_bcN, x0_bcL, dg_bcL, _ = self._cut(b, c)
        over_rows, over_channels = transform_blocks(u_bcN.shape[0], u_bcN.shape[1], m.n_fft)
        for j in over_channels:
            K = m.spectrum(c, j, self.spectra)
            conj_K = K.conj().resolve_conj()
            dK = self.dspectra.pop(j.start, None)
            for i in over_rows:
                work, x0, dg = u_bcN[i, j], x0_bcL[i, j], dg_bcL[i, j]
                U = torch.fft.rfft(work)
                torch.mul(dg, x0, out=work[..., : m.length])
                G = torch.fft.rfft(work)
                y = torch.fft.irfft(U * K, n=m.n_fft)[..., : m.length]
                x0.mul_(y)
                dg.mul_(y)
                # A correlation is a product with the conjugate.
                if self.needs_filter:
                    products = U.conj_physical_().mul_(G).sum(0)
                    dK = products if dK is None else dK.add_(products)
                G.mul_(conj_K)
                work[..., : m.length] = torch.fft.irfft(G, n=m.n_fft)[..., : m.length]
            if dK is not None and b is self.rows[-1]:
                dskip = None if m.skip is None else self.dskip_D
                at = slice(c.start + j.start, c.start + j.stop)
                m.spectra.gradient(dK, at, self.dk_DM, dskip)
            elif dK is not None:
                self.dspectra[j.start] = dK

    def _close(self, b: slice, c: slice, weights: tuple[Tensor, ...]) -> None:
        """Take the gradients through gates, short convolution and projection."""
        m, count = self.m, c.stop - c.start
        w_qD, _, w_qK, b_q = weights
        du_bcN, g_bcL, dx0_bcL, p_bqL = self._cut(b, c)
        # Of the input's gradient a piece needs the output's gradient around it, which needs the
        # projected channels around that.
        span = m.before + m.after
        for piece in m.pieces(b, span, span):
            r = slice(piece.b.start - b.start, piece.b.stop - b.start)
            # Copied, because rows far apart fall on the same places of a cache.
            p_bqt = p_bqL[r, :, piece.wide].contiguous().to(m.wide)
            gate, v = m.short(p_bqt[:, count:], w_qK[count:], b_q[count:]).split(count, dim=1)
            ds_bqt = torch.empty_like(p_bqt)
            ds_bqt[:, :count] = dx0_bcL[r, :, piece.wide]
            du_bct = du_bcN[r, :, piece.wide].contiguous()
            torch.mul(du_bct, v, out=ds_bqt[:, count : 2 * count])
            torch.mul(du_bct, gate, out=ds_bqt[:, 2 * count :])
            self._project(piece, c, w_qD, w_qK, p_bqt, ds_bqt)
            if self.needs_weights:
                dy_btD = self.dy_BLD[piece.b, piece.at].to(m.dtype)
                g_bct = g_bcL[r, :, piece.at].to(m.dtype)
                add_product(self.dw_out_DD[:, c], dy_btD.transpose(1, 2), g_bct.transpose(1, 2))

    def _project(
        self, piece: Piece, c: slice, w_qD: Tensor, w_qK: Tensor, p_bqt: Tensor, ds_bqt: Tensor
    ) -> None:
        m = self.m
        dp_bqt = apply_taps(ds_bqt, w_qK, None, m.after, torch.empty_like(ds_bqt), back=True)
        dp_bqt = dp_bqt[..., piece.inner].to(m.dtype).contiguous()
        x_btD = m.x[piece.b, piece.at]
        if self.needs_weights:
            # Each position's gradient counts once, in the piece it belongs to.
            ds_bqt[..., : piece.inner.start] = 0
            ds_bqt[..., piece.inner.stop :] = 0
            dw_in_qD, db_in_q, dw_qK, db_q = self.sums
            correlate_taps(p_bqt, ds_bqt, m.after, dw_qK, db_q)
            db_in_q += dp_bqt.sum((0, 2), dtype=m.wide)
            add_product(dw_in_qD, dp_bqt, m.norm.apply(x_btD, m.dtype))
        if self.needs_h:
            dh_btD = _product(dp_bqt.transpose(1, 2), w_qD).to(m.wide)
            if self.dh_BLD is None:
                self._norm(piece.b, piece.at, dh_btD)
            elif c.start == 0:
                self.dh_BLD[piece.b, piece.at] = dh_btD
            else:
                self.dh_BLD[piece.b, piece.at] += dh_btD

    def _norm(self, b: slice, at: slice, dh_btD: Tensor) -> None:
        """Take the gradient of the normalized input through the LayerNorm."""
        sums = (self.dnorm_w, self.dnorm_b) if self.needs_weights else None
        dx_btD = self.m.norm.backward(dh_btD, self.m.x[b, at], sums)
        if self.needs_x:
            self.dx_BLD[b, at] = dx_btD

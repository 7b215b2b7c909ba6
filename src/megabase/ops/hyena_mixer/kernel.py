"""The Hyena mixer by ``megabase-kernels``: everything but the transforms in C++.

As long as the sequence are only the input, the output and what the transforms read and write: one
array forward, two backward, of all channels or, for long sequences, of a group of them. All else
happens to blocks of positions in a core's cache, and again in the backward pass of inputs too large
to keep it.

The first N outputs of a linear convolution of at most N samples are the mean of two products of
polynomials of N terms: modulo x^N - 1 and modulo x^N + 1. What lies behind N joins the front with a
plus in the first and a minus in the second. The first is a real transform of N samples. For the
second the samples N/2 apart become one complex number, weighted so that the product is cyclic
(a "right-angle" convolution): a complex transform of N/2. Together they take a quarter less time
than one real transform of 2 N, and need no zeros.

Shape suffixes: B batch, L positions, D width, K taps, M lags, R rows; N samples of a transform, F
and H its N/2 + 1 and N/2 frequencies modulo x^N - 1 and x^N + 1; g is a group of channels, b and c
are a block of sequences and of channels of the group.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.hyena_mixer.passes import Mixer, MixerOptions, MixerWeights, transform_blocks
from megabase.ops.long_conv import fft_length

_OPEN, _GATE, _CLOSE, _OPEN_BACKWARD, _BACKWARD = range(5)
GROUP_BYTES = 1 << 27
"""Size of what the transforms of a group of channels read, about; a panel of channels at least."""


@lru_cache(maxsize=4)
def _half_weights(half: int, dtype: torch.dtype) -> Tensor:
    angle_H = torch.arange(half, dtype=torch.float64, device="cpu") * (math.pi / (2 * half))
    return torch.stack([angle_H.cos(), angle_H.sin()]).to(dtype)


class _Halves:
    """Transforms of the blocks of one convolution of `length` positions.

    Samples are of `dtype`, float32 or float64; a `two_sided` filter has 2 L - 1 taps.
    """

    def __init__(self, length: int, two_sided: bool, dtype: torch.dtype) -> None:
        self.length, self.two_sided, self.dtype = length, two_sided, dtype
        self.n = fft_length(length)
        self.n += self.n % 2
        self.half = self.n // 2
        self.weights = _half_weights(self.half, dtype)
        self.pairs = torch.complex64 if dtype == torch.float32 else torch.complex128

    def _native(self, which: str, length: int, *arrays: Tensor) -> None:
        """Call a function of rows, the first of which says how many there are."""
        call = getattr(kernels.native(), which)
        sizes, given = [len(arrays[0]), length, self.half], (kernels.array(t) for t in arrays)
        call(self.dtype == torch.float64, sizes, *given, torch.get_num_threads())

    def cyclic(self, u_RL: Tensor) -> Tensor:
        """Transform rows modulo x^N - 1."""
        return torch.fft.rfft(u_RL, n=self.n)

    def negacyclic(self, u_RL: Tensor) -> Tensor:
        """Transform rows modulo x^N + 1."""
        *leading, length = u_RL.shape
        u_RL = kernels.dense(u_RL).view(-1, length)
        z_RH = torch.empty(len(u_RL), self.half, dtype=self.pairs, device=u_RL.device)
        self._native("fold", length, u_RL, self.weights, z_RH)
        return torch.fft.fft(z_RH.view(*leading, self.half))

    def back(self, cyclic_RN: Tensor, Z_RH: Tensor, y_RL: Tensor) -> None:
        """Write the lower half of a product into `y_RL`, rows without gaps.

        Given are the product modulo x^N - 1, transformed back, and the spectrum of that modulo
        x^N + 1.
        """
        z_RH, length = torch.fft.ifft(Z_RH).view(-1, self.half), y_RL.shape[-1]
        given = (z_RH, cyclic_RN.view(-1, self.n), self.weights, y_RL.view(-1, length))
        self._native("unfold", length, *given)

    def cyclic_back(self, C_RF: Tensor) -> Tensor:
        """Transform a spectrum modulo x^N - 1 back, all N samples."""
        return torch.fft.irfft(C_RF, n=self.n)

    def filter_spectra(self, k_cM: Tensor, skip_c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Transform taps: lag j of one-sided ones at j; skip terms are taps at lag 0."""
        k_cM = k_cM.to(self.dtype)
        if self.two_sided:
            # On a circle of 2 N samples lag -j lies at 2 N - j: in its upper half.
            before_cN = k_cM.new_zeros(k_cM.shape[0], self.n)
            before_cN[:, self.n - self.length + 1 :] = k_cM[:, : self.length - 1]
            after_cN = k_cM.new_zeros(k_cM.shape[0], self.n)
            after_cN[:, : self.length] = k_cM[:, self.length - 1 :]
            C_cF = self.cyclic(after_cN + before_cN)
            Z_cH = self.negacyclic(after_cN - before_cN)
        else:
            C_cF, Z_cH = self.cyclic(k_cM), self.negacyclic(k_cM)
        if skip_c is not None:
            for spectrum in (C_cF, Z_cH):
                spectrum += skip_c[:, None].to(self.dtype)
        return C_cF, Z_cH

    def filter_gradient(
        self, dC_cF: Tensor, dZ_cH: Tensor, dk_cM: Tensor, dskip_c: Tensor | None
    ) -> None:
        """Write the gradients of taps and skip terms from sums of conj(U) G."""
        cyclic_cN = self.cyclic_back(dC_cF)
        size = self.n if self.two_sided else self.length
        after_cN = cyclic_cN.new_empty(cyclic_cN.shape[0], size)
        self.back(cyclic_cN, dZ_cH, after_cN)
        if self.two_sided:
            dk_cM[:, self.length - 1 :] = after_cN[:, : self.length]
            before_cN = cyclic_cN - after_cN
            dk_cM[:, : self.length - 1] = before_cN[:, self.n - self.length + 1 :]
        else:
            dk_cM.copy_(after_cN)
        if dskip_c is not None:
            dskip_c.copy_(after_cN[:, 0])


def takes(x: Tensor, weights: MixerWeights, options: MixerOptions) -> bool:
    """Whether the kernels compute a mixer: CPU tensors of float32 or float64, all alike."""
    # The skip terms become taps, and may be of any dtype.
    given = (x, *(t for t in weights._replace(skip=None) if isinstance(t, Tensor)))
    alike = x.numel() > 0 and kernels.alike(x.dtype, *given) and backend.use_kernels(*given)
    taps = weights.w.shape[-1]
    return (
        alike
        and kernels.multiplies(options.product, weights.w_in)
        and taps <= kernels.package().MAX_TAPS
    )


class _Call:
    """Arguments of the kernels for one mixer."""

    def __init__(self, m: Mixer, sums: bool) -> None:
        self.m = m
        norm_w, norm_b, _, w_in, b_in, *_, w_out, b_out = m.given
        tensors = (norm_w, norm_b, m.x, w_in, b_in, m.w, m.b, w_out, b_out)
        self.given = [kernels.dense(t) for t in tensors]
        self.double = m.x.dtype == torch.float64
        self.half = m.product == torch.bfloat16
        self.sizes = [m.batch, m.length, m.width, m.w.shape[-1], m.after]
        self.sums = int(sums)

    def groups(self) -> list[slice]:
        """Cut the channels into groups that begin where the kernels can."""
        width, panel = self.m.width, kernels.native().panel(self.double)
        each = self.m.batch * self.m.length * self.m.x.element_size()
        step = max(1, GROUP_BYTES // each // panel) * panel
        return [slice(c, min(c + step, width)) for c in range(0, width, step)]

    def run(self, which: int, g: slice, *further: Tensor | None) -> None:
        kernels.native().mixer(
            self.double, [*self.sizes, g.start, g.stop, self.sums], self.m.norm.eps,
            [kernels.array(t) for t in (*self.given, *further)], self.half, which,
            torch.get_num_threads(),
        )  # fmt: skip

    def spectra(
        self, U: Tensor, K: Tensor, G: Tensor | None = None, dK: Tensor | None = None
    ) -> None:
        given = (kernels.array(t) for t in (U, G, K, dK))
        kernels.native().spectra(self.double, [*U.shape], *given, torch.get_num_threads())


def _room(m: Mixer, g: slice) -> Tensor:
    return torch.empty(m.batch, g.stop - g.start, m.length, dtype=m.wide, device=m.x.device)


def _blocks(
    m: Mixer, halves: _Halves, g: slice
) -> Iterator[tuple[slice, slice, tuple[Tensor, Tensor], list[slice]]]:
    """Cut a group into blocks: channels in the group, among all, filter spectra, sequences."""
    rows, channels = transform_blocks(m.batch, g.stop - g.start, halves.n)
    for c in channels:
        at = slice(g.start + c.start, g.start + c.stop)
        skip = None if m.skip is None else m.skip[at]
        yield c, at, halves.filter_spectra(m.k[at], skip), rows


def forward(m: Mixer, kept: Tensor, projected: Tensor) -> Tensor:
    """Compute the output; `kept` and `projected` are filled if they have elements.

    These are the transforms' result, (B, D, L), and what the short convolution reads.
    """
    call = _Call(m, sums=False)
    groups = call.groups()
    out_BLD = torch.empty(m.x.shape, dtype=m.wide, device=m.x.device)
    u_BgL, halves = _room(m, groups[0]), _Halves(m.length, m.two_sided, m.wide)
    for g in groups:
        u_BgL = u_BgL.resize_(m.batch, g.stop - g.start, m.length)
        call.run(_OPEN, g, u_BgL, out_BLD, projected if projected.numel() else None)
        for c, _, (K_cF, K_cH), rows in _blocks(m, halves, g):
            for b in rows:
                u_bcL = u_BgL[b, c]
                U_bcF = halves.cyclic(u_bcL)
                call.spectra(U_bcF, K_cF)
                cyclic_bcN = halves.cyclic_back(U_bcF)
                del U_bcF  # before the next one is made
                U_bcH = halves.negacyclic(u_bcL)
                call.spectra(U_bcH, K_cH)
                halves.back(cyclic_bcN, U_bcH, u_bcL)
                del cyclic_bcN, U_bcH
            del K_cF, K_cH
        if kept.numel():
            kept[:, g] = u_BgL
        call.run(_GATE, g, u_BgL, out_BLD)
    call.run(_CLOSE, groups[-1], u_BgL, out_BLD)
    return out_BLD.to(m.out_dtype)


def backward(
    m: Mixer, dy_BLD: Tensor, kept: Tensor, projected: Tensor, grads: list[Tensor]
) -> None:
    """Fill `grads`, of input and weights; one without elements is not wanted."""
    dx, dnorm_w, dnorm_b, dw_in, db_in, dw, db, dk_DM, dskip_D, dw_out, db_out = grads
    sums = dw_in.numel() > 0
    call = _Call(m, sums)
    groups = call.groups()
    dy_BLD = dy_BLD.to(m.wide).contiguous()
    dx_BLD = dx if dx.numel() else torch.empty(m.x.shape, dtype=m.wide, device=m.x.device)
    dw_PK = dw.new_empty(3, dw.shape[1], m.width) if sums else None
    totals = (dw_in, db_in, dw_PK, db, dw_out, db_out, dnorm_w, dnorm_b) if sums else (None,) * 8
    for total in totals:
        if total is not None:
            total.zero_()
    needs_filter, held = dk_DM.numel() > 0, projected if projected.numel() else None
    u_BgL, g_BgL = _room(m, groups[0]), _room(m, groups[0])
    halves = _Halves(m.length, m.two_sided, m.wide)
    for g in groups:
        for array in (u_BgL, g_BgL):
            array.resize_(m.batch, g.stop - g.start, m.length)
        call.run(_OPEN_BACKWARD, g, u_BgL, g_BgL, dy_BLD, held)
        for c, at, (K_cF, K_cH), rows in _blocks(m, halves, g):
            dK_cF = torch.zeros_like(K_cF) if needs_filter else None
            dK_cH = torch.zeros_like(K_cH) if needs_filter else None
            for b in rows:
                both = (u_BgL[b, c], g_BgL[b, c])
                U_bcF, G_bcF = (halves.cyclic(one) for one in both)
                call.spectra(U_bcF, K_cF, G_bcF, dK_cF)
                y_bcN = None if kept.numel() else halves.cyclic_back(U_bcF)
                del U_bcF  # before the next one is made
                du_bcN = halves.cyclic_back(G_bcF)
                del G_bcF
                U_bcH, G_bcH = (halves.negacyclic(one) for one in both)
                call.spectra(U_bcH, K_cH, G_bcH, dK_cH)
                if y_bcN is not None:
                    halves.back(y_bcN, U_bcH, both[0])
                del y_bcN, U_bcH
                halves.back(du_bcN, G_bcH, both[1])
                del du_bcN, G_bcH
            del K_cF, K_cH
            if dK_cF is not None and dK_cH is not None:
                dskip = dskip_D[at] if dskip_D.numel() else None
                halves.filter_gradient(dK_cF, dK_cH, dk_DM[at], dskip)
            del dK_cF, dK_cH
        if kept.numel():
            u_BgL.copy_(kept[:, g])
        call.run(_BACKWARD, g, u_BgL, g_BgL, dy_BLD, dx_BLD, *totals, held)
    if dw_PK is not None:
        dw.copy_(dw_PK.transpose(1, 2).reshape(dw.shape))

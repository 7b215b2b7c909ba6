"""The Hyena mixer: short convolution and gates in one kernel on either side of the transforms.

A linear convolution of L samples is one of polynomials modulo x^N - i, N >= L: what wraps around
becomes imaginary. With x = r y and r^N = i it is cyclic, so sample n is turned by r^n, a complex
transform of N does the work of a real one of 2 N, and no zeros are moved. Of a two-sided filter lag
-j is x^-j = -i x^(N - j). The kernels beside the transforms turn samples there and back.

As long as the sequence are, beside input and output, the projected channels and what the transforms
read and write. Kept for the backward pass is the transforms' result.

Shape suffixes: B batch, L positions, D width, P = 3 D, K taps, N samples; in kernels T and C are
blocks of positions (or samples) and of channels.
"""
# Kernels are compiled: to a type checker a call of one from another gives nothing.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.long_conv import fft_length
from megabase.ops.products import product_into
from megabase.ops.triton import blocks, launch, power
from megabase.ops.triton.shared import sine_cosine, sum_rows

if TYPE_CHECKING:
    from megabase.ops.hyena_mixer.passes import Mixer

_POSITIONS = 64  # positions of a tile: rows of transforms are read and written in runs of 512 bytes
_CHANNELS = 32  # channels of a tile: projected channels are read in runs of 128 bytes
_SAMPLES = 512  # samples of a spectrum that a program multiplies at once


@triton.jit
def _tile(T: tl.constexpr, C: tl.constexpr, width):
    """Give positions (T, 1), channels (1, C), whether they are channels, and the sequence."""
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    return t, c, c < width, tl.program_id(2).to(tl.int64)


@triton.jit
def _turn(n, quarter):
    """Give cosine and sine of the angle by which sample n is turned."""
    sin, cos = sine_cosine(n.to(tl.float32) * quarter)
    return cos, sin


@triton.jit
def _rows(x, b, t, c, inside, length, width):
    """Load positions and channels of (batch, length, width)."""
    here = (t >= 0) & (t < length) & inside
    at = (b * length + t) * width + c
    return tl.load(x + at, here, 0.0).to(tl.float32)


@triton.jit
def _short(p, taps, bias, b, t, c, inside, length, projected, K: tl.constexpr, AFTER: tl.constexpr):
    """Convolve projected channels c shortly at positions t: (T, C)."""
    total = tl.load(bias + c, inside, 0.0).to(tl.float32)
    for j in tl.static_range(K):
        tap = tl.load(taps + c * K + j, inside, 0.0).to(tl.float32)
        total += tap * _rows(p, b, t - (K - 1 - AFTER) + j, c, inside, length, projected)
    return total


@triton.jit
def _pairs(T: tl.constexpr, C: tl.constexpr, b, width, samples):
    """Give where the samples of a tile lie among pairs, (C, T, 2), and which they are."""
    n = (tl.program_id(0) * T + tl.arange(0, T))[None, :, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[:, None, None].to(tl.int64)
    at = ((b * width + c) * samples + n) * 2 + tl.arange(0, 2)[None, None, :]
    return at, (n < samples) & (c < width), n, c


@triton.jit
def _store_turned(z, x, b, width, samples, quarter, T: tl.constexpr, C: tl.constexpr):
    """Write a tile (T, C) of zeros behind the last position as turned samples."""
    at, here, _, _ = _pairs(T, C, b, width, samples)
    cos, sin = _turn((tl.program_id(0) * T + tl.arange(0, T))[None, :], quarter)
    x = tl.trans(x)
    tl.store(z + at, tl.join(x * cos, x * sin), here)


@triton.jit
def _load_turned(z, b, shift, length, width, samples, quarter, T: tl.constexpr, C: tl.constexpr):
    """Read samples `shift` behind a tile's positions, turned back: real parts, (T, C)."""
    at, here, n, _ = _pairs(T, C, b, width, samples)
    here = here & (n + shift >= 0) & (n + shift < length)
    re, im = tl.split(tl.load(z + at + 2 * shift, here, 0.0))
    cos, sin = _turn((tl.program_id(0) * T + tl.arange(0, T))[None, :] + shift, quarter)
    return tl.trans(re * cos + im * sin)


@triton.jit
def _open(
    p, taps, bias, z, length, width, samples, quarter,
    K: tl.constexpr, AFTER: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t, c, inside, b = _tile(T, C, width)
    gate = _short(p, taps, bias, b, t, c, inside, length, 3 * width, K, AFTER)
    value = _short(p, taps, bias, b, t, width + c, inside, length, 3 * width, K, AFTER)
    u = tl.where(t < length, gate * value, 0.0)
    _store_turned(z, u, b, width, samples, quarter, T, C)


@triton.jit
def _gate(
    z, p, taps, bias, g, kept, length, width, samples, quarter, scale,
    K: tl.constexpr, AFTER: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t, c, inside, b = _tile(T, C, width)
    y = _load_turned(z, b, 0, length, width, samples, quarter, T, C) * scale
    here = (t < length) & inside
    if kept is not None:
        tl.store(kept + tl.trans((b * width + c) * length + t), tl.trans(y), tl.trans(here))
    y *= _short(p, taps, bias, b, t, c, inside, length, 3 * width, K, AFTER)
    tl.store(g + (b * length + t) * width + c, y.to(g.dtype.element_ty), here)


@triton.jit
def _open_backward(
    p, taps, bias, dg, kept, u, du, g, length, width, samples, quarter,
    K: tl.constexpr, AFTER: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t, c, inside, b = _tile(T, C, width)
    here = (t < length) & inside
    gate = _short(p, taps, bias, b, t, width + c, inside, length, 3 * width, K, AFTER)
    value = _short(p, taps, bias, b, t, 2 * width + c, inside, length, 3 * width, K, AFTER)
    _store_turned(u, tl.where(here, gate * value, 0.0), b, width, samples, quarter, T, C)
    first = _short(p, taps, bias, b, t, c, inside, length, 3 * width, K, AFTER)
    back = _rows(dg, b, t, c, inside, length, width) * first
    _store_turned(du, back, b, width, samples, quarter, T, C)
    y = tl.trans(tl.load(kept + tl.trans((b * width + c) * length + t), tl.trans(here), 0.0))
    tl.store(g + (b * length + t) * width + c, (y * first).to(g.dtype.element_ty), here)


@triton.jit
def _close_backward(
    p, taps, bias, dg, kept, du, dp, partial, length, width, samples, quarter, scale,
    K: tl.constexpr, AFTER: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t, c, inside, b = _tile(T, C, width)
    here = (t < length) & inside
    # One behind the other the sums for taps, for their bias and for that of the projection.
    own = partial + (b * tl.num_programs(0) + tl.program_id(0)) * (K + 2) * 3 * width
    column = tl.program_id(1) * C + tl.arange(0, C)
    for part in tl.static_range(3):
        at = part * width + c
        x = _rows(p, b, t, at, inside, length, 3 * width)
        total = tl.zeros([T, C], tl.float32)
        for j in tl.static_range(K):
            # The output that tap j carries this position to.
            s = K - 1 - AFTER - j
            to = t + s
            valid = (to >= 0) & (to < length) & inside
            if part == 0:
                rows = tl.trans((b * width + c) * length + to)
                y = tl.trans(tl.load(kept + rows, tl.trans(valid), 0.0))
                ds = y * _rows(dg, b, to, c, inside, length, width)
            else:
                other = (3 - part) * width + c
                ds = _load_turned(du, b, s, length, width, samples, quarter, T, C) * scale
                ds *= _short(p, taps, bias, b, to, other, inside, length, 3 * width, K, AFTER)
                ds = tl.where(valid, ds, 0.0)
            total += ds * tl.load(taps + at * K + j, inside, 0.0).to(tl.float32)
            tl.store(own + (part * width + column) * K + j, tl.sum(ds * x, 0), column < width)
            if s == 0:
                biases = own + 3 * width * K + part * width
                tl.store(biases + column, tl.sum(ds, 0), column < width)
        total = tl.where(here, total, 0.0)
        tl.store(dp + (b * length + t) * 3 * width + at, total.to(dp.dtype.element_ty), here)
        biases = own + 3 * width * (K + 1) + part * width
        tl.store(biases + column, tl.sum(total, 0), column < width)


@triton.jit
def _turn_taps(
    k, z, length, width, samples, quarter, TWO: tl.constexpr, T: tl.constexpr, C: tl.constexpr
):
    """Lay taps (D, lags) on the circle, turned."""
    n = (tl.program_id(0) * T + tl.arange(0, T))[None, :]
    c = (tl.program_id(1) * C + tl.arange(0, C))[:, None].to(tl.int64)
    lags = 2 * length - 1 if TWO else length
    first = length - 1 if TWO else 0
    re = tl.load(k + c * lags + first + n, (n < length) & (c < width), 0.0).to(tl.float32)
    cos, sin = _turn(n, quarter)
    at, here, _, _ = _pairs(T, C, 0, width, samples)
    if TWO:
        back = samples - n
        lies = (back >= 1) & (back < length) & (c < width)
        im = -tl.load(k + c * lags + first - back, lies, 0.0).to(tl.float32)
        tl.store(z + at, tl.join(re * cos - im * sin, re * sin + im * cos), here)
    else:
        tl.store(z + at, tl.join(re * cos, re * sin), here)


@triton.jit
def _turn_taps_back(
    z, dk, dskip, length, width, samples, quarter, scale,
    TWO: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) * T + tl.arange(0, T))[None, :]
    c = (tl.program_id(1) * C + tl.arange(0, C))[:, None].to(tl.int64)
    at, here, _, _ = _pairs(T, C, 0, width, samples)
    re, im = tl.split(tl.load(z + at, here, 0.0))
    cos, sin = _turn(n, quarter)
    lags = 2 * length - 1 if TWO else length
    first = length - 1 if TWO else 0
    real = (re * cos + im * sin) * scale
    after = (n < length) & (c < width)
    tl.store(dk + c * lags + first + n, real.to(dk.dtype.element_ty), after)
    if dskip is not None:
        tl.store(dskip + c + n, real.to(dskip.dtype.element_ty), (n == 0) & (c < width))
    if TWO:
        back = samples - n
        imaginary = (re * sin - im * cos) * scale
        lies = (back >= 1) & (back < length) & (c < width)
        tl.store(dk + c * lags + first - back, imaginary.to(dk.dtype.element_ty), lies)


@triton.jit
def _numbers(x, row, samples, N: tl.constexpr):
    """Load a block of complex numbers of a row: real and imaginary parts."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    at = (row * samples + n)[:, None] * 2 + tl.arange(0, 2)[None, :]
    re, im = tl.split(tl.load(x + at, (n < samples)[:, None], 0.0))
    return at, (n < samples)[:, None], re, im


@triton.jit
def _filter_numbers(k, skip, d, samples, N: tl.constexpr):
    _, _, re, im = _numbers(k, d, samples, N)
    if skip is not None:
        # A tap at lag 0, whose spectrum is flat.
        re += tl.load(skip + d).to(tl.float32)
    return re, im


@triton.jit
def _multiply(z, k, skip, out, samples, width, N: tl.constexpr):
    d, b = tl.program_id(1).to(tl.int64), tl.program_id(2)
    k_re, k_im = _filter_numbers(k, skip, d, samples, N)
    at, here, re, im = _numbers(z, b * width + d, samples, N)
    tl.store(out + at, tl.join(re * k_re - im * k_im, re * k_im + im * k_re), here)


@triton.jit
def _multiply_backward(u, du, k, skip, back, dk, samples, width, batch, N: tl.constexpr):
    d = tl.program_id(1).to(tl.int64)
    k_re, k_im = _filter_numbers(k, skip, d, samples, N)
    sum_re = tl.zeros([N], tl.float32)
    sum_im = tl.zeros([N], tl.float32)
    for b in range(batch):
        at, here, re, im = _numbers(du, b * width + d, samples, N)
        if dk is not None:
            _, _, u_re, u_im = _numbers(u, b * width + d, samples, N)
            sum_re += re * u_re + im * u_im
            sum_im += im * u_re - re * u_im
        # A correlation is a product with the conjugate.
        tl.store(back + at, tl.join(re * k_re + im * k_im, im * k_re - re * k_im), here)
    if dk is not None:
        at, here, _, _ = _numbers(k, d, samples, N)
        tl.store(dk + at, tl.join(sum_re, sum_im), here)


def _transform(z: Tensor, forward: bool) -> Tensor:
    # No function of torch.fft: they pad, copy and scale.
    return torch.ops.aten._fft_c2c(z, [z.dim() - 1], 0, forward)


class _Call:
    """A mixer, its arrays as the kernels take them, and what its kernels have in common."""

    def __init__(self, m: Mixer) -> None:
        self.m = m
        self.taps, self.bias = m.given.w.contiguous(), m.given.b.contiguous()
        self.k = m.k.contiguous()
        self.skip = None if m.skip is None else m.skip.contiguous()
        self.samples = fft_length(m.length)
        self.quarter = math.pi / (2 * self.samples)
        self.sizes = (m.length, m.width, self.samples, self.quarter)
        tile = {
            "T": min(_POSITIONS, power(self.samples, 16)),
            "C": min(_CHANNELS, power(m.width, 16)),
        }
        self.tile: dict[str, Any] = tile
        self.short = {"K": m.w.shape[-1], "AFTER": m.after, **tile}
        self.channels = blocks(m.width, tile["C"])
        # Of positions, and of samples, of which there may be more.
        self.over_length = (blocks(m.length, tile["T"]), self.channels, m.batch)
        self.over_samples = (blocks(self.samples, tile["T"]), self.channels, m.batch)

    def complex(self, *shape: int) -> Tensor:
        return torch.empty(*shape, self.samples, dtype=torch.complex64, device=self.m.x.device)

    def like(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.m.x.device)

    def normed(self) -> Tensor:
        """Give the input of the projection, (B L, D)."""
        return self.m.norm.apply(self.m.x, self.m.dtype).reshape(-1, self.m.width)

    def project(self, h: Tensor) -> Tensor:
        return torch.addmm(self.m.b_in, h, self.m.w_in.t())

    def filter_spectrum(self) -> Tensor:
        z = self.complex(self.m.width)
        grid = (*self.over_samples[:2], 1)
        launch(_turn_taps, grid, [self.k], [z], *self.sizes, TWO=self.m.two_sided, **self.tile)
        return _transform(z, True)

    def multiply(self, U: Tensor, K: Tensor) -> None:
        m, N = self.m, min(_SAMPLES, power(self.samples, 16))
        grid = (blocks(self.samples, N), m.width, m.batch)
        launch(_multiply, grid, [U, K, self.skip], [U], self.samples, m.width, N=N)

    def gated(self, p: Tensor, K: Tensor, kept: Tensor | None) -> Tensor:
        """Give the gated output of the transforms, (B L, D), and keep what it was before."""
        m = self.m
        U = self.complex(m.batch, m.width)
        both, first = slice(m.width, None), slice(m.width)
        launch(
            _open, self.over_samples, [p[:, both], self.taps[both], self.bias[both]], [U],
            *self.sizes, **self.short,
        )  # fmt: skip
        U = _transform(U, True)
        self.multiply(U, K)
        U = _transform(U, False)
        g = self.like(m.batch * m.length, m.width, dtype=m.dtype)
        launch(
            _gate, self.over_length, [U, p[:, first], self.taps[first], self.bias[first]],
            [g, kept], *self.sizes, 1 / self.samples, **self.short,
        )  # fmt: skip
        return g


def forward(m: Mixer, kept: Tensor) -> Tensor:
    """Compute the output; `kept`, (B, D, L), takes the transforms' result if it has elements."""
    call = _Call(m)
    g = call.gated(
        call.project(call.normed()), call.filter_spectrum(), kept if kept.numel() else None
    )
    return torch.addmm(m.b_out, g, m.w_out.t()).view(m.x.shape).to(m.out_dtype)


def backward(m: Mixer, dy_BLD: Tensor, kept: Tensor, grads: list[Tensor]) -> None:
    """Fill `grads`, in the order of the mixer's weights; one without elements is not wanted."""
    dx, dnorm_w, dnorm_b, dw_in, db_in, dw, db, dk_DM, dskip_D, dw_out, db_out = grads
    call = _Call(m)
    h = call.normed()
    p, K = call.project(h), call.filter_spectrum()
    if not kept.numel():
        kept = call.like(m.batch, m.width, m.length, dtype=torch.float32)
        call.gated(p, K, kept)
    dy = dy_BLD.reshape(-1, m.width).to(m.dtype)
    dg = dy @ m.w_out
    both, g = call.complex(2, m.batch, m.width), torch.empty_like(dg)
    launch(
        _open_backward, call.over_samples, [p, call.taps, call.bias, dg, kept], [*both, g],
        *call.sizes, **call.short,
    )  # fmt: skip
    if dw_out.numel():
        product_into(dw_out, dy.t(), g)
        torch.sum(dy, 0, dtype=db_out.dtype, out=db_out)
    del g
    U, G = _transform(both, True)
    del both
    needs_filter = dk_DM.numel() > 0
    dK = torch.empty_like(K) if needs_filter else None
    N = min(_SAMPLES, power(call.samples, 16))
    launch(
        _multiply_backward, (blocks(call.samples, N), m.width), [U, G, K, call.skip], [G, dK],
        call.samples, m.width, m.batch, N=N,
    )  # fmt: skip
    G = _transform(G, False)
    if dK is not None:
        launch(
            _turn_taps_back, call.over_samples[:2], [_transform(dK, False)],
            [dk_DM, dskip_D if dskip_D.numel() else None], *call.sizes, 1 / call.samples,
            TWO=m.two_sided, **call.tile,
        )  # fmt: skip
    dp = torch.empty_like(p)
    partial = call.like(
        m.batch * call.over_length[0], (m.w.shape[-1] + 2) * 3 * m.width, dtype=torch.float32
    )  # fmt: skip
    launch(
        _close_backward, call.over_length, [p, call.taps, call.bias, dg, kept, G], [dp, partial],
        *call.sizes, 1 / call.samples, **call.short,
    )  # fmt: skip
    del p, G, dg
    if dw_in.numel():
        sum_rows(partial, [dw, db, db_in])
        product_into(dw_in, dp.t(), h)
    dx_ND = dx.view(-1, m.width) if dx.numel() else None
    m.norm.backward_into(dp, m.w_in, m.x.reshape(-1, m.width), dx_ND, (dnorm_w, dnorm_b))

"""The long convolution: every position with every other, by FFT.

Work goes block by block, so that a block's spectra stay in the cache and nothing of size 2L
outlives its block. The backward pass transforms anew: cheaper than reading saved spectra from
memory.

Shape suffixes: B batch, D channels, L positions, M lags, N transform length, F frequencies; b and c
are blocks of B and D; T output and S input positions of the definition's matrix.
"""

import math
import operator as builtin
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megabase.ops import backend
from megabase.ops.registry import Saved, operator, wide_dtype

_SMALL = 32  # below this every length is quick enough, and the smallest one is taken


def lags(sizes: dict[str, int], given: dict[str, Any]) -> int:
    """Give the number of taps of a filter over L positions."""
    return 2 * sizes["L"] - 1 if given["two_sided"] else sizes["L"]


def _cost(n: int) -> float:
    # Measured with MKL on x86: per element, 2^a is quickest, 3 x 2^a nearly so, and lengths with
    # more odd factors about a fifth slower. Odd factors beyond 7 cost several times more.
    odd = rest = n // (n & -n)
    for prime in (3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    if rest > 1:
        return math.inf
    return n * (1.0 if odd == 1 else 1.05 if odd == 3 else 1.2)


@torch.compiler.assume_constant_result  # compilers do not look into the search
def fft_length(minimum: int) -> int:
    """Give the cheapest good transform length of at least `minimum`.

    Candidates are 2^a 3^b 5^c 7^d with a multiple of 16 (short lengths excepted); among those up to
    the next power of two the one with the lowest expected cost is taken. A linear convolution of L
    samples needs 2L - 1.

    Examples
    --------
    >>> fft_length(2047)
    2048
    >>> fft_length(501)
    512
    >>> fft_length(2 * 160_002 - 1)
    322560
    """
    return _fft_length(minimum)


@lru_cache(maxsize=1024)
def _fft_length(minimum: int) -> int:
    if minimum <= _SMALL:
        return max(1, minimum)
    power = 1 << (minimum - 1).bit_length()
    first = -(-minimum // 16) * 16
    best = power
    # Ends once a candidate could no longer beat the best one even at the lowest cost per element.
    for n in range(first, power, 16):
        if n >= _cost(best):
            break
        best = n if _cost(n) < _cost(best) else best
    return best


def convolution_flops(batch: int, channels: int, length: int) -> int:
    """Count the operations of a long convolution of every channel with its own filter."""
    points = fft_length(2 * length - 1)
    return (2 * batch + 1) * channels * round(2.5 * points * math.log2(points))


BLOCK_SAMPLES = 1 << 20
"""Samples per transform call: large enough to fill all cores, small enough for the cache."""
_MIN_ROWS = 16  # rows per transform call at least, because the library parallelizes over rows
_MATRIX_ELEMENTS = 1 << 27
"""Elements of the definition's matrix that exist at a time: 512 MB in float32."""
_CHECKS: dict[str, Any] = {"rules": {"M": lags}, "least": {"L": 1}}
"""What holds for the operator and for its gradient."""


def long_conv(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve each channel of `u_BDL` with its own filter along the last axis.

    One-sided (causal): ``y[t] = sum_{j=0..t} k[j] u[t-j] + skip u[t]``. Two-sided:
    ``y[t] = sum_s k[t-s+L-1] u[s] + skip u[t]``, the filter holding lags -(L-1) to L-1.
    Equation (4) of the HyenaDNA paper (arXiv 2306.15794). Shape and dtype stay; sums are formed in
    float32 at least. The fast path saves only its inputs, and has no second derivative.

    Parameters
    ----------
    u_BDL
        Input, shape (batch, channels, length).
    k_DM
        Filter, shape (channels, length), or (channels, 2 * length - 1) when `two_sided`.
    skip_D
        Weight of the unconvolved input, shape (channels,); left out when None.
    two_sided
        Whether the filter also has negative lags, which reach later positions.
    """
    if backend.active() == "reference":
        _forward.check(u_BDL, k_DM, skip_D, two_sided)
        return _long_conv_reference(u_BDL, k_DM, skip_D, two_sided=two_sided)
    if backend.use_plain(u_BDL, in_triton=False):
        _forward.check(u_BDL, k_DM, skip_D, two_sided)
        return _long_conv_plain(u_BDL, k_DM, skip_D, two_sided)
    return _forward(u_BDL, k_DM, skip_D, two_sided)


def _long_conv_reference(
    u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None = None, *, two_sided: bool = False
) -> Tensor:
    """Convolve by the matrix of all pairs of positions: the definition of :func:`long_conv`.

    A matrix that is too large is built some rows at a time, and those again for the gradient.
    """
    channels, length = u_BDL.shape[-2:]
    dtype = wide_dtype(u_BDL.dtype, k_DM.dtype)
    u, k_DM = u_BDL.to(dtype), k_DM.to(dtype)
    rows = max(1, _MATRIX_ELEMENTS // max(1, channels * length))
    if rows >= length:
        y_BDL = _matrix_rows(u, k_DM, 0, length, two_sided)
    else:
        again: Any = partial(checkpoint, _matrix_rows, u, k_DM, use_reentrant=False)
        ends = ((begin, min(begin + rows, length)) for begin in range(0, length, rows))
        y_BDL = torch.cat([again(*end, two_sided) for end in ends], dim=-1)
    if skip_D is not None:
        y_BDL = y_BDL + skip_D.to(dtype)[:, None] * u
    return y_BDL.to(u_BDL.dtype)


def _matrix_rows(u_BDL: Tensor, k_DM: Tensor, begin: int, end: int, two_sided: bool) -> Tensor:
    """Give the output positions from `begin` to `end`, shape (B, D, T)."""
    length = u_BDL.shape[-1]
    position = torch.arange(length, device=u_BDL.device)
    lag_TS = position[begin:end, None] - position[None, :]
    if two_sided:
        matrix_DTS = k_DM[:, lag_TS + length - 1]
    else:
        matrix_DTS = k_DM[:, lag_TS.clamp(min=0)] * (lag_TS >= 0)
    return torch.einsum("dts,bds->bdt", matrix_DTS, u_BDL)


def _long_conv_plain(u_BDL: Tensor, k_DM: Tensor, skip_D: Tensor | None, two_sided: bool) -> Tensor:
    """Convolve by FFTs of whole tensors."""
    dtype = wide_dtype(u_BDL.dtype, k_DM.dtype)
    length = builtin.index(u_BDL.shape[-1])  # a number for compilers: one graph for each length
    spectra = FilterSpectra(k_DM, skip_D, length, two_sided, dtype)
    U_BDF = torch.fft.rfft(u_BDL.to(dtype), n=spectra.n_fft)
    y_BDN = torch.fft.irfft(U_BDF * spectra.transform(slice(None)), n=spectra.n_fft)
    return y_BDN[..., :length].to(u_BDL.dtype)


@dataclass
class FilterSpectra:
    """Transforms of a filter with its skip term, and the way back for their gradients.

    Taps are (channels, lags) for inputs of `length` positions; samples are of `dtype`.
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
            gap = k_cM.new_zeros(k_cM.shape[0], self.n_fft - k_cM.shape[1])
            k_cM = torch.cat([k_cM[:, length - 1 :], gap, k_cM[:, : length - 1]], dim=1)
        K_cF = torch.fft.rfft(k_cM, n=self.n_fft)
        # The skip term is a tap at lag 0, whose spectrum is flat.
        return K_cF if self.skip is None else K_cF + self.skip[c, None].to(self.dtype)

    @staticmethod
    def blocks(batch: int, channels: int, rows: int) -> tuple[list[slice], list[slice]]:
        """Cut batch and channels into blocks of about `rows` transforms, channels first."""
        per_channel = max(1, min(channels, rows))
        per_batch = max(1, rows // per_channel)
        return (
            [slice(i, min(i + per_batch, batch)) for i in range(0, batch, per_batch)],
            [slice(i, min(i + per_channel, channels)) for i in range(0, channels, per_channel)],
        )

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


def _plan(
    u: Tensor, k: Tensor, skip: Tensor | None, two_sided: bool
) -> tuple[FilterSpectra, list[slice], list[slice], Tensor]:
    """Give the filter, blocks of rows and of channels, and a buffer for a block."""
    dtype = wide_dtype(u.dtype, k.dtype)
    spectra = FilterSpectra(k, skip, u.shape[2], two_sided, dtype)
    count = max(_MIN_ROWS, BLOCK_SAMPLES // spectra.n_fft)
    rows, channels = spectra.blocks(u.shape[0], u.shape[1], count)
    size = [max((b.stop - b.start for b in cut), default=0) for cut in (rows, channels)]
    return spectra, rows, channels, torch.zeros(*size, spectra.n_fft, dtype=dtype, device=u.device)


@operator("long_conv", lambda u, *_: convolution_flops(*u), **_CHECKS)
def _forward(
    u: Annotated[Tensor, "B D L"], k: Annotated[Tensor, "D M"], skip: Annotated[Tensor | None, "D"],
    two_sided: bool,
) -> Tensor:  # fmt: skip
    length = u.shape[2]
    spectra, rows, columns, work_bcN = _plan(u, k, skip, two_sided)
    y_BDL = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for c in columns:
        K_cF = spectra.transform(c)
        for b, U_bcF in _padded_blocks(u, rows, c, work_bcN):
            y_BDL[b, c] = torch.fft.irfft(U_bcF.mul_(K_cF), n=spectra.n_fft)[..., :length]
    return y_BDL


@operator("long_conv_backward", lambda dy, *_: convolution_flops(*dy), **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "B D L"], u: Annotated[Tensor, "B D L"], k: Annotated[Tensor, "D M"],
    skip: Annotated[Tensor | None, "D"], two_sided: bool, needs_u: bool, needs_filter: bool,
) -> list[Tensor]:  # fmt: skip
    length = u.shape[2]
    spectra, rows, columns, work_bcN = _plan(u, k, skip, two_sided)
    grads = du_BDL, dk_DM, dskip_D = _room(dy, u, k, skip, two_sided, needs_u, needs_filter)
    for c in columns:
        # A correlation is a product with the conjugate.
        K_cF = spectra.transform(c).conj_physical_()
        dK_cF = torch.zeros_like(K_cF)
        for b, G_bcF in _padded_blocks(dy, rows, c, work_bcN):
            if needs_filter:
                _, U_bcF = next(_padded_blocks(u, [b], c, work_bcN))
                dK_cF += U_bcF.conj_physical_().mul_(G_bcF).sum(dim=0)
            if needs_u:
                du_bcN = torch.fft.irfft(G_bcF.mul_(K_cF), n=spectra.n_fft)
                du_BDL[b, c] = du_bcN[..., :length].to(du_BDL.dtype)
        if needs_filter:
            spectra.gradient(dK_cF, c, dk_DM, None if skip is None else dskip_D)
    return grads


@_backward.register_fake
def _room(
    _dy: Tensor, u: Tensor, k: Tensor, skip: Tensor | None, _: bool, needs_u: bool, needs_k: bool
) -> list[Tensor]:
    """Make room for the gradients; one that is not wanted has no elements."""
    return [
        u.new_empty(u.shape if needs_u else (0,)),
        k.new_empty(k.shape if needs_k else (0,)),
        k.new_empty((0,)) if skip is None or not needs_k else skip.new_empty(skip.shape),
    ]


@_forward.register_gradients
def _(saved: Saved, dy: Tensor) -> list[Tensor]:
    needs_u, needs_k, needs_skip, _ = saved.needs
    return _backward(dy, *saved.inputs, needs_u, needs_k or needs_skip)

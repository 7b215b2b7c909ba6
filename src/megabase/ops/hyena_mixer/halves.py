"""The long convolution by two transforms of half the length, for ``megabase-kernels``.

The first N outputs of a linear convolution of at most N samples are the mean of two products of
polynomials of N terms: modulo x^N - 1 and modulo x^N + 1. What lies behind N joins the front with a
plus in the first and a minus in the second. The first is a real transform of N samples. For the
second the samples N/2 apart become one complex number, weighted so that the product is cyclic
(a "right-angle" convolution): a complex transform of N/2. Together they take a quarter less time
than one real transform of 2 N, and need no zeros.

Shape suffixes: R rows, c a block of channels, L positions, N samples, F = N/2 + 1 and H = N/2
frequencies of the two transforms.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from megabase.ops import kernels
from megabase.ops.fft_lengths import fft_length


def _half_length(length: int) -> int:
    """Give N: an even length that transforms are quick at, at least `length`."""
    found = fft_length(length)
    return found + found % 2


@lru_cache(maxsize=4)
def _weights(half: int, dtype: torch.dtype) -> Tensor:
    angle_H = torch.arange(half, dtype=torch.float64, device="cpu") * (math.pi / (2 * half))
    return torch.stack([angle_H.cos(), angle_H.sin()]).to(dtype)


class Halves:
    """Transforms of the blocks of one convolution of `length` positions.

    Samples are of `dtype`, float32 or float64; a `two_sided` filter has 2 L - 1 taps.
    """

    def __init__(self, length: int, two_sided: bool, dtype: torch.dtype) -> None:
        self.length, self.two_sided, self.dtype = length, two_sided, dtype
        self.n = _half_length(length)
        self.half = self.n // 2
        self.weights = _weights(self.half, dtype)
        self.pairs = torch.complex64 if dtype == torch.float32 else torch.complex128

    def _native(self, which: str, length: int, *arrays: Tensor) -> None:
        """Call a function of rows, the first of which says how many there are."""
        call = getattr(kernels.package().native, which)
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
        z_RH = torch.fft.ifft(Z_RH)
        self._native(
            "unfold", y_RL.shape[-1], z_RH.view(-1, self.half), cyclic_RN.view(-1, self.n),
            self.weights, y_RL.view(-1, y_RL.shape[-1]),
        )  # fmt: skip

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

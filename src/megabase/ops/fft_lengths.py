"""Lengths of filters and transforms: those that FFT libraries are quick at, and what they cost."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

_SMALL = 32
"""Below this every length is quick enough, and the smallest one is taken."""


def lags(sizes: dict[str, int], given: dict[str, Any]) -> int:
    """Give the number of taps of a filter over L positions."""
    return 2 * sizes["L"] - 1 if given["two_sided"] else sizes["L"]


def _odd_part(n: int) -> int:
    while n % 2 == 0:
        n //= 2
    return n


def _is_smooth(n: int) -> bool:
    for prime in (3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


def _cost(n: int) -> float:
    # Measured with MKL on x86: per element, 2^a is quickest, 3 x 2^a nearly so, and lengths with
    # more odd factors about a fifth slower. Odd factors beyond 7 cost several times more.
    odd = _odd_part(n)
    return n * (1.0 if odd == 1 else 1.05 if odd == 3 else 1.2)


@lru_cache(maxsize=1024)
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
    if minimum <= _SMALL:
        return max(1, minimum)
    power = 1 << (minimum - 1).bit_length()
    first = -(-minimum // 16) * 16
    best = power
    # The smooth lengths are dense enough that a few thousand candidates always hold some; the scan
    # ends once a candidate could no longer beat the best one even at the lowest cost per element.
    for n in range(first, power, 16):
        if n >= _cost(best):
            break
        if _is_smooth(_odd_part(n)) and _cost(n) < _cost(best):
            best = n
    return best


def _transform_flops(points: int) -> int:
    """Count the operations of a real Fourier transform of `points`."""
    return round(2.5 * points * math.log2(points)) if points > 1 else 0


def convolution_flops(batch: int, channels: int, length: int) -> int:
    """Count the operations of a long convolution of every channel with its own filter."""
    return (2 * batch + 1) * channels * _transform_flops(fft_length(2 * length - 1))

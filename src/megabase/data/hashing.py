"""Counter-based random numbers: every draw is a pure function of a key and an index.

So any split of the indices over processes and micro-batches sees the same draws, and a resumed run
needs no state. The mixer is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014).
"""

import numpy as np
import numpy.typing as npt

GOLDEN = 0x9E3779B97F4A7C15
"""Odd constant nearest to 2**64 divided by the golden ratio: the step between counters."""
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Multipliers of the finalizer, as published (Stafford's variant 13)."""
_MASK = (1 << 64) - 1  # Python integers do not wrap at 64 bits
_ROUNDS = 6
"""Feistel rounds of :meth:`Draws.permute`; four give a good shuffle, two more are a margin."""


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of every value: a bijection on 64-bit words, of any shape."""
    z = np.asarray(values, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


def mix_word(word: int) -> int:
    """Mix the low 64 bits of one Python integer, as :func:`mix64` does."""
    z = word & _MASK
    z = ((z ^ (z >> 30)) * FIRST) & _MASK
    z = ((z ^ (z >> 27)) * SECOND) & _MASK
    return z ^ (z >> 31)


class Draws:
    """Random numbers by index, under a key: the hash of integers (seed, stream, purpose, ...)."""

    def __init__(self, *words: int) -> None:
        self.key = 0
        """64 bits; the low 64 bits of each word count, and their order."""
        for word in words:
            self.key = mix_word(self.key + GOLDEN + (word & _MASK))

    def bits(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Give the 64 random bits of each non-negative index, of any shape."""
        counters = np.asarray(indices, dtype=np.int64).astype(np.uint64)
        return mix64((counters + np.uint64(1)) * np.uint64(GOLDEN) + np.uint64(self.key))

    def floats(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Give float64 uniform in [0, 1), with 53 bits."""
        return (self.bits(indices) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(
        self, indices: npt.NDArray[np.int64], bound: int | npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Give integers (int64) uniform in [0, bound), bound in [1, 2**63).

        The upper half of the 128-bit product bits * bound: no value is likelier than another by
        more than bound / 2**64 (1.7e-10 for three billion positions); a remainder would favor
        small ones.
        """
        bits, b = self.bits(indices), np.asarray(bound, dtype=np.int64).astype(np.uint64)
        low32, by32 = np.uint64(0xFFFFFFFF), np.uint64(32)
        bits_low, bits_high = bits & low32, bits >> by32
        b_low, b_high = b & low32, b >> by32
        middle = bits_high * b_low + ((bits_low * b_low) >> by32)
        other = bits_low * b_high + (middle & low32)
        return (bits_high * b_high + (middle >> by32) + (other >> by32)).astype(np.int64)

    def permute(
        self, places: npt.NDArray[np.int64], size: int, which: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Apply pseudorandom permutations of range(size) at the given places, int64 (n,), only.

        A Feistel network on the next even power of two, walked until the value lies below `size`:
        no table of a whole permutation is ever made. `which`, int64 (n,), numbers the permutations.
        """
        keys = mix64(self.bits(which))
        half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        low = np.uint64((1 << int(half)) - 1)
        round_keys = [mix64(keys + np.uint64(number + 1)) for number in range(_ROUNDS)]
        value = np.asarray(places, dtype=np.int64).astype(np.uint64)
        pending = np.arange(value.size)
        while pending.size:
            current = value[pending]
            left, right = current >> half, current & low
            for round_key in round_keys:
                mixed = mix64(right * np.uint64(GOLDEN) + round_key[pending])
                left, right = right, left ^ (mixed >> np.uint64(32)) & low
            current = (left << half) | right
            value[pending] = current
            pending = pending[current >= np.uint64(size)]
        return value.astype(np.int64)

"""k-mers: cutting sequences into them and numbering them.

The number of a k-mer b_0 .. b_{k-1} is ``sum(digit(b_j) * 4 ** (k - 1 - j))``, the last base
running fastest, where the digits of the bases follow the order of the vocabulary (A, C, G, T here;
A, T, C, G for DNABERT).

Shape suffixes: B sequences, L bases, T k-mers.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
from torch import Tensor

from megabase.errors import ModelError
from megabase.genome import alphabet

__all__ = ["all_kmers", "check_k", "kmer_count", "kmer_numbers", "split_kmers"]


def check_k(k: int) -> None:
    """Refuse a k-mer length that has no table of a sensible size.

    Raises
    ------
    ModelError
        When `k` is not between 1 and 8 (4**8 = 65,536 k-mers).
    """
    if not 1 <= k <= 8:
        raise ModelError(f"expected a k-mer length between 1 and 8, found k={k}")


def all_kmers(k: int, order: str = alphabet.BASES) -> list[str]:
    """List every k-mer, the last base running fastest.

    Parameters
    ----------
    k
        Bases in a k-mer, 1 to 8.
    order
        The four bases in the order of the vocabulary.

    Returns
    -------
    list[str]
        4**k strings.

    Examples
    --------
    >>> all_kmers(2, "ATCG")[:5]
    ['AA', 'AT', 'AC', 'AG', 'TA']
    """
    check_k(k)
    return ["".join(letters) for letters in product(order, repeat=k)]


def kmer_count(length: int, k: int, stride: int = 1) -> int:
    """Count the whole k-mers of a sequence.

    Examples
    --------
    >>> kmer_count(10, 6), kmer_count(10, 6, stride=6), kmer_count(5, 6)
    (5, 1, 0)
    """
    return max((length - k) // stride + 1, 0) if length >= k else 0


def split_kmers(sequence: str, k: int, stride: int = 1, drop_last: bool = False) -> list[str]:
    """Cut a string into whole k-mers; bases after the last whole k-mer are left out.

    Parameters
    ----------
    sequence
        Any string; nothing is checked or changed.
    k
        Letters in a k-mer.
    stride
        Letters between the starts of neighbours: 1 overlapping, `k` side by side.
    drop_last
        Leave out a k-mer that ends with the sequence, as the script that prepared DNABERT's
        pretraining data did.

    Returns
    -------
    list[str]
        The k-mers from left to right.

    Examples
    --------
    >>> split_kmers("ACGTA", 3), split_kmers("ACGTA", 3, drop_last=True)
    (['ACG', 'CGT', 'GTA'], ['ACG', 'CGT'])
    """
    stop = len(sequence) - k + (0 if drop_last else 1)
    return [sequence[start : start + k] for start in range(0, max(stop, 0), stride)]


@cache
def _digit_table(order: str, device: torch.device) -> Tensor:
    table = torch.full((256,), -1, dtype=torch.long)
    for code, letter in enumerate(alphabet.BASES):
        table[code] = table[code | alphabet.SOFT_MASK] = order.index(letter)
    return table.to(device)


def kmer_numbers(
    codes_BL: Tensor, k: int, stride: int = 1, order: str = alphabet.BASES
) -> tuple[Tensor, Tensor]:
    """Compute the numbers of the k-mers of sequences given as base codes, on their device.

    Parameters
    ----------
    codes_BL
        uint8 (B, L) codes of :mod:`megabase.genome.alphabet`; the soft-mask bit makes no
        difference.
    k, stride
        As in :func:`split_kmers`.
    order
        The four bases in the order of the vocabulary.

    Returns
    -------
    numbers : Tensor
        int64 (B, T): the number of each k-mer, or -1 where it holds a letter that is not a base.
    padding : Tensor
        bool (B, T): the k-mer holds nothing but padding.

    Raises
    ------
    ModelError
        When the sequences are shorter than `k`.
    """
    length = codes_BL.shape[-1]
    if length < k:
        raise ModelError(f"sequences of {length} bases hold no {k}-mer; give {k} bases or more")
    span = (kmer_count(length, k, stride) - 1) * stride + 1
    table = _digit_table(order, codes_BL.device)
    digits_BL = table.index_select(0, codes_BL.reshape(-1).int()).view(codes_BL.shape)
    outside_BL = (codes_BL & alphabet.BASE_BITS) == alphabet.PAD
    first = digits_BL[..., 0:span:stride]
    numbers, known, padding = first.clone(), first >= 0, outside_BL[..., 0:span:stride]
    for place in range(1, k):
        window = slice(place, place + span, stride)
        numbers = numbers * 4 + digits_BL[..., window]
        known = known & (digits_BL[..., window] >= 0)
        padding = padding & outside_BL[..., window]
    return torch.where(known, numbers, -1), padding

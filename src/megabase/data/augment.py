"""Work on batches of base codes, on whatever device they are.

Codes stay one byte a base until the last moment: strand and shift are taken on the device, and only
then are they looked up as token ids (eight bytes a base). The tables are those of
:mod:`megabase.genome.alphabet`, kept once on each device.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from megabase.genome import alphabet


@cache
def _token_table(device: torch.device) -> Tensor:
    return torch.from_numpy(alphabet.TOKEN_ID_OF_CODE.astype(np.int64)).to(device)


@cache
def _complement_table(device: torch.device) -> Tensor:
    codes = np.arange(256, dtype=np.uint8)
    # The reverse complement of all codes in order is the complement table, read backwards.
    return torch.from_numpy(alphabet.reverse_complement(codes)[::-1].copy()).to(device)


def _look_up(table: Tensor, codes: Tensor) -> Tensor:
    # As an index, uint8 would mean a mask.
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)


def codes_to_ids(codes: Tensor) -> Tensor:
    """Look base codes up as int64 token ids: A 7, C 8, G 9, T 10, N 11, padding 4.

    The soft-mask bit makes no difference.
    """
    return _look_up(_token_table(codes.device), codes)


def reverse_complement_codes(codes: Tensor, reverse: Tensor) -> Tensor:
    """Take the reverse complement of the rows of codes (n, length) marked by a bool (n,).

    Padding is reversed with the rest, so it moves to the other end. The soft-mask bit stays with
    its base.
    """
    flipped = _look_up(_complement_table(codes.device), codes.flip(-1))
    return torch.where(reverse[:, None], flipped, codes)


def is_base(codes: Tensor) -> Tensor:
    """Tell which codes are A, C, G or T (not N, not padding), bool of the same shape."""
    return (codes & alphabet.BASE_BITS) <= alphabet.T


def is_soft_masked(codes: Tensor) -> Tensor:
    """Tell which bases were written in lower case, bool of the same shape."""
    return (codes & alphabet.SOFT_MASK) != 0

"""Work on batches of base codes, on whatever device they are.

Codes stay one byte a base until the last moment: strand and shift are taken on the device, and only
then are they looked up as token ids (eight bytes a base).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megabase.genome import alphabet


def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Give token ids, and complements, by base code."""
    # The reverse complement of all codes in order is the complement table, read backwards.
    other = alphabet.reverse_complement(np.arange(256, dtype=np.uint8))[::-1].copy()
    tables = alphabet.TOKEN_ID_OF_CODE.astype(np.int64), other
    return torch.from_numpy(tables[0]).to(device), torch.from_numpy(tables[1]).to(device)


def _look_up(table: Tensor, codes: Tensor) -> Tensor:
    # As an index, uint8 would mean a mask.
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)


def codes_to_ids(codes: Tensor) -> Tensor:
    """Look base codes, in either case, up as int64 ids: A 7, C 8, G 9, T 10, N 11, padding 4."""
    return _look_up(_tables(codes.device)[0], codes)


def reverse_complement_codes(codes: Tensor, reverse: Tensor) -> Tensor:
    """Take the reverse complement of the rows of codes (n, length) marked by a bool (n,).

    Padding is reversed with the rest, so it moves to the other end. The soft-mask bit stays with
    its base.
    """
    flipped = _look_up(_tables(codes.device)[1], codes.flip(-1))
    return torch.where(reverse[:, None], flipped, codes)

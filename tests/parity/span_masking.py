"""Masking of k-mer spans, DNABERT's pretraining task.

Overlapping k-mers give each other away, so around each drawn center the neighbors that share its
bases are hidden too. The order of random draws is that of the DNABERT repository, so equal seeds
give equal masks.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megabase.errors import ModelError

__all__ = ["SPAN_OFFSETS", "MaskedKmers", "extend_spans", "mask_kmer_spans"]

SPAN_OFFSETS: dict[int, tuple[int, ...]] = {
    3: (-1, 1),
    4: (-1, 1, 2),
    5: (-2, -1, 1, 2),
    6: (-2, -1, 1, 2, 3),
}
"""k -> neighbors of a center that are masked with it (DNABERT repository)."""
IGNORED = -100
"""Label of a position that is no target."""


class MaskedKmers(NamedTuple):
    """Inputs with spans hidden, and what was there.

    Parameters
    ----------
    input_ids
        int64 (batch, tokens).
    labels
        int64 (batch, tokens): the original id at picked positions, -100 elsewhere.
    """

    input_ids: Tensor
    labels: Tensor


def extend_spans(centres_BT: Tensor, allowed_BT: Tensor, k: int) -> Tensor:
    """Add the neighbors of each center, up to the ends of the sequence.

    Parameters
    ----------
    centres_BT
        bool: drawn centers.
    allowed_BT
        bool: positions that may be drawn (no special tokens, no padding). Neighbors are kept from
        position 1 to the last allowed position; positions between that are not allowed, such as
        the special tokens of an inner piece, are taken in, as published.
    k
        3 to 6.

    Returns
    -------
    Tensor
        bool (B, T): centers and neighbors.

    Raises
    ------
    ModelError
        For another `k`.
    """
    if k not in SPAN_OFFSETS:
        raise ModelError(f"spans are defined for k of 3, 4, 5 and 6, not k={k}")
    length = centres_BT.shape[1]
    place_T = torch.arange(length, device=centres_BT.device)
    last_B = torch.where(allowed_BT, place_T, 0).amax(dim=1)
    spans_BT = torch.zeros_like(centres_BT)
    for offset in SPAN_OFFSETS[k]:
        source, target = max(-offset, 0), max(offset, 0)
        count = length - abs(offset)
        if count > 0:
            spans_BT[:, target : target + count] |= centres_BT[:, source : source + count]
    inside_BT = (place_T >= 1) & (place_T <= last_B[:, None])
    return centres_BT | (spans_BT & inside_BT)


def mask_kmer_spans(
    input_ids: Tensor,
    special: Tensor,
    *,
    k: int,
    seed: int | Tensor | None = None,
    probability: float = 0.025,
    mask_id: int = 4,
    vocab_size: int | None = None,
) -> MaskedKmers:
    """Hide spans of k-mers: a pure function of the ids and the seed.

    Centres are drawn with the given probability among positions that are not special and extended
    by :data:`SPAN_OFFSETS`. Each hidden position then becomes, on its own, ``[MASK]`` (80 %), a
    random id of the whole vocabulary, special ids included, as published (10 %), or stays (10 %).

    Parameters
    ----------
    input_ids
        int64 (batch, tokens).
    special
        bool (batch, tokens): special tokens and padding.
    k
        3 to 6.
    seed
        One seed for the batch, as published; or int64 (batch,), one seed for each sequence, which
        makes a sequence's mask independent of the batch it is in; None draws from torch's global
        generator. Random numbers are drawn on the CPU, so that they are the same for any device.
    probability
        Share of positions drawn as centers: 0.025 (k = 6); published runs use 0.15 / k.
    mask_id
        Id of ``[MASK]``.
    vocab_size
        Number of ids random replacements come from; 4**k + 5 when None.

    Returns
    -------
    MaskedKmers

    Raises
    ------
    ModelError
        For a `k` without spans, a probability outside [0, 1], or masks and seeds of another shape.
    """
    if not 0 <= probability <= 1:
        raise ModelError(f"expected a probability between 0 and 1, found {probability}")
    if special.shape != input_ids.shape:
        raise ModelError(
            f"expected a special-token mask of shape {tuple(input_ids.shape)}, "
            f"found {tuple(special.shape)}"
        )
    size = 4**k + 5 if vocab_size is None else vocab_size
    if not isinstance(seed, Tensor):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return _mask(input_ids, special, k, generator, probability, mask_id, size)
    if seed.shape != input_ids.shape[:1]:
        raise ModelError(
            f"expected one seed for each of {input_ids.shape[0]} sequences, "
            f"found seeds of shape {tuple(seed.shape)}"
        )
    rows = [
        _mask(
            input_ids[row : row + 1],
            special[row : row + 1],
            k,
            torch.Generator().manual_seed(value),
            probability,
            mask_id,
            size,
        )
        for row, value in enumerate(seed.tolist())
    ]
    return MaskedKmers(
        torch.cat([row.input_ids for row in rows]), torch.cat([row.labels for row in rows])
    )


def _mask(
    ids_BT: Tensor,
    special_BT: Tensor,
    k: int,
    generator: torch.Generator | None,
    probability: float,
    mask_id: int,
    vocab_size: int,
) -> MaskedKmers:
    def coin(share: Tensor) -> Tensor:
        return torch.bernoulli(share, generator=generator).bool().to(ids_BT.device)

    special = special_BT.bool()
    share_BT = torch.full(ids_BT.shape, probability).masked_fill(special.cpu(), 0.0)
    picked_BT = extend_spans(coin(share_BT), ~special, k)
    masked_BT = coin(torch.full(ids_BT.shape, 0.8)) & picked_BT
    replaced_BT = coin(torch.full(ids_BT.shape, 0.5)) & picked_BT & ~masked_BT
    random_BT = torch.randint(vocab_size, ids_BT.shape, generator=generator).to(ids_BT.device)
    hidden_BT = torch.where(masked_BT, mask_id, ids_BT)
    hidden_BT = torch.where(replaced_BT, random_BT, hidden_BT)
    return MaskedKmers(hidden_BT, torch.where(picked_BT, ids_BT, IGNORED))

"""One vector per sequence, from the vectors of its positions.

Every mode but the two published ones looks at real tokens only.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from megabase.errors import MegabaseError

Pooling = Literal["mean", "last", "first", "max", "sum", "published_mean", "hf"]
"""``mean``, ``last``, ``first``, ``max``, ``sum``: over real tokens. ``published_mean``: over all
positions, padding included (the published training code). ``hf``: the position before the first
pad, counted around the end (the published Hugging Face port)."""
POOLINGS: tuple[str, ...] = get_args(Pooling)
"""Names of all modes."""


def pool(hidden: Tensor, mode: Pooling, mask: Tensor | None = None) -> Tensor:
    """Pool positions of (batch, length, width) by a mode of :data:`POOLINGS`.

    `mask` is True at real tokens; all are real when None. A sequence without any gives zeros
    (``mean``, ``sum``, ``max``) or its last or first position.
    """
    if mode not in POOLINGS:
        raise MegabaseError(f"expected a pooling of {', '.join(POOLINGS)}, found {mode!r}")
    if mask is None or mode == "published_mean":
        if mode in ("mean", "published_mean"):
            return hidden.mean(dim=1)
        if mode in ("sum", "max"):
            return hidden.sum(dim=1) if mode == "sum" else hidden.amax(dim=1)
        return hidden[:, 0] if mode == "first" else hidden[:, -1]
    mask = mask.bool()
    if mode in ("last", "first", "hf"):
        length = mask.shape[1]
        place = torch.arange(length, device=mask.device)
        if mode == "last":
            index = torch.where(mask, place, -1).amax(dim=1)
        elif mode == "first":
            index = torch.where(mask, place, length).amin(dim=1)
        else:
            index = torch.where(mask, length, place).amin(dim=1) - 1
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), index % length]
    if mode == "max":
        smallest = torch.finfo(hidden.dtype).min
        largest = hidden.masked_fill(~mask[..., None], smallest).amax(dim=1)
        return torch.where(mask.any(dim=1, keepdim=True), largest, torch.zeros_like(largest))
    total = torch.bmm(mask[:, None].to(hidden.dtype), hidden)[:, 0]
    count = 1 if mode == "sum" else mask.sum(dim=1, keepdim=True).clamp(min=1).to(hidden.dtype)
    return total / count

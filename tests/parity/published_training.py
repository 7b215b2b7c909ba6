"""Rules of the published training code that only its recorded cases need.

Sources: HazyResearch/hyena-dna, ``src/callbacks/seqlen_warmup_reload.py``; kuleshov-group/caduceus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megabase.data.vocabulary import MASK_ID, VOCABULARY_SIZE
from megabase.errors import ConfigError

__all__ = ["PublishedStages", "published_masking"]


class Masking(NamedTuple):
    """Ids with some positions hidden, and which ones were picked."""

    input_ids: Tensor
    picked: Tensor


def published_masking(
    ids: Tensor,
    probability: float,
    generator: torch.Generator | None = None,
    vocabulary_size: int = VOCABULARY_SIZE,
) -> Masking:
    """Mask as the Caduceus repository does, with torch's own random numbers in its order.

    Each position is picked with the given probability; of the picked, 80 % become the mask token,
    10 % a random id below `vocabulary_size`, special tokens included, and 10 % stay.

    Parameters
    ----------
    ids
        int64, any shape.
    probability
        Share of positions to pick.
    generator
        Source of random numbers; torch's global one when None.
    vocabulary_size
        Number of ids that a random replacement is drawn from.

    Returns
    -------
    Masking
    """

    def coin(share: float) -> Tensor:
        return torch.bernoulli(torch.full(ids.shape, share), generator=generator).bool()

    picked, masked, replaced = coin(probability), coin(0.8), coin(0.5)
    random = torch.randint(vocabulary_size, ids.shape, generator=generator)
    hidden = torch.where(picked & masked, MASK_ID, ids)
    return Masking(torch.where(picked & ~masked & replaced, random, hidden), picked)


@dataclass(frozen=True)
class PublishedStages:
    """The epoch-based stage rule of the HyenaDNA repository, its oddities included.

    A stage moves on by at most one at the end of an epoch, so a stage of 0 epochs runs one; the
    last stage goes on for ever; a run resumed after the end of the last stage fails.

    Parameters
    ----------
    epochs
        Duration of every stage in epochs.
    batch_sizes
        Sequences per device of every stage, or None where the stage has none.
    global_batch
        Sequences per step that the accumulation aims at, ignoring the number of devices.
    """

    epochs: Sequence[int]
    batch_sizes: Sequence[int | None]
    global_batch: int

    @property
    def cumulative(self) -> list[int]:
        """Epoch at which every stage ends."""
        ends: list[int] = []
        for count in self.epochs:
            ends.append((ends[-1] if ends else 0) + count)
        return ends

    @property
    def accumulation(self) -> dict[int, int] | None:
        """First epoch of a stage -> micro-batches per step; None when a stage has no batch size.

        A batch above the global batch gives 0. Stages that begin in the same epoch share a key,
        and the later one wins.
        """
        table: dict[int, int] = {}
        for first, size in zip([0, *self.cumulative], self.batch_sizes, strict=False):
            if size is None:
                return None
            table[first] = self.global_batch // size
        return table

    def next_stage(self, stage: int, next_epoch: int) -> int:
        """Give the stage of epoch ``next_epoch`` when the epoch before it ran in ``stage``."""
        over = next_epoch >= self.cumulative[stage]
        return stage + 1 if over and stage + 1 < len(self.epochs) else stage

    def at(self, epoch: int) -> int:
        """Give the stage of an epoch of a run that started at epoch 0."""
        stage = 0
        for following in range(1, epoch + 1):
            stage = self.next_stage(stage, following)
        return stage

    def on_resume(self, epoch: int) -> int:
        """Give the stage that a run resumed at ``epoch`` starts in.

        Raises
        ------
        ConfigError
            When the last stage is over; the repository fails there with an IndexError.
        """
        stage = bisect_left([end - 1 for end in self.cumulative], epoch)
        if stage >= len(self.epochs):
            raise ConfigError(
                f"epoch {epoch} is past the last stage, which ends at epoch {self.cumulative[-1]}; "
                "there is nothing left to resume"
            )
        return stage

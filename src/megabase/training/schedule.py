"""Learning rate, sequence length and position in the data as pure functions of the step.

The published rules are those of the HyenaDNA repository (HazyResearch/hyena-dna,
``src/callbacks/seqlen_warmup_reload.py``, ``train.py`` and the timm cosine schedule); warm-up of
the sequence length is described in the HyenaDNA paper (arXiv 2306.15794), section 3.2.
"""

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from megabase.errors import ConfigError
from megabase.settings import OptimConfig, TrainConfig


def lr_at(step: int, config: OptimConfig, total: int, base_lr: float | None = None) -> float:
    """Learning rate of a step (from 0) of `total`; past the end of the schedule, its final value.

    `base_lr` is the highest rate of the parameter group. The published schedule ends every group at
    the same absolute rate, ``min_lr_ratio * config.lr``.
    """
    peak = config.lr if base_lr is None else base_lr
    span = int(config.schedule_steps or total)
    warmup: float | None = config.warmup_steps
    if warmup is None:
        warmup = config.warmup_fraction * span
        warmup = warmup if config.schedule == "published" else round(warmup)
    if config.schedule == "published":
        low = config.min_lr_ratio * config.lr
        if step < warmup:
            return config.warmup_lr + step * (peak - config.warmup_lr) / warmup
        if step >= span:
            return low
        # Not counted from the end of the warm-up: the rate drops a little as the cosine starts.
        return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * step / span))
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    low = config.min_lr_ratio * peak
    progress = min(1.0, (step - warmup) / max(1, span - warmup))
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * progress))


class StagePoint(NamedTuple):
    """Where a step stands in the run."""

    stage: int  # number of the stage, from 0
    length: int  # input positions per sequence
    micro_batch: int  # sequences per device and forward pass
    global_batch: int  # sequences of the step over all devices
    first_index: int = 0  # running number, inside the stage, of the step's first sequence


class LengthSchedule:
    """The stages of a run laid out in optimizer steps on `world` devices.

    `epoch_size` gives the windows in one pass at a length, or None when there is no such number
    (random windows). A ConfigError for epochs of a source without epochs, or a global batch that
    does not divide by the number of devices. With ``length_rule="constant"`` the global batch of a
    step depends on neither the number of devices nor the micro-batch. With ``"published"`` it is
    ``world * micro_batch * (global_batch // micro_batch)``.
    """

    def __init__(
        self, config: TrainConfig, world: int, epoch_size: Callable[[int], int | None]
    ) -> None:
        self.world = world
        self.total_steps = 0
        """Optimizer steps of the run."""
        self.total_tokens = 0
        """Input positions of the run."""
        self._starts: list[int] = []
        self._points: list[StagePoint] = []
        for number, stage in enumerate(config.stages):
            batch, micro = _batch_of(config, number, world)
            tokens = batch * stage.length
            limits = [_steps_of(config, number, batch, world, epoch_size)]
            if config.steps is not None:
                limits.append(int(config.steps) - self.total_steps)
            if config.tokens is not None:
                limits.append(math.ceil((int(config.tokens) - self.total_tokens) / tokens))
            steps = min(limit for limit in limits if limit is not None)
            if steps <= 0:
                break
            self._starts.append(self.total_steps)
            self._points.append(StagePoint(number, stage.length, micro, batch))
            self.total_steps += steps
            self.total_tokens += steps * tokens

    def stages(self) -> list[tuple[StagePoint, int]]:
        """Give the first point and the number of steps of every stage."""
        spans = pairwise([*self._starts, self.total_steps])
        return [(self.at(first), last - first) for first, last in spans]

    def at(self, step: int) -> StagePoint:
        """Give the point of a step; a step past the end continues the last stage."""
        stage = bisect_right(self._starts, step) - 1
        point = self._points[stage]
        return point._replace(first_index=(step - self._starts[stage]) * point.global_batch)


def _batch_of(config: TrainConfig, number: int, world: int) -> tuple[int, int]:
    """Give (global batch, micro-batch) of a stage, in sequences."""
    stage = config.stages[number]
    if config.length_rule == "published":
        micro, batch = int(stage.micro_batch or 0), int(config.global_batch or 0)
        accumulate = batch // micro
        if accumulate < 1:
            raise ConfigError(
                f"stages[{number}].micro_batch {micro} is above global_batch {batch}: the "
                "published rule then accumulates 0 batches and never steps; lower micro_batch"
            )
        return world * micro * accumulate, micro
    if config.global_batch_tokens is not None:
        batch = max(1, int(config.global_batch_tokens) // stage.length)
    else:
        batch = int(config.global_batch or 1)
    if batch % world:
        raise ConfigError(
            f"stages[{number}]: {batch} sequences per step do not divide among {world} devices; "
            f"take a multiple of {world} for global_batch"
        )
    share = batch // world
    return batch, min(stage.micro_batch or share, share)


def _steps_of(
    config: TrainConfig, number: int, batch: int, world: int,
    epoch_size: Callable[[int], int | None],
) -> int | None:  # fmt: skip
    """Give the steps of a stage; None when it runs to the end of the budget."""
    stage = config.stages[number]
    if stage.steps is not None:
        return stage.steps
    if stage.tokens is not None:
        return math.ceil(stage.tokens / (batch * stage.length))
    if stage.epochs is None:
        return None
    size = epoch_size(stage.length)
    if size is None:
        raise ConfigError(
            f"stages[{number}] is given in epochs, but this kind of windows has no epochs; "
            "give steps or tokens"
        )
    if config.length_rule == "published":
        # A partial last accumulation still makes a step, in every epoch.
        micro = int(stage.micro_batch or 1)
        per_epoch = math.ceil(math.ceil(size / (world * micro)) / (batch // (world * micro)))
        return per_epoch * max(1, math.ceil(stage.epochs))
    return max(1, math.ceil(stage.epochs * size / batch))

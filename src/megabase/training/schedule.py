"""Learning rate, sequence length and position in the data as pure functions of the step.

The published rules are those of the HyenaDNA repository (HazyResearch/hyena-dna,
``src/callbacks/seqlen_warmup_reload.py``, ``train.py`` and the timm cosine schedule); warm-up of
the sequence length is described in the HyenaDNA paper (arXiv 2306.15794), section 3.2.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from megabase.errors import ConfigError
from megabase.settings import OptimConfig, TrainConfig


def lr_at(step: int, config: OptimConfig, total: int, base_lr: float | None = None) -> float:
    """Learning rate of a step (from 0) of `total`; past the end of the schedule, its final value.

    `base_lr` is the highest rate of the parameter group. The published schedule ends every group at
    the same absolute rate, ``min_lr_ratio * config.lr``.
    """
    peak = config.lr if base_lr is None else base_lr
    span = int(config.schedule_steps or total)
    warmup = config.warmup_steps
    if warmup is None:
        warmup = (
            config.warmup_fraction * span
            if config.schedule == "published"
            else round(config.warmup_fraction * span)
        )
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


@dataclass(frozen=True)
class StagePoint:
    """Where a step stands in the run."""

    stage: int
    """Number of the stage, from 0."""
    length: int
    """Input positions per sequence."""
    micro_batch: int
    """Sequences per device and forward pass."""
    global_batch: int
    """Sequences of the step over all devices."""
    first_index: int
    """Running number, inside the stage, of the step's first sequence."""
    tokens_before: int
    """Input positions seen before this step."""


class LengthSchedule:
    """The stages of a run laid out in optimizer steps on `world` devices.

    `epoch_size` gives the windows in one pass at a length, or None when there is no such number
    (random windows). A ConfigError for epochs of a source without epochs, or a global batch that
    does not divide by the number of devices. With ``length_rule="constant"`` the global batch of a
    step depends on neither the number of devices nor the micro-batch. With ``"published"`` it is
    ``world * micro_batch * (global_batch // micro_batch)``.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: int = 1,
        epoch_size: Callable[[int], int | None] | None = None,
    ) -> None:
        self._lengths: list[int] = []
        self._micro: list[int] = []
        self._batch: list[int] = []
        self._start: list[int] = [0]
        self._tokens: list[int] = [0]
        for number, stage in enumerate(config.stages):
            batch, micro = _batch_of(config, number, world)
            steps = _steps_of(config, number, batch, world, epoch_size)
            if config.steps is not None:
                left = int(config.steps) - self._start[-1]
                steps = left if steps is None else min(steps, left)
            elif config.tokens is not None:
                left = math.ceil((int(config.tokens) - self._tokens[-1]) / (batch * stage.length))
                steps = left if steps is None else min(steps, left)
            if steps is None:
                raise ConfigError("the run has no end: give steps or tokens")
            if steps <= 0:
                break
            self._lengths.append(stage.length)
            self._micro.append(micro)
            self._batch.append(batch)
            self._start.append(self._start[-1] + steps)
            self._tokens.append(self._tokens[-1] + steps * batch * stage.length)
        self.world = world

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self._start[-1]

    @property
    def total_tokens(self) -> int:
        """Input positions of the run."""
        return self._tokens[-1]

    def stages(self) -> list[tuple[StagePoint, int]]:
        """Give the first point and the number of steps of every stage."""
        spans = zip(self._start, self._start[1:], strict=False)
        return [(self.at(first), last - first) for first, last in spans]

    def at(self, step: int) -> StagePoint:
        """Give the point of a step; a step past the end continues the last stage."""
        stage = min(bisect_right(self._start, step) - 1, len(self._lengths) - 1)
        inside = step - self._start[stage]
        batch, length = self._batch[stage], self._lengths[stage]
        return StagePoint(
            stage=stage,
            length=length,
            micro_batch=self._micro[stage],
            global_batch=batch,
            first_index=inside * batch,
            tokens_before=self._tokens[stage] + inside * batch * length,
        )


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
    config: TrainConfig,
    number: int,
    batch: int,
    world: int,
    epoch_size: Callable[[int], int | None] | None,
) -> int | None:
    """Give the steps of a stage; None when it runs to the end of the budget."""
    stage = config.stages[number]
    if stage.steps is not None:
        return stage.steps
    if stage.tokens is not None:
        return math.ceil(stage.tokens / (batch * stage.length))
    if stage.epochs is None:
        return None
    size = epoch_size(stage.length) if epoch_size is not None else None
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

"""What a run reads: batches made ahead of time, and loss and metrics over fixed windows."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from megabase.errors import NotFiniteError
from megabase.objectives.base import Batch, Objective


class Batches(Protocol):
    """Windows or examples by number: pure functions of their arguments."""

    def batch(self, stream: int, indices: np.ndarray, length: int) -> Batch:
        """Give the items ``indices`` (int64) of stage ``stream`` with ``length`` positions."""
        ...

    def epoch_size(self, length: int) -> int | None:
        """Count the items of one epoch; None when there is no such thing."""


@dataclass(frozen=True)
class EvalSet:
    """The fixed windows that validation runs over."""

    data: Batches  # gives window i as ``batch(0, [i], length)``
    windows: int  # number of windows
    length: int  # input positions per window
    objective: Objective  # loss to report, without augmentation or weights
    metrics: Callable[[np.ndarray], Mapping[str, float]] | None = None
    """Metrics that are not sums over windows, such as AUROC: from the ``outputs`` (windows, K) that
    the objective gave for all windows, in their order; or from the ``table`` of one that counts,
    summed over all windows, for outputs that are too many to keep (one for every base)."""
    monitor: str = "loss"
    """What decides which checkpoint is the best: the loss, or one of `metrics`."""
    higher: bool = False  # whether more of `monitor` is better
    on_batch: Callable[[np.ndarray, Any], None] | None = None
    """Called with the numbers of the windows of a batch and what the objective gave for them, in
    the process that ran them; for predictions that are written and not kept."""


@dataclass(frozen=True)
class _Evaluation:
    """What came out."""

    loss: float  # mean loss in nats
    sums: dict[str, float]  # sums over all windows: ``loss``, ``count`` and the objective's metrics
    metrics: dict[str, float]  # result of ``EvalSet.metrics``
    outputs: np.ndarray | None = None
    """float32 (windows, K), when there are metrics to take from them."""


@torch.no_grad()
def evaluate(
    model: nn.Module, windows: EvalSet, size: int, fabric: Fabric, shared: int = 1
) -> _Evaluation:
    """Run a model over a fixed set. A collective: every process gets the same result.

    `size` are the windows per forward pass and reader: `shared` processes that read each window
    together. The model is left in the mode it was in. A NotFiniteError when the loss is NaN or
    infinite, or no window has a target.
    """
    rank, world = fabric.global_rank // shared, fabric.world_size // shared
    totals: dict[str, Tensor] = {}
    kept: Tensor | None = None
    table: Tensor | None = None
    mode = model.training
    model.eval()
    for low in range(0, windows.windows, size * world):
        mine = np.arange(low + rank * size, low + (rank + 1) * size, dtype=np.int64)
        mine = mine[mine < windows.windows]
        # FSDP needs every process in every forward pass: one without windows repeats the first.
        weight = 1.0 if len(mine) else 0.0
        indices = mine if len(mine) else np.zeros(1, dtype=np.int64)
        batch = fabric.to_device(windows.data.batch(0, indices, windows.length))
        loss = windows.objective(model, batch)
        for name, value in {"loss": loss.loss_sum, "count": loss.count, **loss.metrics}.items():
            totals[name] = totals.get(name, torch.zeros((), device=fabric.device)) + weight * value
        if windows.metrics is not None and loss.table is not None:
            counts = loss.table if len(mine) else torch.zeros_like(loss.table)
            table = counts if table is None else table.add_(counts)
        elif windows.metrics is not None:
            outputs: Any = loss.outputs
            if kept is None:
                kept = torch.zeros(windows.windows, outputs.shape[1], device=fabric.device)
            if len(mine):
                kept[mine[0] : mine[-1] + 1] = outputs.float()
        if windows.on_batch is not None and len(mine):
            windows.on_batch(mine, loss)
    model.train(mode)
    stacked = fabric.all_reduce(torch.stack(list(totals.values())).float(), reduce_op="sum")
    sums = dict(zip(totals, torch.as_tensor(stacked).tolist(), strict=True))
    if not sums["count"]:
        raise NotFiniteError(
            f"none of the {windows.windows:,} windows to measure on holds a known target (every "
            "base is N, or every label is unknown); give other ones"
        )
    mean = sums["loss"] / sums["count"]
    if not math.isfinite(mean):
        raise NotFiniteError(
            f"the loss over {windows.windows:,} windows is {mean}: the model's outputs are not "
            "finite; begin again from an earlier checkpoint with a lower optim.lr"
        )
    given = kept if table is None else table
    if given is None or windows.metrics is None:
        return _Evaluation(mean, sums, {})
    # Each row of outputs was filled by one process and is zero in the others.
    found = torch.as_tensor(fabric.all_reduce(given, reduce_op="sum")).cpu().numpy()
    return _Evaluation(mean, sums, dict(windows.metrics(found)), found if table is None else None)


_Request = TypeVar("_Request")
_Batch = dict[str, Tensor]


@contextmanager
def prefetched(
    load: Callable[[_Request], _Batch], requests: Iterable[_Request]
) -> Iterator[Iterator[_Batch]]:
    """Give an iterator over batches that a background thread makes ahead of time.

    `load` makes the batch of each of the `requests` (which may be endless); one is held ready. One
    thread is enough: reading windows of a memory-mapped store takes a small part of a step, and
    numpy releases the interpreter while it copies. An error in the thread is raised by the ``next``
    that would have given the batch. Leaving the ``with`` block ends the thread. For a CUDA
    device batches are in page-locked memory, from which it can read while it computes.
    """
    pin = torch.cuda.is_available()
    waiting, pool = iter(requests), ThreadPoolExecutor(1, "prefetch")

    def make() -> _Batch | None:
        for request in waiting:
            batch = load(request)
            return {k: v.pin_memory() for k, v in batch.items()} if pin else batch
        return None

    def batches() -> Iterator[_Batch]:
        pending = deque(pool.submit(make) for _ in range(2))  # one at work, one ready
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(make))
            yield batch

    try:
        yield batches()
    finally:
        pool.shutdown(cancel_futures=True)

"""Read the next batch while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

_Request = TypeVar("_Request")
_Batch = dict[str, Tensor]


@contextmanager
def prefetched(
    load: Callable[[_Request], _Batch], requests: Iterable[_Request], *,
    pin_memory: bool | None = None,
) -> Iterator[Iterator[_Batch]]:  # fmt: skip
    """Give an iterator over batches that a background thread makes ahead of time.

    `load` makes the batch of each of the `requests` (which may be endless); one is held ready. One
    thread is enough: reading windows of a memory-mapped store takes a small part of a step, and
    numpy releases the interpreter while it copies. An error in the thread is raised by the ``next``
    that would have given the batch. Leaving the ``with`` block ends the thread. `pin_memory` (None:
    when a CUDA device is there) copies batches into page-locked memory, from which a GPU can read
    while it computes.
    """
    pin = torch.cuda.is_available() if pin_memory is None else pin_memory
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

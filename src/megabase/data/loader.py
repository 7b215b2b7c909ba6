"""Read the next batch while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

_Request = TypeVar("_Request")
_Batch = dict[str, Tensor]


class Prefetcher(Generic[_Request]):
    """An iterator over batches that a background thread makes ahead of time.

    `load` makes the batch of each of the `requests` (which may be endless); one is held ready. One
    thread is enough: reading windows of a memory-mapped store takes a small part of a step, and
    numpy releases the interpreter while it copies. An error in the thread is raised by the ``next``
    that would have given the batch. Leaving the ``with`` block, or :meth:`close`, ends the thread.
    `pin_memory` (None: when a CUDA device is there) copies batches into page-locked memory, from
    which a GPU can read while it computes.
    """

    def __init__(
        self,
        load: Callable[[_Request], _Batch],
        requests: Iterable[_Request],
        *,
        pin_memory: bool | None = None,
    ) -> None:
        self._load = load
        self._requests = iter(requests)
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._pending: deque[Future[_Batch | None]] = deque()
        for _ in range(2):  # one at work, one ready
            self._pending.append(self._pool.submit(self._make))

    def _make(self) -> _Batch | None:
        """Make the next batch, in the thread; None after the last."""
        for request in self._requests:
            batch = self._load(request)
            return {k: v.pin_memory() for k, v in batch.items()} if self._pin else batch
        return None

    def __iter__(self) -> Iterator[_Batch]:
        return self

    def __next__(self) -> _Batch:
        if not self._pending:
            raise StopIteration
        try:
            batch = self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._pending.append(self._pool.submit(self._make))
        return batch

    def close(self) -> None:
        """End the thread and wait for it; batches made and not taken are dropped."""
        self._pool.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

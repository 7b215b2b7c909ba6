"""Read the next batch while the device works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Prefetcher", "pin_batch"]

_Request = TypeVar("_Request")
_Batch = dict[str, Tensor]
_POLL_SECONDS = 0.1


class _End:
    """What the thread puts last: nothing more comes, or the error that stopped it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def pin_batch(batch: _Batch) -> _Batch:
    """Copy a batch into page-locked memory, from which a GPU can read while it computes."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


class Prefetcher(Generic[_Request]):
    """An iterator over batches that a background thread makes ahead of time.

    One thread is enough: reading windows of a memory-mapped store takes a small part of a step,
    and numpy releases the interpreter while it copies. An error in the thread is raised by the
    ``next`` that would have given the batch. Leaving the ``with`` block, or :meth:`close`, ends
    the thread, whether or not all batches were taken.

    Parameters
    ----------
    load
        Makes the batch of a request.
    requests
        What to load, in order; consumed by the thread, and may be endless.
    depth
        Batches held ready, besides the one being made.
    pin_memory
        Copy batches into page-locked memory. None: when a CUDA device is there.

    Examples
    --------
    >>> with Prefetcher(lambda n: {"n": torch.tensor(n)}, range(3)) as batches:
    ...     [int(batch["n"]) for batch in batches]
    [0, 1, 2]
    """

    def __init__(
        self,
        load: Callable[[_Request], _Batch],
        requests: Iterable[_Request],
        *,
        depth: int = 1,
        pin_memory: bool | None = None,
    ) -> None:
        self._load = load
        self._requests = requests
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._queue: queue.Queue[_Batch | _End] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for request in self._requests:
                if self._stop.is_set():
                    return
                batch = self._load(request)
                if not self._put(pin_batch(batch) if self._pin else batch):
                    return
            self._put(_End())
        except BaseException as error:  # noqa: BLE001 (handed to the thread that takes batches)
            self._put(_End(error))

    def _put(self, item: _Batch | _End) -> bool:
        """Wait for room, but never past a call of close; say whether the item went in."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[_Batch]:
        return self

    def __next__(self) -> _Batch:
        if self._finished:
            raise StopIteration
        item = self._queue.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it; batches made and not taken are dropped."""
        self._finished = True
        self._stop.set()
        while True:  # room for a put that is under way
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Prefetcher[_Request]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from torch import Tensor

from megabase.training.evaluation import prefetched


def load(number: int) -> dict[str, Tensor]:
    return {"number": torch.tensor(number)}


def workers() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_batches_come_in_order_and_end() -> None:
    with prefetched(load, range(20)) as batches:
        assert [int(batch["number"]) for batch in batches] == list(range(20))
        with pytest.raises(StopIteration):
            next(batches)
    assert workers() == 0


def test_next_batch_is_made_while_this_one_is_used() -> None:
    made: list[int] = []

    def note(number: int) -> dict[str, Tensor]:
        made.append(number)
        return load(number)

    with prefetched(note, itertools.count()) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # One taken, one ready, one waiting for room: never more.
        assert made == [0, 1, 2]


def test_an_error_is_raised_where_its_batch_would_have_been() -> None:
    def fail(number: int) -> dict[str, Tensor]:
        if number == 2:
            raise ValueError("window 2 is broken")
        return load(number)

    with prefetched(fail, range(5)) as batches:
        assert int(next(batches)["number"]) == 0
        assert int(next(batches)["number"]) == 1
        with pytest.raises(ValueError, match="window 2"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)
    assert workers() == 0


def test_an_error_in_the_requests_is_raised_too() -> None:
    def requests() -> itertools.chain[int]:
        return itertools.chain([0], (1 // 0 for _ in range(1)))

    with prefetched(load, requests()) as batches:
        next(batches)
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_leaving_early_ends_the_thread() -> None:
    with prefetched(load, itertools.count()) as batches:
        next(batches)
    assert workers() == 0
    with pytest.raises(RuntimeError, match="user"), prefetched(load, itertools.count()):
        raise RuntimeError("user")
    assert workers() == 0

"""Time of the data path: drawing windows, reading them, turning them to token ids."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.config import BenchError, LoadConfig
from megabase.data.augment import codes_to_ids, reverse_complement_codes
from megabase.data.loader import Prefetcher
from megabase.data.regions import Regions
from megabase.data.windows import GenomeWindows, RandomWindows, count_n
from megabase.genome.interval import Interval
from megabase.genome.store import Genome

__all__ = ["made_up_store", "run_load"]

_LINE = 60
_BUSY = 0.02
"""Seconds that the loop which waits for batches is busy between two of them."""


def made_up_store(folder: Path, bases: int) -> Genome:
    """Build a store of random letters, one contig, 60 to a line."""
    letters = np.frombuffer(b"ACGTacgt", dtype=np.uint8)
    drawn = letters[np.random.default_rng(0).integers(0, 8, -(-bases // _LINE) * _LINE)]
    text = drawn.reshape(-1, _LINE)
    lines = np.concatenate((text, np.full((len(text), 1), ord("\n"), np.uint8)), axis=1)
    fasta = folder / "made_up.fa"
    fasta.write_bytes(b">chr1\n" + lines.tobytes())
    return Genome.build(fasta, folder / "made_up.mb")


def _seconds(call: Callable[[int], object], repeats: int) -> float:
    """Give the median time of a call, after a first one that is not counted."""
    times = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _data(store: Genome) -> tuple[RandomWindows, GenomeWindows]:
    source = RandomWindows(
        Regions.whole(store.lengths), seed=1, reverse_complement=0.5, max_n_fraction=0.1,
        count_n=partial(count_n, store),
    )  # fmt: skip
    return source, GenomeWindows(store, source)


def _check(store: Genome, data: GenomeWindows, config: LoadConfig) -> None:
    """Compare a batch with the bases fetched one window at a time."""
    numbers = np.arange(config.batch)
    codes = data.batch(0, numbers, config.length)["codes"].numpy()
    windows = data.source.draw(0, numbers, config.length, data.extra)
    names = [contig.name for contig in store.contigs]
    for row, contig, start in zip(codes, windows.contig, windows.start, strict=True):
        place = Interval(names[int(contig)], int(start), int(start) + row.shape[0])
        want = store.fetch(place)
        if not np.array_equal(row, want):
            raise BenchError("a batch differs from the bases of its windows: nothing is reported")


def run_load(
    config: LoadConfig, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Measure; see :class:`~benchmarks.speed.config.LoadConfig`.

    Returns
    -------
    dict
        Ready for JSON: seconds of ``draw``, ``batch`` (drawing and reading) and ``ids``,
        ``tokens_per_second``, and ``wait``, how long a busy loop waits for a batch that is read
        ahead.

    Raises
    ------
    BenchError
        When a batch holds other bases than its windows.
    """
    from megabase.training.run_folder import environment

    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        store = (
            made_up_store(Path(folder), config.bases)
            if config.genome is None
            else Genome(Path(config.genome))
        )
        say(f"{store.name}, {store.total_length:,} bases")
        source, data = _data(store)
        _check(store, data, config)

        def numbers(step: int) -> np.ndarray:
            return step * config.batch + np.arange(config.batch)

        ready = data.batch(0, numbers(0), config.length)
        seconds = {
            "draw": _seconds(
                lambda n: source.draw(0, numbers(n), config.length, 1), config.repeats
            ),
            "batch": _seconds(lambda n: data.batch(0, numbers(n), config.length), config.repeats),
            "ids": _seconds(
                lambda _: codes_to_ids(reverse_complement_codes(ready["codes"], ready["reverse"])),
                config.repeats,
            ),
        }
        seconds["wait"] = _waiting(data, config)
        facts = {"name": store.name, "bases": store.total_length}
    return {
        "kind": "load",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "genome": facts,
        "seconds": seconds,
        "tokens_per_second": config.batch * config.length / (seconds["batch"] + seconds["ids"]),
    }


def _waiting(data: GenomeWindows, config: LoadConfig) -> float:
    requests = (n * config.batch + np.arange(config.batch) for n in range(config.repeats + 1))
    waited = 0.0
    with Prefetcher(lambda n: data.batch(0, n, config.length), requests) as batches:
        next(batches)
        for _ in range(config.repeats):
            ends = time.perf_counter() + _BUSY
            while time.perf_counter() < ends:  # holds the interpreter, as a loop's own code does
                pass
            began = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - began
    return waited / config.repeats

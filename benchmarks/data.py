"""The data path: windows drawn, read and turned to token ids; and stores built and read."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.harness import (
    BenchError,
    OtherWork,
    Say,
    in_child,
    in_turns,
    made_up_fasta,
    medians,
    proc_bytes,
    record,
)
from megabase.data.regions import Regions
from megabase.data.vocabulary import codes_to_ids, reverse_complement_codes
from megabase.data.windows import GenomeWindows, RandomWindows
from megabase.genome.interval import Interval, Strand
from megabase.genome.store import Genome
from megabase.settings import Settings
from megabase.training.evaluation import prefetched

_BUSY = 0.02
"""Seconds that the loop which waits for batches is busy between two of them."""


@dataclass(frozen=True, kw_only=True)
class LoadConfig(Settings):
    """Drawing windows, reading them and turning them to token ids, beside a training step.

    A batch is compared with the bases of its windows first.
    """

    genome: str | None = None
    """Genome store; one of random letters when left out."""
    bases: int = 20_000_000
    """Bases of the made-up genome."""
    batch: int = 32
    """Sequences in a batch."""
    length: int = 1_024
    """Tokens of each."""
    repeats: int = 30
    """Batches of which the median counts."""
    step_seconds: float = 1.5
    """A training step of the same shape: tiny-1k at 32 x 1,024 on two cores, float32."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "bases batch length repeats",
        "be above 0": "step_seconds",
    }

    def _problems(self) -> Iterator[str]:
        if self.genome is None and self.bases < 2 * self.length:
            yield "bases must be at least twice the length"


@dataclass(frozen=True, kw_only=True)
class StoreConfig(Settings):
    """Building a store from a made-up FASTA, and fetching windows from it."""

    bases: float = 1e8
    """Bases of the genome."""
    contigs: int = 24
    """Records they are in."""
    repeats: int = 5
    """Passes over the windows of which the median counts, after a cold one."""

    _limits: ClassVar[Mapping[str, str]] = {"be at least 1": "contigs repeats"}

    def _problems(self) -> Iterator[str]:
        if self.bases < 100 * self.contigs:
            yield "bases must be at least 100 for each contig"


def run_load(config: LoadConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`LoadConfig`.

    Returns
    -------
    dict
        Ready for JSON: seconds of ``draw``, ``batch`` (drawing and reading) and ``ids``,
        ``share_of_step``, ``tokens_per_second``, and ``wait``, how long a busy loop waits for a
        batch that is read ahead.

    Raises
    ------
    BenchError
        When a batch holds other bases than its windows.
    """
    others = OtherWork()
    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        if config.genome is None:
            fasta = made_up_fasta(Path(folder) / "made_up.fa", config.bases)
            store = Genome.build(fasta, Path(folder) / "made_up.mb")
        else:
            store = Genome(Path(config.genome))
        say(f"{store.name}, {store.total_length:,} bases")
        source = RandomWindows(
            Regions.whole(store.lengths), seed=1, reverse_complement=0.5, max_n_fraction=0.1,
            store=store,
        )  # fmt: skip
        data = GenomeWindows(store, source)
        _check(store, data, config)
        numbers = (n * config.batch + np.arange(config.batch) for n in range(10**9))
        ready = data.batch(0, next(numbers), config.length)
        parts = {
            "draw": lambda: source.draw(0, next(numbers), config.length, 1),
            "batch": lambda: data.batch(0, next(numbers), config.length),
            "ids": lambda: codes_to_ids(
                reverse_complement_codes(ready["codes"], ready["reverse"])
            ),
        }  # fmt: skip
        seconds = medians(in_turns(parts, config.repeats))
        seconds["wait"] = _waiting(data, config)
        facts = {"name": store.name, "bases": store.total_length}
    path = seconds["batch"] + seconds["ids"]
    say(
        f"drawing {1e3 * seconds['draw']:.3f} ms, drawing and reading "
        f"{1e3 * seconds['batch']:.3f} ms, token ids {1e3 * seconds['ids']:.3f} ms: "
        f"{config.batch * config.length / path:,.0f} tokens/s, {path / config.step_seconds:.3%} of "
        f"a step of {config.step_seconds:g} s"
    )
    say(f"a busy loop waits {1e3 * seconds['wait']:.3f} ms for a batch that is read ahead")
    return record(
        "load", config, others, genome=facts, seconds=seconds,
        tokens_per_second=config.batch * config.length / path,
        share_of_step=path / config.step_seconds,
    )  # fmt: skip


def _check(store: Genome, data: GenomeWindows, config: LoadConfig) -> None:
    """Compare a batch with the bases fetched one window at a time."""
    numbers = np.arange(config.batch)
    codes = data.batch(0, numbers, config.length)["codes"].numpy()
    windows = data.source.draw(0, numbers, config.length, data.extra)
    for row, contig, start in zip(codes, windows.contig, windows.start, strict=True):
        name = store.contigs[int(contig)].name
        place = Interval(name, int(start), int(start) + row.shape[0])
        if not np.array_equal(row, store.fetch(place)):
            raise BenchError("a batch differs from the bases of its windows: nothing is reported")


def _waiting(data: GenomeWindows, config: LoadConfig) -> float:
    requests = (n * config.batch + np.arange(config.batch) for n in range(config.repeats + 1))
    waited = 0.0
    with prefetched(lambda n: data.batch(0, n, config.length), requests) as batches:
        next(batches)
        for _ in range(config.repeats):
            ends = time.perf_counter() + _BUSY
            while time.perf_counter() < ends:  # holds the interpreter, as a loop's own code does
                pass
            began = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - began
    return waited / config.repeats


def build(spec: dict[str, Any]) -> dict[str, float]:
    """Build a store in this process: ``seconds`` and ``peak_bytes`` above what it had before."""
    before = proc_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of imports does not count
    began = time.perf_counter()
    Genome.build(spec["fasta"], spec["store"])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_bytes": max(0, proc_bytes("VmHWM") - before)}


def run_store(config: StoreConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`StoreConfig`.

    Returns
    -------
    dict
        Ready for JSON: ``build`` (seconds, and peak memory above that of the process before),
        ``verify_seconds``, ``open_seconds`` and ``fetch_seconds`` of one window of a length.
    """
    others, rng = OtherWork(), np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        fasta = made_up_fasta(Path(folder) / "genome.fa", int(config.bases), config.contigs)
        target = Path(folder) / "genome.mb"
        built = in_child("benchmarks.data:build", fasta=str(fasta), store=str(target))
        if built["status"] != "measured":
            raise BenchError(f"the store could not be built: {built['reason']}")
        rate = config.bases / built["seconds"] / 1e6
        say(
            f"building from {os.path.getsize(fasta) / 1e6:,.0f} MB of FASTA: "
            f"{built['seconds']:.1f} s, {rate:,.0f} million bases/s, peak memory "
            f"{built['peak_bytes'] / 1e6:,.0f} MB"
        )
        store = Genome(target)
        longest, fetches = int(store.lengths.min()), {}
        for count, length in ((4096, 1024), (32, 131_072), (4, 1_000_000)):
            if length > longest:
                continue
            starts = rng.integers(0, longest - length + 1, count)
            places = [
                Interval(store.contigs[0].name, start, start + length, Strand.REVERSE)
                for start in starts[:64].tolist()
            ]
            contigs = rng.integers(0, len(store.contigs), count)
            runs = {
                "one by one": lambda places=places: [store.fetch(place) for place in places],
                "together": partial(store.fetch_many, contigs, starts, length),
            }
            found = medians(in_turns(runs, config.repeats))
            fetches[length] = {
                "one by one": found["one by one"] / len(places),
                "together": found["together"] / count,
            }
        alone = medians(in_turns({"verify": store.verify, "open": lambda: Genome(target)}, 1))
        say(f"verifying {alone['verify']:.1f} s, opening {1e3 * alone['open']:.2f} ms")
        for length, row in fetches.items():
            each = ", ".join(f"{name} {1e6 * seconds:,.1f} us" for name, seconds in row.items())
            say(f"a window of {length:,} bases: {each}")
    return record(
        "store", config, others, build=built, verify_seconds=alone["verify"],
        open_seconds=alone["open"], fetch_seconds=fetches,
    )  # fmt: skip

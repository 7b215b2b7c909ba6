"""Time of the data path, as a share of a training step.

Draws windows, reads them from a genome store and turns them to token ids, at several lengths, and
compares the time with that of a step::

    python benchmarks/data_path.py                       # made-up genome, recorded step times
    python benchmarks/data_path.py --genome hg38.mb --step-seconds 0.4 --batch 32 --length 1024

What a training loop waits for is less: batches are read ahead in a thread (the last line says how
long a busy loop waits). Results are printed as a table and written as JSON with --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import megabase
from megabase.data.augment import codes_to_ids, reverse_complement_codes
from megabase.data.loader import Prefetcher
from megabase.data.regions import Regions
from megabase.data.windows import GenomeWindows, RandomWindows, count_n
from megabase.genome.store import Genome

STEP_SECONDS = 1.5
"""A step of tiny-1k (2 layers, width 128) at 32 x 1,024 on two cores, float32."""


def made_up_store(folder: Path, bases: int) -> Genome:
    """Build a store of random letters, one contig, 60 to a line."""
    letters = np.frombuffer(b"ACGTacgt", dtype=np.uint8)
    text = letters[np.random.default_rng(0).integers(0, 8, bases - bases % 60)].reshape(-1, 60)
    lines = np.concatenate((text, np.full((len(text), 1), ord("\n"), np.uint8)), axis=1)
    fasta = folder / "made_up.fa"
    fasta.write_bytes(b">chr1\n" + lines.tobytes())
    return Genome.build(fasta, folder / "made_up.mb")


def seconds(call: Callable[[int], object], repeats: int) -> float:
    """Give the median time of a call, after a first one that is not counted."""
    times = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure(store: Genome, batch: int, length: int, repeats: int) -> dict[str, float]:
    """Time the parts of the data path for batches of a shape, in seconds."""
    source = RandomWindows(
        Regions.whole(store.lengths),
        seed=1,
        reverse_complement=0.5,
        max_n_fraction=0.1,
        count_n=partial(count_n, store),
    )
    data = GenomeWindows(store, source)

    def indices(number: int) -> np.ndarray:
        return number * batch + np.arange(batch)

    ready = data.batch(0, indices(0), length)
    return {
        "draw": seconds(lambda n: source.draw(0, indices(n), length, 1), repeats),
        "batch": seconds(lambda n: data.batch(0, indices(n), length), repeats),
        "ids": seconds(
            lambda _: codes_to_ids(reverse_complement_codes(ready["codes"], ready["reverse"])),
            repeats,
        ),
    }


def waiting(store: Genome, batch: int, length: int, step: float, steps: int) -> float:
    """Give the time a busy loop waits for a batch that is read ahead, in seconds a step."""
    source = RandomWindows(Regions.whole(store.lengths), seed=1, reverse_complement=0.5)
    data = GenomeWindows(store, source)
    requests = (n * batch + np.arange(batch) for n in range(steps + 1))
    waited = 0.0
    with Prefetcher(lambda numbers: data.batch(0, numbers, length), requests) as batches:
        next(batches)
        for _ in range(steps):
            ends = time.perf_counter() + step
            while time.perf_counter() < ends:  # holds the interpreter, as a loop's own code does
                pass
            began = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - began
    return waited / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--genome", type=Path, help="genome store; made up when not given")
    parser.add_argument("--bases", type=int, default=100_000_000, help="bases of the made-up one")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--step-seconds", type=float, default=STEP_SECONDS)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.genome is None:
            store = made_up_store(Path(folder), options.bases)
        else:
            store = Genome(options.genome)
        tokens = options.batch * options.length
        rows = []
        print(f"{store.name}, {store.total_length:,} bases; {torch.get_num_threads()} threads")
        print(f"{'shape':>16} {'draw ms':>9} {'batch ms':>9} {'ids ms':>9} {'share of step':>14}")
        for length in sorted({options.length, 1_024, 32_768, 1_048_576}):
            batch = max(tokens // length, 1)
            times = measure(store, batch, length, options.repeats)
            # The step's time is taken to grow with its tokens: longer lengths only cost more.
            step = options.step_seconds * batch * length / tokens
            share = (times["batch"] + times["ids"]) / step
            rows.append({"batch": batch, "length": length, "step": step, "share": share, **times})
            print(
                f"{batch:>6} x {length:>7,} {times['draw'] * 1e3:>9.3f} "
                f"{times['batch'] * 1e3:>9.3f} {times['ids'] * 1e3:>9.3f} {share:>14.3%}"
            )
        wait = waiting(store, options.batch, options.length, 0.05, 20)
        print(f"waited for a batch read ahead: {wait * 1e3:.3f} ms a step")
    if options.out is not None:
        record = {
            "version": megabase.__version__,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "step_seconds": options.step_seconds,
            "wait": wait,
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

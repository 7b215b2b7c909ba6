"""Build a genome store from a made-up genome and fetch from it: time and memory.

    python benchmarks/genome_store.py --bases 1e9
    python benchmarks/genome_store.py --bases 1e8 --gzip --json result.json

The genome is random, with runs of N, lower-case stretches and some IUPAC letters, in lines of 60.
Building runs in a process of its own, so that its peak memory is that of the build alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from megabase import __version__
from megabase.genome import Genome, Interval, Strand

LINE = 60
_BUILD = """
import json, resource, sys, time
from pathlib import Path
from megabase.genome import Genome
begin = time.perf_counter()
store = Genome.build(sys.argv[1], sys.argv[2], overwrite=True)
seconds = time.perf_counter() - begin
status = Path("/proc/self/status")
if status.exists():
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    peak = int(line.split()[1]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""


def write_genome(path: Path, bases: int, contigs: int, packed: bool, seed: int) -> None:
    """Write a made-up genome as FASTA, a few megabytes at a time."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    lines_at_once = 1 << 16
    with path.open("wb") as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw, compresslevel=1)) if packed else raw
        for contig in range(contigs):
            length = bases // contigs + (bases % contigs if contig == 0 else 0)
            file.write(f">chr{contig + 1} made up, {length} bases\n".encode())
            for start in range(0, length, lines_at_once * LINE):
                count = min(lines_at_once * LINE, length - start)
                drawn = letters[rng.integers(0, 4, count, dtype=np.uint8)]
                drawn[count // 3 : count // 2] |= 32  # soft-masked
                drawn[count // 5 : count // 4] = ord("N")
                drawn[rng.integers(0, count, 3)] = ord("R")
                full = count // LINE * LINE
                lines = np.full((full // LINE, LINE + 1), ord("\n"), dtype=np.uint8)
                lines[:, :LINE] = drawn[:full].reshape(-1, LINE)
                file.write(lines.tobytes())
                if full < count:
                    file.write(drawn[full:].tobytes() + b"\n")
        if packed:
            file.close()


def time_fetches(store: Genome, seed: int) -> dict[str, float]:
    """Microseconds for single windows, and for each window of a batch; after a first, cold pass."""
    rng = np.random.default_rng(seed)
    results: dict[str, float] = {}
    longest = int(store.lengths.min())

    def best(run: object, repeat: int = 5) -> float:
        times = []
        for _ in range(repeat):
            begin = time.perf_counter()
            run()  # pyright: ignore[reportCallIssue]
            times.append(time.perf_counter() - begin)
        return min(times)

    for length in (1024, 131_072, 1_000_000):
        if length > longest:
            continue
        starts = rng.integers(0, longest - length + 1, 64).tolist()
        for strand in (Strand.FORWARD, Strand.REVERSE):
            windows = [Interval(store.contigs[0].name, s, s + length, strand) for s in starts]

            def fetch_all(windows: list[Interval] = windows) -> None:
                for window in windows:
                    store.fetch(window)

            seconds = best(fetch_all)
            results[f"fetch {length:,} bases ({strand})"] = seconds / len(windows) * 1e6
    for count, length in ((4096, 1024), (32, 131_072)):
        if length > longest:
            continue
        index = rng.integers(0, len(store.contigs), count)
        start = rng.integers(0, longest - length + 1, count)
        out = np.empty((count, length), dtype=np.uint8)
        run = lambda a=index, b=start, n=length, o=out: store.fetch_many(a, b, n, o)  # noqa: E731
        results[f"fetch_many {count:,} x {length:,} bases, each window"] = best(run) / count * 1e6
    return results


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", type=lambda text: int(float(text)), default=10**8)
    parser.add_argument("--contigs", type=int, default=24)
    parser.add_argument("--gzip", action="store_true", help="build from a gzip FASTA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="for the files (default: temporary)"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the results here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        fasta = Path(folder) / ("genome.fa.gz" if args.gzip else "genome.fa")
        target = Path(folder) / "genome.mb"
        write_genome(fasta, args.bases, args.contigs, args.gzip, args.seed)
        kind = "gzip FASTA" if args.gzip else "FASTA"
        print(f"made-up genome: {args.bases:,} bases, {args.contigs} contigs, "
              f"{fasta.stat().st_size / 1e6:,.0f} MB of {kind}")  # fmt: skip
        command = [sys.executable, "-c", _BUILD, str(fasta), str(target)]
        built = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        rate = args.bases / built["seconds"] / 1e6
        print(f"build: {built['seconds']:.1f} s, {rate:,.0f} MB/s (million bases a second), "
              f"peak memory {built['peak_bytes'] / 1e6:,.0f} MB")  # fmt: skip
        store = Genome(target)
        begin = time.perf_counter()
        store.verify()
        verify_seconds = time.perf_counter() - begin
        print(f"verify: {verify_seconds:.1f} s")
        begin = time.perf_counter()
        Genome(target)
        open_ms = (time.perf_counter() - begin) * 1e3
        print(f"open: {open_ms:.2f} ms")
        fetches = time_fetches(store, args.seed)
        for what, microseconds in fetches.items():
            print(f"{what}: {microseconds:,.2f} us")
        del store
    if args.json is not None:
        record = {
            "bases": args.bases, "contigs": args.contigs, "gzip": args.gzip, **built,
            "megabases_per_second": rate, "verify_seconds": verify_seconds, "open_ms": open_ms,
            "fetch_microseconds": fetches, "megabase": __version__, "numpy": np.__version__,
            "python": platform.python_version(), "machine": platform.platform(),
            "cores": os.cpu_count(),
        }  # fmt: skip
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Fuzz every reader: only a MegabaseError may come out, soon and in little memory.

A worker process reads one mutated example after the other. It is ended by a signal after 5 seconds
of work on one of them; a peak over 1 GB, another exception, or the end of the process is a failure,
which is saved with the number that makes it again. Exit status: 1 when there was any.

    python -m tests.fuzz --count 500000 --seed 1
    python -m tests.fuzz --replay 1:1234
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import importlib
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.examples import KINDS, Kind
from tests.fuzz.mutate import mutate

PEAK = 1 << 30
SECONDS = 5
WAITING = 120  # without work: a reader that waits for something, or a machine that is very busy
ADDRESSES = 4 << 30  # beyond what is mapped at the start: ends an allocation before it hurts others
INPUTS_OF_A_WORKER = 20_000
MODULES = ("torch", "transformers", "polars", "pysam", "pybigtools", "safetensors.torch", "yaml",
           "jsonargparse", "megabase.models.auto", "megabase.models.checkpoints.convert",
           "megabase.models.describe", "megabase.models.adapt.prompt",
           "megabase.models.adapt.build",
           "megabase.genome.signal", "megabase.report.genome_page", "megabase.report.run_page",
           "megabase.data.label_files", "megabase.training.run_folder", "megabase.cli.verbs.train",
           "megabase.inference.ism", "megabase.data.sources",
           "megabase.cli.verbs.evaluate")  # fmt: skip


class Inputs:
    """Mutated examples by number; the same for the same seed."""

    def __init__(self, examples: Path, names: list[str], seed: int) -> None:
        self.names, self.seed, self.folder = names, seed, examples
        self.weights = [KINDS[name].weight for name in names]
        self.examples = {name: self._examples(KINDS[name]) for name in names}

    def _examples(self, kind: Kind) -> list[bytes]:
        inside = self.folder / (kind.beside or "") / kind.file
        first = inside if inside.is_file() else self.folder / kind.file
        return [file.read_bytes() for file in sorted(first.parent.glob(f"{first.name}*"))]

    def kind(self, number: int) -> str:
        return random.Random(f"{self.seed}:{number}").choices(self.names, self.weights)[0]

    def content(self, number: int) -> bytes:
        name, draw = self.kind(number), random.Random(f"{self.seed}:{number}:content")
        others = self.examples[name]
        return mutate(KINDS[name].style, draw.choice(others), others, draw)


def place(folder: Path, name: str, examples: Path) -> Path:
    """Give the file of a kind in a worker's folder, with what lies beside it in place."""
    kind = KINDS[name]
    beside = folder / name.replace("/", " ").replace(",", "")
    if not beside.is_dir():
        if kind.beside:
            shutil.copytree(examples / kind.beside, beside)
        (beside / kind.file).parent.mkdir(parents=True, exist_ok=True)
    return beside / kind.file


def peak(reset: bool = False) -> int:
    """Give the largest resident memory since the last reset, in bytes."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def attempt(path: Path, read: Any) -> tuple[str, str]:
    """Read one file: what came of it, and the traceback of a failure."""
    from megabase.errors import MegabaseError

    try:
        read(path)
    except MegabaseError as error:
        return ("refused", "") if len(str(error)) < 20_000 else ("long message", str(error)[:500])
    except SystemExit as error:
        return f"SystemExit {error.code}", traceback.format_exc()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}", traceback.format_exc(limit=-12)
    return "read", ""


def work(
    inputs: Inputs, numbers: range, until: float, folder: Path, state: mmap.mmap, log: Path
) -> None:
    """Read the inputs of these numbers, until a time; in a child process."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    report = log.open("a")
    faulthandler.enable(report)
    faulthandler.register(signal.SIGPROF, report, chain=True)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for number in numbers:
        if time.monotonic() > until:
            break
        struct.pack_into("<Q", state, 0, number)
        name = inputs.kind(number)
        path = place(folder, name, inputs.folder)
        path.write_bytes(inputs.content(number))
        peak(reset=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        outcome, trace = attempt(path, KINDS[name].read)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        most = peak()
        if most > PEAK:
            outcome, trace = "peak over 1 GB", f"{most:,} bytes"
        print(number, name, outcome, repr(trace), sep="\t", file=report, flush=bool(trace))
        if most > PEAK:
            os._exit(3)  # with a fresh heap the next one is measured rightly
    report.flush()
    os._exit(0)


def parse(log: Path) -> Iterator[tuple[int, str, str, str]]:
    """Give the finished inputs of a worker: number, kind, outcome, traceback."""
    for line in log.read_text(errors="replace").splitlines():
        parts = line.split("\t", 3)
        if len(parts) == 4 and parts[0].isdigit() and parts[1] in KINDS:
            yield int(parts[0]), parts[1], parts[2], parts[3]


def fuzz(inputs: Inputs, count: int, seconds: float, output: Path, scratch: Path) -> bool:
    """Run workers one after the other until all is read; print the table; say if it is clean."""
    state = mmap.mmap(-1, 8)
    total: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: dict[str, list[int]] = collections.defaultdict(list)
    begun, number, said = time.monotonic(), 0, 0.0
    while number < count and time.monotonic() - begun < seconds:
        last = min(count, number + INPUTS_OF_A_WORKER)
        log = scratch / "log"
        log.unlink(missing_ok=True)
        log.touch()
        child = os.fork()
        if child == 0:
            try:
                work(inputs, range(number, last), begun + seconds, scratch / "work", state, log)
            except BaseException:  # noqa: BLE001 (of the fuzzer itself; told by its exit status)
                log.write_text(traceback.format_exc())
                os._exit(4)
        _, status = os.waitpid(child, 0)
        done = list(parse(log))
        for index, name, outcome, trace in done:
            total[name][outcome if outcome in ("read", "refused") else "failed"] += 1
            if outcome not in ("read", "refused"):
                failures[f"{name}: {outcome}"].append(index)
                save(inputs, index, output, outcome, trace)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 3):
            number = done[-1][0] + 1 if done else last
        else:
            index = struct.unpack_from("<Q", state)[0]
            # A process that ends leaves what it had not flushed; those inputs were fine.
            name = inputs.kind(index)
            how = (f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status)
                   else f"exit {os.WEXITSTATUS(status)}")  # fmt: skip
            total[name]["failed"] += 1
            failures[f"{name}: {how}"].append(index)
            save(inputs, index, output, how, log.read_text(errors="replace")[-8000:])
            number = index + 1
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"{number:,} inputs, {said - begun:.0f} s, {sum(map(len, failures.values())):,} "
                  f"failures", flush=True)  # fmt: skip
    print(f"{'kind':<26}{'read':>10}{'refused':>10}{'failed':>8}")
    for name in inputs.names:
        row = total[name]
        print(f"{name:<26}{row['read']:>10,}{row['refused']:>10,}{row['failed']:>8,}")
    print(f"{number:,} inputs in {time.monotonic() - begun:.0f} s")
    for what, numbers in sorted(failures.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(f"{inputs.seed}:{one}" for one in numbers[:5])
        print(f"{len(numbers):>6}  {what}  ({shown})")
    return not failures


def save(inputs: Inputs, number: int, output: Path, outcome: str, trace: str) -> None:
    """Keep an input that failed, with why."""
    output.mkdir(parents=True, exist_ok=True)
    stem = f"{inputs.seed}-{number}-{inputs.kind(number).replace(', ', '-')}"
    (output / f"{stem}.input").write_bytes(inputs.content(number))
    (output / f"{stem}.txt").write_text(f"{outcome}\n{trace.encode().decode('unicode_escape')}\n")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--kinds", default=",".join(key for key in KINDS if ", " not in key)
                        + ",ckpt, old,config.json, BERT,recipe, command")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--replay", metavar="SEED:NUMBER", help="read one input here, aloud")
    args = parser.parse_args()
    names = [name for name in KINDS if name in args.kinds]
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as temporary:
        scratch = Path(temporary)
        examples = scratch / "examples"
        # Another process makes them: its threads would not survive a fork.
        subprocess.run(
            [sys.executable, "-c", "import sys, pathlib; from tests.fuzz.examples import make; "
             "make(pathlib.Path(sys.argv[1]))", str(examples)], check=True,

        )  # fmt: skip
        seed, _, number = (args.replay or str(args.seed)).partition(":")
        inputs = Inputs(examples, names, int(seed))
        if args.replay:
            index = int(number)
            path = place(scratch / "work", inputs.kind(index), examples)
            path.write_bytes(inputs.content(index))
            print(inputs.kind(index), repr(inputs.content(index)[:300]))
            print(*attempt(path, KINDS[inputs.kind(index)].read), f"{peak():,} bytes", sep="\n")
            return 0
        for module in MODULES:
            importlib.import_module(module)
        clean = fuzz(inputs, args.count, args.seconds, args.output.absolute(), scratch)
    return 0 if clean else 1


if __name__ == "__main__":
    raise SystemExit(main())

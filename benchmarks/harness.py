"""What the measurements share: models, processes of their own, clocks, other work, records."""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plain import PlainHyenaDNA
from megabase.errors import MegabaseError
from megabase.models.families import FAMILIES
from megabase.settings import Settings
from megabase.training.run_folder import environment

GIB = 1 << 30
"""Limits of memory are given in these."""
DISTURBED = 0.25
"""Cores kept busy by others from which times are said to be disturbed."""
_POLL = 0.05
"""Seconds between two looks at the limits of a process."""
_ROOT = Path(__file__).parents[1]
"""Processes of their own start here, where the package `benchmarks` lies."""
# Every dropout is off: attention with dropout has no fast path on a CPU, and the figures are about
# the operators.
_NO_DROPOUT = ("embed_dropout", "resid_dropout", "hyena_dropout", "attention_dropout")
_LENGTH_SETTING = {"hyenadna": "max_seq_len", "gpt": "max_position_embeddings"}
# user, nice, system, irq, softirq, and what the host took away (steal), in /proc/stat.
_BUSY = (0, 1, 2, 5, 6, 7)

Say = Callable[[str], object]
"""Shows a line."""


class BenchError(MegabaseError):
    """Something differs from what it is compared with, or cannot be measured here."""


def build_model(name: str, width: int, layers: int, length: int) -> Any:
    """Build a language model of a family for inputs of `length` tokens, without dropout.

    The name ``plain`` gives HyenaDNA computed the published way, ``caduceus-ps`` Caduceus-PS.
    """
    if name == "plain":
        return PlainHyenaDNA(build_model("hyenadna", width, layers, length))
    name, _, strands = name.partition("-")
    classes = FAMILIES[name].classes()
    model_class: Any = classes.get("causal-lm") or classes["masked-lm"]
    settings: dict[str, Any] = {"d_model": width, "n_layer": layers}
    if strands:
        settings["rcps"] = True
    if name in _LENGTH_SETTING:
        settings[_LENGTH_SETTING[name]] = length
    known = model_class.config_class()
    settings.update({drop: 0 for drop in _NO_DROPOUT if hasattr(known, drop)})
    return model_class(model_class.config_class(**settings))


def strengthen_filters(model: torch.nn.Module, gain: float) -> None:
    """Draw Hyena filters stronger than for training, so that far positions count in comparisons."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".implicit_filter." in name and name.endswith("weight"):
                parameter.mul_(gain)


def refuse_difference(worst: float, allowed: float, what: str) -> None:
    """Raise a :class:`BenchError` for a difference over the tolerance, or that is no number."""
    if not worst <= allowed:
        raise BenchError(f"{what} by {worst:.2e}, over {allowed:.0e}: nothing is reported")


def in_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, counts: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Give the seconds of every run but those of a first turn; all meet the same weather.

    `counts` says how often a run is repeated in each turn; once when it does not.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            for _ in range((counts or {}).get(name, 1)):
                began = time.perf_counter()
                run()
                if turn:
                    times[name].append(time.perf_counter() - began)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Give the median of each."""
    return {name: statistics.median(found) for name, found in times.items()}


def use_threads(count: int) -> None:
    """Let torch use so many threads; 0 leaves the choice to it."""
    if count:
        torch.set_num_threads(count)


def proc_bytes(field: str, file: str = "/proc/self/status") -> int:
    """Give bytes as the system counts them: of this process ``VmHWM`` (peak) or ``VmRSS`` (now)."""
    # Not ru_maxrss: a process inherits that from the one that started it.
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise BenchError(f"{file} has no {field}; memory is measured on Linux only")


def memory_limit(gib: float) -> int:
    """Give the bytes that a point may take: `gib`, or for 0 nine tenths of what is free."""
    return int(gib * GIB) or proc_bytes("MemAvailable", "/proc/meminfo") * 9 // 10


def watch(seconds: float, memory: int) -> None:
    """End this process, with the reason as its result, when it takes longer or more bytes."""
    ends = time.monotonic() + seconds + 1.0

    def look() -> None:
        while time.monotonic() <= ends:
            if (taken := proc_bytes("VmRSS")) > memory:
                why = f"over {memory / GIB:.1f} GiB (at {taken / GIB:.1f} GiB when ended)"
                _end({"status": "memory limit", "reason": why})
            time.sleep(_POLL)
        _end({"status": "time limit", "reason": f"one pass takes more than {seconds:.0f} s"})

    threading.Thread(target=look, daemon=True).start()


def _end(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def in_child(function: str, **spec: Any) -> dict[str, Any]:
    """Call ``benchmarks.MODULE:NAME(spec)`` in a process of its own.

    Gives what the function gives, with ``status`` "measured"; otherwise ``status`` ("time limit",
    "memory limit", "unsupported", "failed") and ``reason``.
    """
    command = [sys.executable, "-c", "from benchmarks.harness import child; child()"]
    done = subprocess.run(
        [*command, function, json.dumps(spec)], cwd=_ROOT, check=False, capture_output=True
    )
    if done.returncode == -9:  # as the kernel ends a process that takes the last memory
        why = "the system ended the process, for want of memory"
        return {"status": "memory limit", "reason": why}
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return {"status": "failed", "reason": f"exit status {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Be the process that :func:`in_child` starts."""
    module, name = sys.argv[1].split(":")
    try:
        measure = getattr(importlib.import_module(module), name)
        _end({"status": "measured", **measure(json.loads(sys.argv[2]))})
    except (MegabaseError, ImportError) as error:
        _end({"status": "unsupported", "reason": str(error)})
    except (MemoryError, RuntimeError) as error:  # torch's CPU allocator raises a plain one
        memory = isinstance(error, MemoryError) or "memory" in str(error) or "alloc" in str(error)
        _end({"status": "memory limit" if memory else "failed", "reason": str(error)})


class OtherWork:
    """Watches, from when it is made on, how busy other programs keep the machine.

    The average load of a system is no help: a measurement raises it itself.
    """

    def __init__(self) -> None:
        self._began = time.monotonic(), _all_busy(), _own()

    def cores(self) -> float | None:
        """Give the cores that others kept busy on average; None where the system does not say.

        Processes that the measurement began must have ended.
        """
        began, busy, own = self._began
        now, elapsed = _all_busy(), time.monotonic() - began
        if busy is None or now is None or elapsed <= 0:
            return None
        return max(0.0, (now - busy - (_own() - own)) / elapsed)


def disturbed(cores: float | None) -> bool:
    """Whether times are too long because of what others did."""
    return cores is not None and cores > DISTURBED


def _all_busy() -> float | None:
    """Give the seconds that all cores together were busy since the system began, or None."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        return sum(int(fields[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _own() -> float:
    """Give the processor seconds of this process and of those it began that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def record(kind: str, config: Settings, others: OtherWork, **found: Any) -> dict[str, Any]:
    """Put a result together with its settings, the time and the machine, ready for JSON."""
    return {
        "kind": kind,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "other_cores": others.cores(),
        **found,
    }


_LINE = 60
"""Letters on a line of a made-up FASTA."""
_AT_ONCE = 1 << 22
"""Letters that are drawn at a time, so that a large genome takes little memory."""


def made_up_fasta(path: Path, bases: int, contigs: int = 1) -> Path:
    """Write a random genome with soft-masked stretches, runs of N and some IUPAC letters."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    with path.open("wb") as file:
        for contig in range(contigs):
            file.write(f">chr{contig + 1}\n".encode())
            left = bases // contigs
            while left:
                count = min(left, _AT_ONCE // _LINE * _LINE)
                drawn = letters[rng.integers(0, 4, -(-count // _LINE) * _LINE, dtype=np.uint8)]
                drawn[count // 3 : count // 2] |= 32  # soft-masked
                drawn[count // 5 : count // 4] = ord("N")
                drawn[rng.integers(0, count, 3)] = ord("R")
                lines = np.full((len(drawn) // _LINE, _LINE + 1), ord("\n"), dtype=np.uint8)
                lines[:, :_LINE] = drawn.reshape(-1, _LINE)
                file.write(lines.tobytes())
                left -= count
    return path

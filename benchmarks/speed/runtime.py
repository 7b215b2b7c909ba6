"""Time and memory of forward and backward against length, one fresh process a point."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import ROOT
from benchmarks.speed.config import MODELS, BenchError, RuntimeConfig
from benchmarks.speed.others import OtherWork, disturbed
from megabase.genome.files import write_json

__all__ = [
    "Overtaking",
    "Point",
    "PowerLaw",
    "compare",
    "fit_power_law",
    "overtaking",
    "prepare_output",
    "run_runtime",
    "summarize",
    "write_runtime",
]

_LOADING_LIMIT = 600.0
"""Seconds for a process to import torch and build a model; a busy machine takes a while."""
_POLL = 0.05
_GIB = 1 << 30


@dataclass(frozen=True)
class Point:
    """One model at one length."""

    model: str
    checkpointing: bool
    length: int
    status: str
    """"measured", "time limit", "memory limit", "not run", "unsupported" or "failed"."""
    reason: str | None = None
    """Why there is no measurement."""
    result: dict[str, Any] | None = None
    """What the process measured, see :func:`benchmarks.speed.point.measure`."""
    other_cores: float | None = None
    """Cores that other programs kept busy meanwhile, on average."""

    @property
    def disturbed(self) -> bool:
        """Whether the machine had other work meanwhile."""
        return disturbed(self.other_cores)


def free_memory() -> int | None:
    """Give the bytes of memory that are free, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _resident(pid: int) -> int:
    """Give the bytes of memory a process has now; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def run_point(spec: dict[str, Any], memory_limit: int | None) -> Point:
    """Measure one point in a process of its own, within its time and memory.

    Parameters
    ----------
    spec
        As for :func:`benchmarks.speed.point.measure`.
    memory_limit
        Bytes of resident memory at which the process is ended; None for no limit.

    Returns
    -------
    Point
    """
    others = OtherWork()

    def point(status: str, reason: str | None = None, result: Any = None) -> Point:
        return Point(
            spec["model"],
            spec["checkpointing"],
            spec["length"],
            status,
            reason,
            result,
            others.cores(),
        )

    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        files = [Path(folder) / name for name in ("spec.json", "result.json", "ready")]
        files[0].write_text(json.dumps(spec))
        command = [sys.executable, "-m", "benchmarks.speed.point", *map(str, files)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            status = _watch(process, files[2], spec["budget"], memory_limit)
            errors = process.stderr.read() if process.stderr else b""
        finally:
            if process.poll() is None:
                _stop(process)
            if process.stderr:
                process.stderr.close()
        if status is not None:
            return point(*status)
        if not files[1].exists():
            # The kernel ends a process that takes the last memory with signal 9.
            if process.returncode == -9:
                return point("memory limit", "the system ended the process, for want of memory")
            lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
            return point("failed", f"exit status {process.returncode}: {lines[-1]}")
        result = json.loads(files[1].read_text())
    if "error" in result:
        kinds = {"memory": "memory limit", "unsupported": "unsupported"}
        return point(kinds.get(result["kind"], "failed"), result["error"])
    return point("measured", None, result)


def _watch(
    process: subprocess.Popen[bytes], ready: Path, budget: float, memory_limit: int | None
) -> tuple[str, str] | None:
    """Wait for a process; end it at a limit and say at which."""
    started = time.monotonic()
    clock: float | None = None
    while process.poll() is None:
        now = time.monotonic()
        if clock is None and ready.exists():
            clock = now
        if clock is None and now - started > _LOADING_LIMIT:
            _stop(process)
            return "failed", f"nothing was loaded after {_LOADING_LIMIT:g} s"
        if clock is not None and now - clock > budget + 1.0:
            _stop(process)
            return "time limit", f"one pass takes more than {budget:.0f} s"
        if memory_limit is not None and (taken := _resident(process.pid)) > memory_limit:
            _stop(process)
            return (
                "memory limit",
                f"over {memory_limit / _GIB:.1f} GiB (at {taken / _GIB:.1f} GiB when ended)",
            )
        time.sleep(_POLL)
    return None


def run_runtime(
    config: RuntimeConfig,
    *,
    measured: Callable[[Point], None] = lambda point: None,
    measure_point: Callable[[dict[str, Any], int | None], Point] = run_point,
) -> list[Point]:
    """Measure every model at every length, until a limit is met.

    Parameters
    ----------
    config
        What to measure.
    measured
        Called after each point, so that an interrupted measurement leaves what it has.
    measure_point
        Measures one point; :func:`run_point`.

    Returns
    -------
    list[Point]
        Every model, kind of checkpointing and length; those over a limit are marked as such.
    """
    limit = int(config.memory_limit * _GIB) or None
    if limit is None and (free := free_memory()) is not None:
        limit = free * 9 // 10
    points: list[Point] = []
    for model in config.models:
        for checkpointing in config.checkpointing_kinds:
            for point in _series(config, model, checkpointing, limit, measure_point):
                points.append(point)
                measured(point)
    return points


def _series(
    config: RuntimeConfig,
    model: str,
    checkpointing: bool,
    memory_limit: int | None,
    measure_point: Callable[[dict[str, Any], int | None], Point],
) -> Any:
    seconds: dict[int, float] = {}
    used = 0.0
    stopped: str | None = None
    for length in config.lengths:
        if stopped is None:
            stopped = _too_long(config, seconds, used, length)
        if stopped is not None:
            yield Point(model, checkpointing, length, "not run", stopped)
            continue
        spec = {
            "model": model,
            "checkpointing": checkpointing,
            "length": length,
            "budget": min(config.time_limit, config.model_time_limit - used),
        } | {
            name: getattr(config, name)
            for name in (
                "width", "layers", "batch", "dtype", "device", "threads", "repeats", "seed"
            )
        }  # fmt: skip
        point = measure_point(spec, memory_limit)
        yield point
        if point.result is not None:
            seconds[length] = point.result["seconds"]
            used += point.result["elapsed"]
        else:
            stopped = f"{point.status} at {point.length:,} tokens"


def _too_long(
    config: RuntimeConfig, seconds: dict[int, float], used: float, length: int
) -> str | None:
    """Say why a length is not worth starting: one pass would not fit."""
    law = fit_power_law(seconds)
    expected = 0.0 if law is None else law.at(length)
    if expected > config.time_limit:
        return f"one pass would take about {expected:.0f} s, over {config.time_limit:g} s"
    if used + expected > config.model_time_limit:
        return f"the {config.model_time_limit:g} s for this model are used up"
    return None


def summarize(config: RuntimeConfig, points: list[Point]) -> dict[str, Any]:
    """Put points, fits and comparisons together, ready for JSON.

    Parameters
    ----------
    config
        What was measured.
    points
        As :func:`run_runtime` gives them; may be incomplete.

    Returns
    -------
    dict
        ``config``, ``environment``, ``when``, ``points``, ``disturbed_points`` (measured while
        the machine had other work), and for each kind of checkpointing
        ``series``: by model the measured seconds, the power law through the longest of them and
        what it says of lengths that were not run (marked as extrapolated), and the comparison with
        the first model.
    """
    from megabase.training.run_folder import environment

    reference = next(name for name in MODELS if name in config.models)
    series = []
    for checkpointing in config.checkpointing_kinds:
        rows = [point for point in points if point.checkpointing == checkpointing]
        seconds = {
            model: {p.length: p.result["seconds"] for p in rows if p.model == model and p.result}
            for model in config.models
        }
        models = {}
        for model, found in seconds.items():
            law = fit_power_law(found)
            models[model] = {
                "seconds": found,
                "fit": None if law is None else asdict(law),
                "extrapolated_seconds": _extrapolated(law, found, config),
            }
        series.append(
            {
                "checkpointing": checkpointing,
                "reference": reference,
                "models": models,
                "comparisons": {
                    model: compare(seconds[reference], found)
                    for model, found in seconds.items()
                    if model != reference
                },
            }
        )
    return {
        "kind": "runtime",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "points": [asdict(point) for point in points],
        "disturbed_points": sum(point.disturbed for point in points),
        "series": series,
    }


def _extrapolated(
    law: PowerLaw | None, found: dict[int, float], config: RuntimeConfig
) -> dict[int, float]:
    """Read longer lengths than any measured one off the fit: never a measurement."""
    if law is None:
        return {}
    return {length: law.at(length) for length in config.lengths if length > max(found)}


def prepare_output(folder: Path, overwrite: bool) -> Path:
    """Make the output folder and give the path of its JSON.

    Raises
    ------
    BenchError
        When it holds an earlier measurement that may not be replaced, or cannot be made.
    """
    path = folder / "runtime.json"
    if path.exists() and not overwrite:
        raise BenchError(
            f"{path} exists already; name another folder, or replace it with --overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder}: cannot be made ({error})") from error
    return path


def write_runtime(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary as JSON, whole or not at all."""
    write_json(path, summary)


_FEWEST = 3
_TAIL = 4


@dataclass(frozen=True)
class PowerLaw:
    """seconds = scale * length ** exponent, fitted to the longest measured lengths."""

    scale: float
    exponent: float
    fitted_lengths: tuple[int, ...]
    """Lengths that the fit saw; anything beyond them is extrapolation."""

    def at(self, length: float) -> float:
        """Give the seconds of a length."""
        return self.scale * length**self.exponent


def fit_power_law(seconds: Mapping[int, float]) -> PowerLaw | None:
    """Fit a straight line to the logarithms of the last four points.

    Short lengths are left out when there are more: there the fixed costs of a pass dominate.

    Parameters
    ----------
    seconds
        Measured time of each length.

    Returns
    -------
    PowerLaw or None
        None for fewer than three points.
    """
    lengths = sorted(seconds)[-_TAIL:]
    if len(lengths) < _FEWEST:
        return None
    exponent, offset = np.polyfit(np.log(lengths), np.log([seconds[n] for n in lengths]), 1)
    return PowerLaw(float(np.exp(offset)), float(exponent), tuple(lengths))


@dataclass(frozen=True)
class Overtaking:
    """Where one model becomes faster than another, for good."""

    length: float | None
    """Tokens; None when it never does."""
    how: str
    """"measured" (between two measured lengths), "from the start" (at the first common length
    already), "extrapolated" (where the two fits cross), or "never"."""


def overtaking(first: Mapping[int, float], second: Mapping[int, float]) -> Overtaking:
    """Find the length from which the first model stays faster than the second.

    Parameters
    ----------
    first, second
        Measured seconds of each length.

    Returns
    -------
    Overtaking
        Between two measured lengths the crossing is interpolated in the logarithms.
    """
    common = sorted(set(first) & set(second))
    if not common:
        return Overtaking(None, "never")
    gaps = [math.log(first[n] / second[n]) for n in common]  # below 0: the first is faster
    slower = [index for index, gap in enumerate(gaps) if gap >= 0]
    if not slower:
        return Overtaking(float(common[0]), "from the start")
    last = slower[-1]
    if last + 1 < len(common):
        share = gaps[last] / (gaps[last] - gaps[last + 1])
        low, high = math.log(common[last]), math.log(common[last + 1])
        return Overtaking(math.exp(low + share * (high - low)), "measured")
    one, other = fit_power_law(first), fit_power_law(second)
    if one is None or other is None or one.exponent >= other.exponent:
        return Overtaking(None, "never")
    crossing = math.exp(math.log(one.scale / other.scale) / (other.exponent - one.exponent))
    # Fits that cross among lengths where the first was measured to be slower tell nothing.
    if crossing <= common[-1]:
        return Overtaking(None, "never")
    return Overtaking(crossing, "extrapolated")


def compare(reference: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Compare the times of a model with those of the reference.

    Parameters
    ----------
    reference, other
        Measured seconds of each length.

    Returns
    -------
    dict
        ``ratios``: other / reference at every length measured for both; ``longest_common`` and
        ``ratio_at_longest_common``; ``reference_overtakes``: see :class:`Overtaking`.
    """
    common = sorted(set(reference) & set(other))
    ratios = {n: other[n] / reference[n] for n in common}
    return {
        "ratios": ratios,
        "longest_common": common[-1] if common else None,
        "ratio_at_longest_common": ratios[common[-1]] if common else None,
        "reference_overtakes": asdict(overtaking(reference, other)),
    }

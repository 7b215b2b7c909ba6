"""Peak memory of a training step, each side in a process of its own, beside the estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from megabase.bench.config import BenchError
from megabase.bench.point import build_model
from megabase.bench.runtime import Point, free_memory, run_point
from megabase.bench.step import compare_gradients
from megabase.bench.step_config import MemoryConfig, StepConfig

__all__ = ["run_memory"]

_GIB = 1 << 30


def run_memory(
    config: MemoryConfig,
    say: Callable[[str], object] = lambda text: None,
    measure_point: Callable[[dict[str, Any], int | None], Point] = run_point,
) -> dict[str, Any]:
    """Measure; see :class:`MemoryConfig`.

    Returns
    -------
    dict
        Ready for JSON. ``sides``: for each the bytes of the idle process, of the peak, of the peak
        above idle, and seconds of the step, or why there are none. ``estimate``: what
        :func:`megabase.training.memory.estimate` says, by part.

    Raises
    ------
    BenchError
        When gradients differ from those of the published way, or megabase cannot be measured.
    """
    from megabase.training.memory import estimate
    from megabase.training.provenance import environment

    equality = compare_gradients(StepConfig(width=config.width, layers=config.layers))
    say(f"gradients agree within {equality['largest_difference']:.1e} ({equality['name']})")
    limit = int(config.memory_limit * _GIB) or None
    if limit is None and (free := free_memory()) is not None:
        limit = free * 9 // 10
    sides: dict[str, Any] = {}
    for side in ("hyenadna", "plain") if config.plain else ("hyenadna",):
        half = config.precision == "bf16-mixed" and side == "hyenadna"
        spec = {
            "model": side, "checkpointing": config.checkpointing and side == "hyenadna",
            "stretch": config.stretch,
            "length": config.length, "width": config.width, "layers": config.layers,
            "batch": config.batch, "dtype": "bfloat16" if half else "float32", "device": "cpu",
            "threads": config.threads, "repeats": config.steps - 1, "seed": config.seed,
            "budget": config.time_limit, "optimizer": True,
        }  # fmt: skip
        point = measure_point(spec, limit)
        sides["megabase" if side == "hyenadna" else side] = _facts(point)
        say(_line(side, point))
    mine = sides["megabase"]
    if "peak_bytes" not in mine:
        raise BenchError(f"megabase could not be measured: {mine['failed']}")
    model_config = build_model("hyenadna", config.width, config.layers, 16).config
    parts = estimate(
        parameters=mine["parameters"],
        layers=config.layers,
        width=config.width,
        columns=int(model_config.vocab_rows),  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        micro_batch=config.batch,
        length=config.length,
        half=config.precision == "bf16-mixed",
        checkpointing=config.checkpointing,
        stretch=config.stretch,
        fused=True,
    )
    return {
        "kind": "memory",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "equality": equality,
        "sides": sides,
        "estimate": {**asdict(parts), "total": parts.total},
        "estimate_to_peak": parts.total / mine["peak_bytes"],
    }


def _facts(point: Point) -> dict[str, Any]:
    found = point.result
    if found is None:
        return {"failed": f"{point.status}: {point.reason}"}
    return {
        "idle_bytes": found["loaded_bytes"],
        "peak_bytes": found["peak_bytes"],
        "above_idle_bytes": found["peak_bytes"] - found["loaded_bytes"],
        "step_seconds": found["seconds"],
        "parameters": found["parameters"],
    }


def _line(side: str, point: Point) -> str:
    name = "megabase" if side == "hyenadna" else "the published way"
    if point.result is None:
        return f"{name}: {point.status}: {point.reason}"
    facts = _facts(point)
    return (
        f"{name}: peak {facts['peak_bytes'] / 1e9:.2f} GB, {facts['above_idle_bytes'] / 1e9:.2f} "
        f"above idle; step {facts['step_seconds']:.2f} s"
    )

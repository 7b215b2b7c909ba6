"""A training step beside the published way of computing it, and beside its limit.

Sides are run in turn in one process with one allocator setting, after loss and gradients of both
were compared; nothing is reported when they differ.
"""

from __future__ import annotations

import contextlib
import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.config import BenchError, MemoryConfig, StepConfig
from benchmarks.speed.others import OtherWork
from benchmarks.speed.plain import PlainHyenaDNA
from benchmarks.speed.point import build_model
from benchmarks.speed.runtime import Point, free_memory, run_point
from megabase.ops.products import matmul, uses_onednn

__all__ = ["Limit", "compare_gradients", "product_sizes", "run_memory", "run_step", "training_pass"]


def training_pass(
    model: nn.Module, ids: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Run forward, loss and backward once; give seconds and loss."""
    model.zero_grad(set_to_none=True)
    lower = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    began = time.perf_counter()
    with lower:
        found = model(input_ids=ids)
        logits = found if isinstance(found, Tensor) else found.logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.roll(-1, dims=1).flatten())
    loss.backward()
    return time.perf_counter() - began, loss.item()


def _pair(config: StepConfig, length: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(config.seed)
    ours = build_model("hyenadna", config.width, config.layers, length + 2).train()
    plain = PlainHyenaDNA(ours.config).train()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def _ids(batch: int, length: int) -> Tensor:
    return torch.randint(7, 11, (batch, length))


def compare_gradients(config: StepConfig) -> dict[str, Any]:
    """Compare loss and gradients of both sides in float32, and the loss in the other precision.

    Returns
    -------
    dict
        ``largest_difference`` of all gradients, each relative to its largest number, its ``name``,
        ``loss`` of both.

    Raises
    ------
    BenchError
        When a difference is over the tolerance, or a parameter has no gradient.
    """
    length = min(config.length, config.compare_length)
    ours, plain = _pair(config, length)
    with torch.no_grad():  # a filter of some size, so that far positions count
        for name, parameter in ours.named_parameters():
            if ".implicit_filter." in name and name.endswith("weight"):
                parameter.mul_(4.0)
        plain.load_state_dict(ours.state_dict())
    ids = _ids(min(config.batch, 2), length)
    _, loss = training_pass(ours, ids)
    _, plain_loss = training_pass(plain, ids)
    theirs = dict(plain.named_parameters())
    worst, where = abs(loss - plain_loss) / abs(plain_loss), "loss"
    for name, parameter in ours.named_parameters():
        want, got = theirs[name].grad, parameter.grad
        if want is None or got is None:
            raise BenchError(f"{name} has no gradient: nothing is reported")
        scale = want.abs().max().clamp(min=1e-20)
        difference = float((got - want).abs().max() / scale)
        if not difference <= worst:
            worst, where = difference, name
    if not worst <= config.tolerance:
        raise BenchError(
            f"gradients differ from those of the published way by {worst:.2e} ({where}), over "
            f"{config.tolerance:.0e}: nothing is reported"
        )
    return {
        "length": length,
        "largest_difference": worst,
        "name": where,
        "tolerance": config.tolerance,
        "loss": [loss, plain_loss],
    }


def run_step(
    config: StepConfig, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Measure; see :class:`StepConfig`.

    Returns
    -------
    dict
        Ready for JSON: settings, environment, ``equality``, medians, ratios and every step.

    Raises
    ------
    BenchError
        When the gradients of the two sides differ.
    """
    from megabase.training.process import keep_freed_memory
    from megabase.training.run_folder import environment

    others = OtherWork()
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    equality = compare_gradients(config)
    say(f"gradients agree within {equality['largest_difference']:.1e} ({equality['name']})")
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    ours, plain = _pair(config, config.length)
    ids = _ids(config.batch, config.length)
    limit = Limit(copy.copy(ours.config), config.batch, config.length, dtype)
    sides: dict[str, Callable[[], float]] = {
        "megabase": lambda: training_pass(ours, ids, dtype)[0],
        "plain": lambda: training_pass(plain, ids)[0],
        "products": limit.products,
        "products_in_cache": limit.products_in_cache,
        "transforms": limit.transforms,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(config.repeats + 1):
        for name, run in sides.items():
            seconds = run()
            for model in (ours, plain):
                model.zero_grad(set_to_none=True)
            if number:
                times[name].append(seconds)
        if number:
            say(", ".join(f"{name} {times[name][-1]:.3f} s" for name in sides))
    limit.forget()
    median = {name: statistics.median(found) for name, found in times.items()}
    if config.as_it_comes:
        found = _as_it_comes(config)
        times["plain_as_it_comes"], median["plain_as_it_comes"] = found, statistics.median(found)
    step = median["megabase"]
    bare = median["products"] + median["transforms"]
    return {
        "kind": "step",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "other_cores": others.cores(),
        "float32_products": "oneDNN" if uses_onednn() else "torch",
        "equality": equality,
        "seconds": median,
        "tokens_per_second": config.batch * config.length / step,
        "ratios": {
            name: median[name] / step for name in ("plain", "plain_as_it_comes") if name in median
        },
        "share_of_limit": bare / step,
        "share_of_limit_in_cache": (median["products_in_cache"] + median["transforms"]) / step,
        "steps": times,
    }


def _as_it_comes(config: StepConfig) -> list[float]:
    """Time the published way in a process that nobody has set the allocator of."""
    spec = {
        "model": "plain", "checkpointing": False, "length": config.length, "width": config.width,
        "layers": config.layers, "batch": config.batch, "dtype": "float32", "device": "cpu",
        "threads": config.threads, "repeats": config.repeats, "seed": config.seed,
        "budget": 3600.0, "keep_freed": False,
    }  # fmt: skip
    tunables = os.environ.pop("GLIBC_TUNABLES", None)
    try:
        point = run_point(spec, None)
    finally:
        if tunables is not None:
            os.environ["GLIBC_TUNABLES"] = tunables
    if point.result is None:
        raise BenchError(f"the published way could not be measured: {point.reason}")
    return point.result["passes"]


_PIECE = 1_024


def product_sizes(config: Any, tokens: int, length: int) -> list[tuple[int, int, int]]:
    """List (rows, inputs, outputs) of every linear map of a step.

    Parameters
    ----------
    config
        HyenaDNA configuration.
    tokens, length
        Positions of the whole batch, and of one sequence.
    """
    d, inner, width = config.d_model, config.d_inner, config.filter_order
    layer = [(tokens, d, 3 * d), (tokens, d, d), (tokens, d, inner), (tokens, inner, d)]
    layer += [(length, config.emb_dim, width), (length, width, d)]
    layer += [(length, width, width)] * config.num_inner_mlps
    return layer * config.n_layer + [(tokens, d, config.vocab_rows)]


class Limit:
    """Bare products and transforms of one step.

    Parameters
    ----------
    config
        HyenaDNA configuration.
    batch, length
        Shape of the step.
    dtype
        Of the products of blocks and head; those of the filter are in float32.
    """

    def __init__(self, config: Any, batch: int, length: int, dtype: torch.dtype) -> None:
        self.config, self.batch, self.length, self.dtype = config, batch, length, dtype
        self.sizes = product_sizes(config, batch * length, length)
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._transform: dict[str, Tensor] = {}

    def _matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        key = (name, rows, columns, dtype)
        if key not in self._kept:
            self._kept[key] = torch.randn(rows, columns).mul_(0.1).to(dtype)
        return self._kept[key]

    def products(self) -> float:
        """Give the seconds of all products, each over the whole length with a reused output."""
        calls = []
        for number, (rows, inputs, outputs) in enumerate(self.sizes):
            dtype = torch.float32 if self._is_filter(number) else self.dtype
            x, y = (self._matrix("in", rows, n, dtype) for n in (inputs, outputs))
            out_y = self._matrix("out", rows, outputs, dtype)
            out_x = self._matrix("out", rows, inputs, dtype)
            w, dw = (self._matrix(name, outputs, inputs, dtype) for name in ("w", "dw"))
            calls.append((x, y, w, out_x, out_y, dw))
        began = time.perf_counter()
        for x, y, w, out_x, out_y, dw in calls:
            torch.mm(x, w.t(), out=out_y)
            torch.mm(y, w, out=out_x)
            torch.mm(y.t(), x, out=dw)
        return time.perf_counter() - began

    def _is_filter(self, number: int) -> bool:
        per_layer = (len(self.sizes) - 1) // self.config.n_layer
        return number < len(self.sizes) - 1 and number % per_layer >= 4

    def products_in_cache(self) -> float:
        """Give the seconds of all products in pieces of a length that stays in the cache.

        Pieces are not read from memory anew, and the quicker of two libraries is used: no
        computation of a step can be as quick.
        """
        seconds = 0.0
        for number, (rows, inputs, outputs) in enumerate(self.sizes):
            dtype = torch.float32 if self._is_filter(number) else self.dtype
            size = min(rows, _PIECE)
            x, y = (self._matrix("piece", size, n, dtype) for n in (inputs, outputs))
            w = self._matrix("w", outputs, inputs, dtype)
            began = time.perf_counter()
            for _ in range(-(-rows // size)):
                matmul(x, w.t())
                matmul(y, w)
                matmul(y.t(), x)
            seconds += time.perf_counter() - began
        return seconds

    def transforms(self) -> float:
        """Give the seconds of all transforms of twice the length, with reused outputs."""
        d, n = self.config.d_model, 2 * self.length
        rows = self.batch * d
        if "samples" not in self._transform:
            samples = torch.zeros(rows, n)
            samples[:, : self.length] = 1e-3
            self._transform["samples"] = samples
            self._transform["spectrum"] = torch.fft.rfft(samples)
        samples, spectrum = self._transform["samples"], self._transform["spectrum"]
        began = time.perf_counter()
        for _ in range(self.config.n_layer):
            for count in (rows, rows, d):  # input, incoming gradient; taps
                torch.fft.rfft(samples[:count], out=spectrum[:count])
            for count in (rows, rows, d):  # output, input's gradient; taps' gradient
                torch.fft.irfft(spectrum[:count], n=n, out=samples[:count])
        return time.perf_counter() - began

    def forget(self) -> None:
        """Free what the transforms or products use."""
        self._kept.clear()
        self._transform.clear()


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
        :func:`megabase.models.describe.TrainingStep` says, by part.

    Raises
    ------
    BenchError
        When gradients differ from those of the published way, or megabase cannot be measured.
    """
    from megabase.models.describe import TrainingStep
    from megabase.training.run_folder import environment

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
    parts = TrainingStep(
        parameters=mine["parameters"],
        layers=config.layers,
        width=config.width,
        columns=int(model_config.vocab_rows),  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        micro_batch=config.batch,
        length=config.length,
        half=config.precision == "bf16-mixed",
        checkpointing=config.checkpointing,
        segment=config.stretch,
        fused=True,
    ).memory()
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

"""A training step beside the published way of computing it, its limit, and its peak memory.

Sides are run in turn in one process with one allocator setting, after loss and gradients of both
were compared; nothing is reported when they differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.harness import (
    BenchError,
    OtherWork,
    Say,
    build_model,
    in_child,
    in_turns,
    medians,
    memory_limit,
    record,
    refuse_difference,
    strengthen_filters,
    use_threads,
)
from benchmarks.plain import PlainHyenaDNA
from benchmarks.runtime import training_pass
from megabase.models.describe import step_memory
from megabase.ops.products import _uses_onednn, matmul
from megabase.settings import Settings
from megabase.training.process import keep_freed_memory

_PRECISIONS = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16}
"""float32 throughout, or matrix products in bfloat16."""
_PIECE = 1_024
"""Positions of a product that stays in the cache."""
_COMPARED = 2_048
"""Most tokens at which loss and gradients of both sides are compared."""
TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest number of each gradient."""


@dataclass(frozen=True, kw_only=True)
class _Shape(Settings):
    batch: int = 1
    """Sequences in a step."""
    length: int = 131_072
    """Tokens of each."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    precision: str = "fp32"
    """fp32 or bf16-mixed, of megabase; the published way is always measured in fp32."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    seed: int = 0
    """Of the weights and the input."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "batch length width layers",
        "be at least 0": "threads seed",
    }

    def _problems(self) -> Iterator[str]:
        if self.precision not in _PRECISIONS:
            yield f"precision is one of {', '.join(_PRECISIONS)}, found {self.precision!r}"

    def spec(self, model: str, **more: Any) -> dict[str, Any]:
        """Say what a process of its own measures, see :func:`benchmarks.runtime.measure`."""
        half = self.precision == "bf16-mixed" and model != "plain"
        shared = {n: getattr(self, n) for n in ("batch", "length", "width", "layers", "threads",
                                                "seed")}  # fmt: skip
        return {
            "model": model, "device": "cpu", "dtype": "bfloat16" if half else "float32",
            "checkpointing": False, **shared, **more,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepConfig(_Shape):
    """A training step of HyenaDNA against the published way of computing it and its limit."""

    repeats: int = 5
    """Steps of each side, in turn, of which the median counts, after one that does not."""
    as_it_comes: bool = True
    """Also measure the published way with the C library's allocator as it comes, in a process of
    its own."""

    _limits: ClassVar[Mapping[str, str]] = {"be at least 1": "repeats"}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(_Shape):
    """Peak memory of a training step, optimizer included, beside estimate and published way."""

    checkpointing: bool = False
    """Compute activations of blocks again in the backward pass."""
    stretch: int = 1
    """Checkpointed blocks in a row that keep one input between them."""
    plain: bool = True
    """Also measure the published way."""
    steps: int = 2
    """Training steps to take; the first one takes almost all the memory that later ones do."""
    memory_limit: float = 0.0
    """GiB of memory that one side may take; 0: nine tenths of what is free at the start."""
    time_limit: float = 600.0
    """Seconds that one side may take."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "stretch steps",
        "be at least 0": "memory_limit",
        "be above 0": "time_limit",
    }

    def _problems(self) -> Iterator[str]:
        if self.stretch > 1 and not self.checkpointing:
            yield "stretch needs checkpointing true"


def _pair(config: _Shape, length: int, gain: float = 1.0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(config.seed)
    ours = build_model("hyenadna", config.width, config.layers, length + 2).train()
    strengthen_filters(ours, gain)
    return ours, PlainHyenaDNA(ours).train()


def compare_gradients(config: _Shape) -> dict[str, Any]:
    """Compare loss and gradients of both sides in float32.

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
    length = min(config.length, _COMPARED)
    ours, plain = _pair(config, length, gain=4.0)
    ids = torch.randint(7, 11, (min(config.batch, 2), length))
    loss, plain_loss = (training_pass(model, ids)[-1] for model in (ours, plain))
    worst, where = abs(loss - plain_loss) / abs(plain_loss), "loss"
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        want, got = theirs[f"model.{name}"].grad, parameter.grad
        if want is None or got is None:
            raise BenchError(f"{name} has no gradient: nothing is reported")
        difference = float((got - want).abs().max() / want.abs().max().clamp(min=1e-20))
        if not difference <= worst:
            worst, where = difference, name
    refuse_difference(worst, TOLERANCE, f"gradients ({where}) differ from the published way's")
    return {"length": length, "largest_difference": worst, "name": where,
            "tolerance": TOLERANCE, "loss": [loss, plain_loss]}  # fmt: skip


def run_step(config: StepConfig, say: Say) -> dict[str, Any]:
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
    others = OtherWork()
    keep_freed_memory()
    use_threads(config.threads)
    equality = compare_gradients(config)
    say(f"gradients agree within {equality['largest_difference']:.1e} ({equality['name']})")
    dtype = _PRECISIONS[config.precision]
    ours, plain = _pair(config, config.length)
    ids = torch.randint(7, 11, (config.batch, config.length))

    def step(model: nn.Module, dtype: torch.dtype) -> None:
        training_pass(model, ids, dtype)
        model.zero_grad(set_to_none=True)  # the other sides are to have the memory

    limits = bare_work(ours.config, config.batch, config.length, dtype)
    sides = {
        "megabase": lambda: step(ours, dtype),
        "plain": lambda: step(plain, torch.float32),
        **limits,
    }
    times = in_turns(sides, config.repeats)
    if config.as_it_comes:
        times["plain_as_it_comes"] = _as_it_comes(config)
    median = medians(times)
    seconds = median["megabase"]
    ratios = {n: median[n] / seconds for n in ("plain", "plain_as_it_comes") if n in median}
    share, cached = (
        (median[name] + median["transforms"]) / seconds
        for name in ("products", "products_in_cache")
    )
    tokens = config.batch * config.length / seconds
    say(
        f"{config.batch} x {config.length:,}, {config.layers} x {config.width}, "
        f"{config.precision}: {seconds:.3f} s a step, {tokens:,.0f} tokens/s (medians of "
        f"{config.repeats})"
    )
    for name, ratio in ratios.items():
        how = "with the allocator as it comes " if name != "plain" else ""
        say(f"the published way {how}takes {median[name]:.3f} s: {ratio:.2f} times")
    say(
        f"bare products {median['products']:.3f} s and transforms {median['transforms']:.3f} s are "
        f"{share:.0%} of the step; with products in pieces that stay in the cache "
        f"{median['products_in_cache']:.3f} s: {cached:.0%}"
    )
    return record(
        "step", config, others,
        float32_products="oneDNN" if _uses_onednn() else "torch", equality=equality, seconds=median,
        tokens_per_second=tokens, ratios=ratios, share_of_limit=share,
        share_of_limit_in_cache=cached, steps=times,
    )  # fmt: skip


def _as_it_comes(config: StepConfig) -> list[float]:
    """Time the published way in a process that nobody has set the allocator of."""
    tunables = os.environ.pop("GLIBC_TUNABLES", None)
    try:
        spec = config.spec("plain", repeats=config.repeats, keep_freed=False)
        found = in_child(
            "benchmarks.runtime:measure", **spec, budget=3600.0, memory=memory_limit(0)
        )
    finally:
        if tunables is not None:
            os.environ["GLIBC_TUNABLES"] = tunables
    if found["status"] != "measured":
        raise BenchError(f"the published way could not be measured: {found['reason']}")
    return found["passes"]


def linear_maps(
    config: Any, batch: int, length: int, dtype: torch.dtype
) -> list[tuple[int, int, int, torch.dtype]]:
    """List (rows, inputs, outputs, dtype) of every linear map of a step of a HyenaDNA.

    `dtype` is that of blocks and head; the maps of the filter are in float32.
    """
    d, inner, width, tokens = config.d_model, config.d_inner, config.filter_order, batch * length
    layer = [
        (tokens, d, 3 * d, dtype), (tokens, d, d, dtype), (tokens, d, inner, dtype),
        (tokens, inner, d, dtype), (length, config.emb_dim, width, torch.float32),
        (length, width, d, torch.float32),
    ]  # fmt: skip
    layer += [(length, width, width, torch.float32)] * config.num_inner_mlps
    return layer * config.n_layer + [(tokens, d, config.vocab_rows, dtype)]


def bare_work(
    config: Any, batch: int, length: int, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Give the bare products and transforms of one step, as functions with reused outputs.

    ``products``: each over the whole length. ``products_in_cache``: in pieces of a length that
    stays in the cache, so that they are not read from memory anew, by the quicker of two libraries;
    no computation of a step can be as quick. ``transforms``: all of twice the length.
    """
    maps = linear_maps(config, batch, length, dtype)

    @cache
    def matrix(name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(rows, columns).mul_(0.1).to(dtype)

    def products() -> None:
        for rows, inputs, outputs, of in maps:
            x, y = matrix("in", rows, inputs, of), matrix("in", rows, outputs, of)
            w, dw = (matrix(name, outputs, inputs, of) for name in ("w", "dw"))
            torch.mm(x, w.t(), out=matrix("out", rows, outputs, of))
            torch.mm(y, w, out=matrix("out", rows, inputs, of))
            torch.mm(y.t(), x, out=dw)

    def products_in_cache() -> None:
        for rows, inputs, outputs, of in maps:
            size = min(rows, _PIECE)
            x, y = matrix("piece", size, inputs, of), matrix("piece", size, outputs, of)
            w = matrix("w", outputs, inputs, of)
            for _ in range(-(-rows // size)):
                matmul(x, w.t())
                matmul(y, w)
                matmul(y.t(), x)

    d, n = config.d_model, 2 * length
    samples = torch.zeros(batch * d, n)
    samples[:, :length] = 1e-3
    spectrum = torch.fft.rfft(samples)

    def transforms() -> None:
        for _ in range(config.n_layer):
            for count in (batch * d, batch * d, d):  # input, incoming gradient; taps
                torch.fft.rfft(samples[:count], out=spectrum[:count])
            for count in (batch * d, batch * d, d):  # output, input's gradient; taps' gradient
                torch.fft.irfft(spectrum[:count], n=n, out=samples[:count])

    return {
        "products": products,
        "products_in_cache": products_in_cache,
        "transforms": transforms,
    }


def run_memory(config: MemoryConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`MemoryConfig`.

    Returns
    -------
    dict
        Ready for JSON. ``sides``: for each the bytes of the idle process, of the peak, of the peak
        above idle, and seconds of the step, or why there are none. ``estimate``: what
        :func:`megabase.models.describe.step_memory` says, by part.

    Raises
    ------
    BenchError
        When gradients differ from those of the published way, or megabase cannot be measured.
    """
    others = OtherWork()
    equality = compare_gradients(config)
    say(f"gradients agree within {equality['largest_difference']:.1e} ({equality['name']})")
    limit = memory_limit(config.memory_limit)
    sides: dict[str, Any] = {}
    for name, side in (("hyenadna", "megabase"), ("plain", "the published way"))[
        : 1 + config.plain
    ]:
        spec = config.spec(
            name, repeats=config.steps - 1, stretch=config.stretch, optimizer=True,
            budget=config.time_limit, memory=limit,
        )  # fmt: skip
        spec["checkpointing"] = config.checkpointing and name == "hyenadna"
        found = in_child("benchmarks.runtime:measure", **spec)
        if found["status"] != "measured":
            sides[side] = {"failed": f"{found['status']}: {found['reason']}"}
            say(f"{side}: {sides[side]['failed']}")
            continue
        above = found["peak_bytes"] - found["loaded_bytes"]
        sides[side] = {
            "idle_bytes": found["loaded_bytes"], "peak_bytes": found["peak_bytes"],
            "above_idle_bytes": above, "step_seconds": found["seconds"],
            "parameters": found["parameters"],
        }  # fmt: skip
        say(
            f"{side}: peak {found['peak_bytes'] / 1e9:.2f} GB, {above / 1e9:.2f} above idle; step "
            f"{found['seconds']:.2f} s"
        )
    mine = sides["megabase"]
    if "failed" in mine:
        raise BenchError(f"megabase could not be measured: {mine['failed']}")
    model_config = build_model("hyenadna", config.width, config.layers, 16).config
    shape = {
        "parameters": mine["parameters"],
        "layers": config.layers,
        "width": config.width,
        "columns": int(model_config.vocab_rows),
        "piecewise": True,
    }
    parts = step_memory(
        shape,
        config.batch,
        config.length,
        half=config.precision == "bf16-mixed",
        segment=config.stretch if config.checkpointing else 0,
    )
    ratio = parts["total"] / mine["peak_bytes"]
    say(f"estimate {parts['total'] / 1e9:.2f} GB, {ratio:.2f} times the peak")
    return record(
        "memory", config, others, equality=equality, sides=sides,
        estimate=parts, estimate_to_peak=ratio,
    )  # fmt: skip

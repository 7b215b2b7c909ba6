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

from megabase.bench.config import BenchError
from megabase.bench.limit import Limit
from megabase.bench.others import OtherWork
from megabase.bench.plain import PlainHyenaDNA
from megabase.bench.point import build_model
from megabase.bench.runtime import run_point
from megabase.bench.step_config import StepConfig
from megabase.ops.products import uses_onednn

__all__ = ["compare_gradients", "run_step", "training_pass"]


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
    from megabase.training.allocator import keep_freed_memory
    from megabase.training.provenance import environment

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

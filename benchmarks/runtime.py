"""Time and memory of forward and backward against length, one fresh process a point."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import (
    GIB,
    BenchError,
    OtherWork,
    Say,
    build_model,
    disturbed,
    in_child,
    memory_limit,
    proc_bytes,
    record,
    use_threads,
    watch,
)
from megabase.genome.files import write_whole
from megabase.models.base import checkpoint_activations
from megabase.report.style import Size, Theme, as_svg
from megabase.settings import Settings
from megabase.training.process import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = {
    "hyenadna": ("HyenaDNA", "#1a56c4"),
    "gpt": ("GPT", "#b4530a"),
    "mamba": ("Mamba", "#2f7d4f"),
    "caduceus": ("Caduceus", "#8a3ea8"),
}
"""Families that can be measured: name and color in plots. The others are compared with the first of
these that is measured."""
_KINDS = {"both": (False, True), "on": (True,), "off": (False,)}
"""Whether activations are checkpointed, for each series to measure."""
_FEWEST, _TAIL = 3, 4
"""Points that a fit needs, and the longest ones it sees: at short lengths fixed costs dominate."""
_SIZE = Size(720, 430, 12.0)
"""The plots stand in the width of a page."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Settings):
    """Time and memory of forward and backward against length, each point in its own process.

    A point that would pass a limit is not run; the plots beside the JSON show it as extrapolated.
    """

    models: Sequence[str] = ("hyenadna", "gpt")
    """Families to measure: hyenadna, gpt, mamba, caduceus."""
    min_length: int = 1024
    """First length in tokens; every further one is twice as long."""
    max_length: int = 1_048_576
    """Last length. Lengths over a limit are not run, and said to be extrapolated."""
    checkpointing: str = "both"
    """Activation checkpointing: on, off, or both."""
    repeats: int = 5
    """Passes per point, of which the median counts, after one that does not; fewer when they do
    not fit the time."""
    width: int = 128
    """Width of the models."""
    layers: int = 2
    """Blocks of the models."""
    batch: int = 1
    """Sequences in a pass."""
    dtype: str = "float32"
    """Arithmetic: float32, or bfloat16 by autocast."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1."""
    threads: int = 0
    """CPU threads of a pass; 0 leaves the choice to torch."""
    time_limit: float = 120.0
    """Seconds that one point may take, loading not counted."""
    model_time_limit: float = 600.0
    """Seconds that all points of one model with one kind of checkpointing may take together,
    loading not counted."""
    memory_limit: float = 0.0
    """GiB of memory that one point may take; 0: nine tenths of what is free at the start."""
    seed: int = 0
    """Of the weights and the input."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "min_length repeats width layers batch",
        "be above 0": "time_limit model_time_limit",
        "be at least 0": "memory_limit threads",
    }

    def _problems(self) -> Iterator[str]:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models or len(set(self.models)) != len(self.models):
            yield (
                f"models are distinct names out of {', '.join(MODELS)}, found "
                f"{', '.join(self.models) or 'none'}"
            )
        if self.checkpointing not in _KINDS:
            yield f"checkpointing is one of {', '.join(_KINDS)}, found {self.checkpointing!r}"
        if self.dtype not in ("float32", "bfloat16"):
            yield f"dtype is one of float32, bfloat16, found {self.dtype!r}"
        if self.max_length < self.min_length:
            yield f"max_length is {self.max_length}, below min_length, {self.min_length}"

    @property
    def lengths(self) -> list[int]:
        """Lengths from the first to the last, each twice the one before."""
        doublings = (self.max_length // self.min_length).bit_length()
        return [self.min_length << n for n in range(doublings)]


def training_pass(
    model: nn.Module,
    ids: Tensor,
    dtype: torch.dtype = torch.float32,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, float, float]:
    """Run forward and backward (and an optimizer's step) once; give the seconds of each, and loss.

    Parameters
    ----------
    model
        Language model, or the published way of computing it.
    ids
        (batch, length); each position is to tell the next one.
    dtype
        Of autocast; float32 for none.
    optimizer
        Its step is counted as part of the backward pass.
    """
    device = ids.device
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    half = dtype != torch.float32
    model.zero_grad(set_to_none=True)
    wait()
    begin = time.perf_counter()
    with torch.autocast(device.type, dtype) if half else contextlib.nullcontext():
        found = model(input_ids=ids)
        logits = found if isinstance(found, Tensor) else found.logits
        del found
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.roll(-1, dims=1).flatten())
    wait()
    middle = time.perf_counter()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    wait()
    return middle - begin, time.perf_counter() - middle, loss.item()


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure one point in this process.

    Parameters
    ----------
    spec
        ``model``, ``length``, ``checkpointing``, ``width``, ``layers``, ``batch``, ``dtype``,
        ``device``, ``threads``, ``repeats``, ``budget`` (seconds), ``memory`` (bytes), ``seed``;
        may be left out: ``optimizer`` (whether AdamW steps), ``stretch`` (checkpointed blocks that
        keep one input), ``keep_freed`` (False leaves the allocator as it comes).

    Returns
    -------
    dict
        ``seconds`` (median of forward and backward together), ``forward``, ``backward``,
        ``passes`` (seconds of each counted pass), ``warmed_up``, ``elapsed`` (seconds from the
        first pass to the last), ``peak_bytes``, ``loaded_bytes`` (peak before the first pass),
        ``parameters``, ``threads``.
    """
    if spec.get("keep_freed", True):
        keep_freed_memory()  # as training does
    use_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    device = torch.device(spec["device"])
    model = build_model(spec["model"], spec["width"], spec["layers"], spec["length"])
    model = model.to(device).train()
    if spec["checkpointing"]:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise BenchError(f"{spec['model']} cannot checkpoint its activations")
        checkpoint_activations(model, spec.get("stretch", 1))
    optimizer = torch.optim.AdamW(model.parameters()) if spec.get("optimizer") else None
    ids = torch.randint(7, 11, (spec["batch"], spec["length"]), device=device)
    dtype = getattr(torch, spec["dtype"])
    loaded = _peak_memory(device)
    watch(spec["budget"], spec["memory"])
    begin = time.perf_counter()
    passes = [training_pass(model, ids, dtype, optimizer)[:2]]
    # The first pass also pays for plans and fresh memory. It counts only when there is no time for
    # another one, or none is asked for.
    longest = sum(passes[0])
    warmed_up = spec["repeats"] > 0 and time.perf_counter() - begin + longest <= spec["budget"]
    if warmed_up:
        passes = []
        while len(passes) < spec["repeats"]:
            passes.append(training_pass(model, ids, dtype, optimizer)[:2])
            longest = max(sum(row) for row in passes)
            if time.perf_counter() - begin + longest > spec["budget"]:
                break
    return {
        "seconds": statistics.median(sum(row) for row in passes),
        "forward": statistics.median(row[0] for row in passes),
        "backward": statistics.median(row[1] for row in passes),
        "passes": [sum(row) for row in passes],
        "warmed_up": warmed_up,
        "elapsed": time.perf_counter() - begin,
        "peak_bytes": _peak_memory(device),
        "loaded_bytes": loaded,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def _peak_memory(device: torch.device) -> int:
    """Give the peak memory of this process, or of its device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return proc_bytes("VmHWM")


def run_runtime(config: RuntimeConfig, say: Say) -> dict[str, Any]:
    """Measure every model at every length, until a limit is met; Ctrl-C keeps what there is.

    Returns
    -------
    dict
        ``points``: every model, kind of checkpointing and length, with its ``status`` ("measured",
        "time limit", "memory limit", "not run", "unsupported" or "failed"), and ``reason`` or what
        :func:`measure` gives. ``series``: for each kind of checkpointing and model the measured
        seconds, the power law through the longest of them, what it says of lengths that were not
        run, and the comparison with the first model.
    """
    others, memory = OtherWork(), memory_limit(config.memory_limit)
    points: list[dict[str, Any]] = []
    with contextlib.suppress(KeyboardInterrupt):
        for model in config.models:
            for checkpointing in _KINDS[config.checkpointing]:
                for point in _series(config, model, checkpointing, memory):
                    points.append(point)
                    say(_line(point))
    series = [_summary(config, kind, points) for kind in _KINDS[config.checkpointing]]
    for one in series:
        kind = "with" if one["checkpointing"] else "without"
        for model, row in one["comparisons"].items():
            from_on = row["reference_faster_from"]
            say(
                f"{kind} checkpointing: {model} / {one['reference']} = "
                f"{row['ratios'][row['longest_common']]:.2f} at {row['longest_common']:,} tokens "
                f"(longest measured for both); {one['reference']} "
                + ("is not the faster one there" if from_on is None else
                   f"is the faster one from {from_on:,} tokens on")
            )  # fmt: skip
    return record("runtime", config, others, points=points, series=series)


def _series(
    config: RuntimeConfig, model: str, checkpointing: bool, memory: int
) -> Iterator[dict[str, Any]]:
    seconds: dict[int, float] = {}
    used = 0.0
    stopped: str | None = None
    shared = ("width", "layers", "batch", "dtype", "device", "threads", "repeats", "seed")
    for length in config.lengths:
        point: dict[str, Any] = {"model": model, "checkpointing": checkpointing, "length": length}
        law = fit_power_law(seconds)
        expected = 0.0 if law is None else law.at(length)
        if stopped is None and expected > config.time_limit:
            stopped = f"one pass would take about {expected:.0f} s, over {config.time_limit:g} s"
        elif stopped is None and used + expected > config.model_time_limit:
            stopped = f"the {config.model_time_limit:g} s for this model are used up"
        if stopped is not None:
            yield {**point, "status": "not run", "reason": stopped}
            continue
        others = OtherWork()
        budget = min(config.time_limit, config.model_time_limit - used)
        settings = {name: getattr(config, name) for name in shared}
        found = in_child(
            "benchmarks.runtime:measure", **point, **settings, budget=budget, memory=memory
        )
        yield {**point, **found, "other_cores": others.cores()}
        if found["status"] == "measured":
            seconds[length] = found["seconds"]
            used += found["elapsed"]
        else:
            stopped = f"{found['status']} at {length:,} tokens"


def _line(point: Mapping[str, Any]) -> str:
    kind = "checkpointed" if point["checkpointing"] else "plain"
    head = f"{point['model']:<9} {kind:<12} {point['length']:>9,} tokens  "
    if point["status"] != "measured":
        return f"{head}{point['status']}: {point['reason']}"
    busy = ""
    if disturbed(point["other_cores"]):
        busy = f"  [others kept {point['other_cores']:.1f} cores busy]"
    return (
        f"{head}{point['seconds']:10.4f} s  (forward {point['forward']:.4f}, backward "
        f"{point['backward']:.4f}; {len(point['passes'])} passes)  "
        f"peak {point['peak_bytes'] / 2**20:,.0f} MiB{busy}"
    )


def _summary(
    config: RuntimeConfig, checkpointing: bool, points: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    reference = next(name for name in MODELS if name in config.models)
    seconds: dict[str, dict[int, float]] = {model: {} for model in config.models}
    for point in points:
        if point["status"] == "measured" and point["checkpointing"] == checkpointing:
            seconds[point["model"]][point["length"]] = point["seconds"]
    models = {}
    for model, found in seconds.items():
        law = fit_power_law(found)
        beyond = [length for length in config.lengths if length > max(found, default=0)]
        models[model] = {
            "seconds": found,
            "exponent": None if law is None else law.exponent,
            "extrapolated_seconds": {} if law is None else {n: law.at(n) for n in beyond},
        }
    comparisons = {
        model: compare(seconds[reference], found)
        for model, found in seconds.items()
        if model != reference and set(seconds[reference]) & set(found)
    }
    return {
        "checkpointing": checkpointing,
        "reference": reference,
        "models": models,
        "comparisons": comparisons,
    }


@dataclass(frozen=True)
class PowerLaw:
    """seconds = scale * length ** exponent."""

    scale: float
    exponent: float

    def at(self, length: float) -> float:
        """Give the seconds of a length."""
        return self.scale * length**self.exponent


def fit_power_law(seconds: Mapping[int, float]) -> PowerLaw | None:
    """Fit a straight line to the logarithms of the last four lengths; None for fewer than three."""
    lengths = sorted(seconds)[-_TAIL:]
    if len(lengths) < _FEWEST:
        return None
    exponent, offset = np.polyfit(np.log(lengths), np.log([seconds[n] for n in lengths]), 1)
    return PowerLaw(float(np.exp(offset)), float(exponent))


def compare(reference: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Compare the times of a model with those of the reference, at lengths measured for both.

    Returns
    -------
    dict
        ``ratios``: other / reference; ``longest_common``; ``reference_faster_from``: the length
        from which on the reference is the faster one at all of them, None when it never is.
    """
    ratios = {n: other[n] / reference[n] for n in sorted(set(reference) & set(other))}
    start = None
    for length in reversed(ratios):
        if ratios[length] <= 1:
            break
        start = length
    return {"ratios": ratios, "longest_common": max(ratios), "reference_faster_from": start}


def save_plots(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Write time and memory against length as SVG beside the JSON; earlier files are replaced."""
    paths = []
    for what in ("time", "memory"):
        paths.append(output.with_name(f"{output.stem}-{what}.svg"))
        write_whole(paths[-1], as_svg(partial(_draw, summary, what), size=_SIZE), True)
    return paths


def _draw(summary: Mapping[str, Any], what: str, figure: Figure, theme: Theme, size: Size) -> None:
    """Draw a panel for each kind of checkpointing, log-log.

    Measured points are dots on a full line; what a fit says of lengths that were not run is dashed,
    without dots, and named an extrapolation in the legend.
    """
    figure.set_layout_engine("constrained")
    figure.set_facecolor(theme.background)
    panels = figure.subplots(1, len(summary["series"]), sharey=True, squeeze=False)[0]
    for axes, series in zip(panels, summary["series"], strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(True, which="major")
        kind = "with" if series["checkpointing"] else "without"
        axes.set_title(f"{kind} activation checkpointing", loc="left")
        axes.set_xlabel("tokens")
        for model, row in series["models"].items():
            name, color = MODELS[model]
            known = {
                p["length"]: p["seconds"] if what == "time" else p["peak_bytes"] / GIB
                for p in summary["points"]
                if (p["model"], p["checkpointing"]) == (model, series["checkpointing"])
                if p["status"] == "measured"
            }
            axes.plot(
                list(known), list(known.values()), "o-", color=color, markersize=4, label=name
            )
            beyond = row["extrapolated_seconds"]
            if what == "time" and beyond:
                last = max(known)
                label = f"{name}: extrapolated, not run (length^{row['exponent']:.2f})"
                axes.plot([last, *map(int, beyond)], [known[last], *beyond.values()], "--",
                          color=color, linewidth=1.3, label=label)  # fmt: skip
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    panels[0].set_ylabel(
        "seconds, forward and backward" if what == "time" else "peak memory of the process, GiB"
    )
    config, machine = summary["config"], summary["environment"]
    facts = (
        f"{config['layers']} layers, width {config['width']}, batch {config['batch']}, "
        f"{config['dtype']}, {config['device']}; "
        f"{machine['processor'] or 'unknown processor'}, {machine['threads']} threads; "
        f"torch {machine['packages']['torch']}; {summary['when'][:10]}"
    )
    figure.supxlabel(facts, fontsize=size.text - 3, color=theme.muted)

"""The selective scan, measured: plain, in torch, in C++, in transformers, and its exponentials."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.harness import (
    BenchError,
    OtherWork,
    Say,
    in_child,
    in_turns,
    proc_bytes,
    record,
    refuse_difference,
)
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.loading import threads
from megabase.models.mamba import MambaConfig, MambaForCausalLM
from megabase.ops import backend, kernels
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.settings import Settings
from megabase.training.process import keep_freed_memory

TOLERANCE = 1e-10
"""Largest difference of values and gradients in float64, relative to values above 1."""
_MODEL_TOLERANCE = 1e-4
"""Largest difference of a logit between transformers and here, in float32."""
_SLOW_TURNS = 3
"""Turns of the model in transformers, which takes seconds for each."""
ALONG = ("u", "delta", "B", "C", "z")
"""Inputs that grow with the length."""


@dataclass(frozen=True, kw_only=True)
class ScanConfig(Settings):
    """The selective scan: definition, torch, C++, its exponentials alone, and transformers.

    Values and gradients are compared first; nothing is reported when they differ.
    """

    batch: int = 1
    """Sequences of one scan."""
    length: int = 1024
    """Positions of one scan."""
    channels: int = 256
    """Inner channels (d_inner)."""
    states: int = 16
    """States per channel (d_state)."""
    repeats: int = 7
    """Turns, after one to warm up."""
    inner: int = 5
    """Runs of the fast implementations in each turn."""
    threads: int = 0
    """CPU threads; 0 for those torch takes."""
    reference: bool = True
    """Whether the sequential reference is timed too."""
    transformers: bool = True
    """Whether the CPU path of Mamba in transformers is timed: a whole model of two layers, whose
    d_inner is `channels`, beside the same one of megabase."""
    memory_length: int = 0
    """Length at which peak memory is measured, in processes of their own; 0 for not."""
    throughput: bool = False
    """Whether training throughput of the published small models is measured."""
    model_batch: int = 8
    """Sequences in a batch of those models."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "batch length channels states repeats inner model_batch",
        "be at least 0": "threads memory_length",
    }


def run_scan(config: ScanConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`ScanConfig`.

    Returns
    -------
    dict
        Ready for JSON: settings, environment, ``equality``, medians in milliseconds and every run,
        ratios; ``memory`` and ``tokens_per_second`` where they were asked for.

    Raises
    ------
    BenchError
        When implementations differ: nothing is reported then.
    """
    others = OtherWork()
    keep_freed_memory()
    package = kernels.package()
    names = ["fast"] if package is None else ["fast", "kernels"]
    found: dict[str, Any] = {
        "kernels": kernels.why_missing() if package is None else package.instruction_set()
    }
    say(f"kernels: {found['kernels']}")
    with threads(config.threads or torch.get_num_threads()):
        found["equality"] = {name: _difference(config, name) for name in names}
        say(f"values and gradients agree in float64: {found['equality']}")
        found["scan"] = _time_scans(config, names)
        _show(found["scan"], "scan", say)
        if config.transformers:
            say("timing a model of two layers in transformers; it takes seconds a pass")
            found["model"] = _time_models(config, names)
            _show(found["model"], "model of two layers", say)
        if config.throughput:
            found["tokens_per_second"] = _throughput(config)
            for name, row in found["tokens_per_second"].items():
                say(f"  training of {name}: {row['median']:,.0f} tokens/s")
    for name in names if config.memory_length else ():
        for both in (False, True):
            row = in_child(
                "benchmarks.scan:measure", backend=name, length=config.memory_length,
                channels=config.channels, states=config.states, backward=both,
            )  # fmt: skip
            if row["status"] != "measured":
                raise BenchError(f"the measurement of memory failed: {row['reason']}")
            what = f"{name}, {'forward and backward' if both else 'forward'}"
            found.setdefault("memory", {})[what] = row
            say(
                f"  peak memory at {config.memory_length:,}, {what}: {row['peak_bytes'] / 1e6:,.0f}"
                f" MB, {row['ratio']:.2f} times inputs and outputs"
            )
    return record("scan", config, others, **found)


def _show(group: dict[str, Any], title: str, say: Say) -> None:
    for name, row in group["times"].items():
        say(
            f"  {title}: {name:<32} {row['median']:10.3f} ms "
            f"({row['lowest']:.3f} to {row['highest']:.3f})"
        )
    for name, ratio in group["ratios"].items():
        say(f"  {title}: {name}: {ratio:.2f}")


def _both_ways(arguments: dict[str, Any], dy: Tensor) -> list[Tensor]:
    y, state = selective_scan(ScanInputs(**arguments))
    return [y, state, *torch.autograd.grad(y, list(arguments.values()), dy)]


def _difference(config: ScanConfig, name: str) -> float:
    worst = 0.0
    for length in (1, 63, min(config.length, 1000)):
        arguments = make(2, length, 19, config.states, torch.float64)
        dy = torch.randn(2, length, 19, dtype=torch.float64, generator=torch.Generator())
        pair = []
        for one in ("reference", name):
            with backend.override(one):
                pair.append(_both_ways(arguments, dy))
        for want, got in zip(*pair, strict=True):
            scale = want.detach().abs().max().clamp(min=1)
            worst = max(worst, float((want - got).detach().abs().max() / scale))
    refuse_difference(worst, TOLERANCE, f"the scan of backend {name} differs from the reference")
    return worst


def _milliseconds(times: dict[str, list[float]]) -> dict[str, Any]:
    found = {}
    for name, seconds in times.items():
        runs = [1e3 * one for one in seconds]
        found[name] = {"median": statistics.median(runs), "lowest": min(runs),
                       "highest": max(runs), "runs": runs}  # fmt: skip
    return found


def _time_scans(config: ScanConfig, names: list[str]) -> dict[str, Any]:
    shape = (config.batch, config.length, config.channels, config.states)
    arguments = make(*shape, torch.float32)
    plain: dict[str, Any] = {name: tensor.detach() for name, tensor in arguments.items()}
    dy = torch.ones_like(plain["u"])

    def under(name: str, run: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            with backend.override(name):
                run()

        return call

    runs: dict[str, Callable[[], object]] = {}
    for name in [*(["reference"] if config.reference else []), *names]:
        runs[f"{name}, forward"] = under(name, lambda: selective_scan(ScanInputs(**plain)))
        runs[f"{name}, forward and backward"] = under(name, lambda: _both_ways(arguments, dy))
    exponents = -torch.rand(config.batch * config.length * config.channels * config.states)
    decays = torch.empty_like(exponents)
    runs["exponentials alone, torch.exp"] = lambda: torch.exp(exponents, out=decays)
    package = kernels.package()
    if package is not None:
        count = torch.get_num_threads()
        runs["exponentials alone"] = lambda: package.exponentials_seconds(*shape, threads=count)
    counts = {name: config.inner for name in runs if not name.startswith("reference")}
    found = _milliseconds(in_turns(runs, config.repeats, counts))
    ratios = {}
    if package is not None:
        alone = found["exponentials alone"]["median"]
        both = found["kernels, forward and backward"]["median"]
        ratios = {
            "forward and backward over torch.exp of one pass":
                both / found["exponentials alone, torch.exp"]["median"],
            "forward over its exponentials": found["kernels, forward"]["median"] / alone,
            # The backward pass computes every exponential a second time.
            "forward and backward over their exponentials": both / (2 * alone),
        }  # fmt: skip
    return {"times": found, "ratios": ratios}


def _time_models(config: ScanConfig, names: list[str]) -> dict[str, Any]:
    """Time forward and backward of one model in transformers and here, with the same weights."""
    import transformers

    width = config.channels // 2
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=16, hidden_size=width, state_size=config.states, num_hidden_layers=2
        )
    )
    ours = MambaForCausalLM(
        MambaConfig(d_model=width, n_layer=2, ssm_cfg={"d_state": config.states})
    )
    weights = {
        name.replace("backbone.embeddings.", "backbone.embedding."): value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)
    ids = torch.randint(7, 11, (config.batch, config.length))
    with torch.no_grad():
        worst = float((theirs(ids).logits - ours(ids).logits).abs().max())
    refuse_difference(worst, _MODEL_TOLERANCE, "the model in transformers differs from ours")

    def pass_of(model: nn.Module, name: str) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            with backend.override(name):
                model(ids).logits.square().mean().backward()

        return run

    runs = {"transformers": pass_of(theirs, backend.active())}
    runs.update({name: pass_of(ours, name) for name in names})
    counts = dict.fromkeys(names, config.inner)
    found = _milliseconds(in_turns(runs, min(config.repeats, _SLOW_TURNS), counts))
    slow = found["transformers"]["median"]
    ratios = {f"transformers over {name}": slow / found[name]["median"] for name in names}
    return {"times": found, "ratios": ratios, "largest_difference": worst}


def _throughput(config: ScanConfig) -> dict[str, Any]:
    """Tokens per second, forward and backward, of the published small models."""
    models: dict[str, Any] = {
        "mamba d128 n4": MambaForCausalLM(MambaConfig()),
        "caduceus-ph d118 n4": CaduceusForMaskedLM(CaduceusConfig()),
        "caduceus-ps d118 n4": CaduceusForMaskedLM(CaduceusConfig(rcps=True)),
    }
    ids = torch.randint(7, 11, (config.model_batch, config.length))
    runs = {
        name: lambda model=model: model(ids, labels=ids).loss.backward()
        for name, model in models.items()
    }
    return {
        name: {
            "median": ids.numel() / statistics.median(seconds),
            "runs": [ids.numel() / one for one in seconds],
        }
        for name, seconds in in_turns(runs, config.repeats).items()
    }


def make(
    batch: int, length: int, channels: int, states: int, dtype: torch.dtype, grad: bool = True
) -> dict[str, Any]:
    """Draw inputs of the size that a Mamba mixer gives to the scan when it starts to learn."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    rates = torch.arange(1, states + 1, dtype=dtype).expand(channels, states)
    arguments: dict[str, Tensor] = {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels),
        "A": -rates.clone(),
        "B": draw(batch, length, states),
        "C": draw(batch, length, states),
        "D": torch.ones(channels, dtype=dtype),
        "z": draw(batch, length, channels),
        "bias": torch.full((channels,), -4.0, dtype=dtype),
    }
    return {name: tensor.requires_grad_(grad) for name, tensor in arguments.items()}


def measure(spec: dict[str, Any]) -> dict[str, float]:
    """Measure this process's peak over what it had before it made the inputs.

    Parameters
    ----------
    spec
        ``backend``, ``length``, ``channels``, ``states``, ``backward``.

    Returns
    -------
    dict
        ``stored_bytes`` of inputs and output (and of their gradients with ``backward``),
        ``peak_bytes``, and their ``ratio``.
    """

    def run(length: int) -> dict[str, Any]:
        given = make(
            1, length, spec["channels"], spec["states"], torch.float32, grad=spec["backward"]
        )
        y, _ = selective_scan(ScanInputs(**given))
        if spec["backward"]:
            torch.autograd.grad(y, list(given.values()), torch.ones_like(y))
        return given

    with backend.override(spec["backend"]):
        run(300)
        before = proc_bytes("VmRSS")
        given = run(spec["length"])
    stored = sum(given[name].nbytes for name in ALONG) + given["u"].nbytes
    stored *= 2 if spec["backward"] else 1
    peak = proc_bytes("VmHWM") - before
    return {"stored_bytes": stored, "peak_bytes": peak, "ratio": peak / stored}

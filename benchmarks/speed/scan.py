"""The selective scan, measured: plain, in torch, in C++, in transformers, and its exponentials."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed import ROOT
from benchmarks.speed.config import BenchError, ScanConfig
from benchmarks.speed.others import OtherWork
from megabase.models.loading import threads
from megabase.ops import backend, kernels
from megabase.ops.selective_scan import ScanInputs, selective_scan

__all__ = ["ALONG", "in_child", "make", "measure", "run_scan"]

TOLERANCE = 1e-10
"""Largest difference of values and gradients in float64, relative to values above 1."""

_MODEL_TOLERANCE = 1e-4
_SLOW_TURNS = 3
"""Turns of the model in transformers, which takes seconds for each."""

_Run = Callable[[], object]


def run_scan(
    config: ScanConfig, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
    """Measure; see :class:`ScanConfig`.

    Parameters
    ----------
    config
        What to measure.
    say
        Called with a line about each part that is done.

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
    from megabase.training.run_folder import environment

    others = OtherWork()
    names = ["fast"] if kernels.package() is None else ["fast", "kernels"]
    with threads(config.threads or torch.get_num_threads()):
        equality = {name: _difference(config, name) for name in names}
        say(f"values and gradients agree in float64: {equality}")
        found: dict[str, Any] = {
            "kind": "scan",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": asdict(config),
            "environment": environment(),
            "kernels": kernels.why_missing() or kernels.package().instruction_set(),
            "equality": equality,
            "scan": _time_scans(config, names),
        }
        if config.transformers:
            say("timing a model of two layers in transformers; it takes seconds a pass")
            found["model"] = _time_models(config, names)
        if config.throughput:
            found["tokens_per_second"] = _throughput(config)
    if config.memory_length:
        found["memory"] = {
            f"{name}, {'forward and backward' if both else 'forward'}": in_child(
                name, config.memory_length, config.channels, config.states, both
            )
            for name in names
            for both in (False, True)
        }
    found["other_cores"] = others.cores()
    return found


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
    if not worst <= TOLERANCE:
        raise BenchError(
            f"the scan of backend {name} differs from the reference by {worst:.3g} in float64 "
            f"(allowed {TOLERANCE:g}); nothing is reported"
        )
    return worst


def _in_turns(runs: dict[str, tuple[_Run, int]], turns: int) -> dict[str, list[float]]:
    """Milliseconds of every run: all implementations meet the same weather."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, (run, count) in runs.items():
            for _ in range(count):
                begin = time.perf_counter()
                run()
                if turn:  # the first turn warms up
                    times[name].append((time.perf_counter() - begin) * 1e3)
    return times


def _medians(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: {"median": statistics.median(t), "lowest": min(t), "highest": max(t), "runs": t}
        for name, t in times.items()
    }


def _time_scans(config: ScanConfig, names: list[str]) -> dict[str, Any]:
    shape = (config.batch, config.length, config.channels, config.states)
    arguments = make(*shape, torch.float32)
    plain: dict[str, Any] = {name: tensor.detach() for name, tensor in arguments.items()}
    dy = torch.ones_like(plain["u"])

    def forward(name: str) -> _Run:
        def run() -> object:
            with backend.override(name):
                return selective_scan(ScanInputs(**plain))

        return run

    def both(name: str) -> _Run:
        def run() -> object:
            with backend.override(name):
                return _both_ways(arguments, dy)

        return run

    runs: dict[str, tuple[_Run, int]] = {}
    for name in [*(["reference"] if config.reference else []), *names]:
        count = 1 if name == "reference" else config.inner
        runs[f"{name}, forward"] = (forward(name), count)
        runs[f"{name}, forward and backward"] = (both(name), count)
    exponents = -torch.rand(shape[0] * shape[1] * shape[2] * shape[3])
    decays = torch.empty_like(exponents)
    runs["exponentials alone, torch.exp"] = (
        lambda: torch.exp(exponents, out=decays),
        config.inner,
    )
    package = kernels.package()
    if package is not None:
        count = torch.get_num_threads()
        runs["exponentials alone"] = (
            lambda: package.exponentials_seconds(*shape, threads=count),
            config.inner,
        )
    found = _medians(_in_turns(runs, config.repeats))
    if package is not None:
        alone = found["exponentials alone"]["median"]
        forward_time = found["kernels, forward"]["median"]
        both_time = found["kernels, forward and backward"]["median"]
        usual = found["exponentials alone, torch.exp"]["median"]
        found["ratios"] = {
            "forward and backward over torch.exp of one pass": both_time / usual,
            "forward over its exponentials": forward_time / alone,
            # The backward pass computes every exponential a second time.
            "forward and backward over their exponentials": both_time / (2 * alone),
            "forward and backward over the exponentials once": both_time / alone,
        }
    return found


def _time_models(config: ScanConfig, names: list[str]) -> dict[str, Any]:
    """Time forward and backward of one model in transformers and here, with the same weights."""
    import transformers

    from megabase.models.mamba import MambaConfig, MambaForCausalLM

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
    if not worst <= _MODEL_TOLERANCE:
        raise BenchError(
            f"the model in transformers differs from ours by {worst:.3g} (allowed "
            f"{_MODEL_TOLERANCE:g}); nothing is reported"
        )

    def pass_of(model: nn.Module, name: str | None) -> _Run:
        def run() -> None:
            model.zero_grad()
            with backend.override(name or backend.active()):
                model(ids).logits.square().mean().backward()

        return run

    runs: dict[str, tuple[_Run, int]] = {"transformers": (pass_of(theirs, None), 1)}
    for name in names:
        runs[name] = (pass_of(ours, name), config.inner)
    found = _medians(_in_turns(runs, min(config.repeats, _SLOW_TURNS)))
    slow = found["transformers"]["median"]
    found["ratios"] = {f"transformers over {name}": slow / found[name]["median"] for name in names}
    found["largest_difference"] = worst
    return found


def _throughput(config: ScanConfig) -> dict[str, Any]:
    """Tokens per second, forward and backward, of the published small models."""
    from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
    from megabase.models.mamba import MambaConfig, MambaForCausalLM

    models: dict[str, nn.Module] = {
        "mamba d128 n4": MambaForCausalLM(MambaConfig()),
        "caduceus-ph d118 n4": CaduceusForMaskedLM(CaduceusConfig()),
        "caduceus-ps d118 n4": CaduceusForMaskedLM(CaduceusConfig(rcps=True)),
    }
    ids = torch.randint(7, 11, (config.model_batch, config.length))

    def pass_of(model: nn.Module) -> _Run:
        return lambda: model(ids, labels=ids).loss.backward()

    times = _in_turns({name: (pass_of(m), 1) for name, m in models.items()}, config.repeats)
    tokens = 1e3 * ids.numel()
    return {
        name: {"median": tokens / statistics.median(t), "runs": [tokens / x for x in t]}
        for name, t in times.items()
    }


ALONG = ("u", "delta", "B", "C", "z")
"""Inputs that grow with the length."""


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


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")


def measure(
    backend: str, length: int, channels: int, states: int, backward: bool
) -> dict[str, float]:
    """Measure this process's peak over what it had before it made the inputs.

    Returns
    -------
    dict
        ``stored_bytes`` of inputs and output (and of their gradients with `backward`),
        ``peak_bytes``, and their ``ratio``.
    """
    from megabase.ops import backend as backends
    from megabase.ops.selective_scan import ScanInputs, selective_scan

    def run(length: int) -> dict[str, Any]:
        given = make(1, length, channels, states, torch.float32, grad=backward)
        y, _ = selective_scan(ScanInputs(**given))
        if backward:
            torch.autograd.grad(y, list(given.values()), torch.ones_like(y))
        return given

    with backends.override(backend):
        run(300)
        before = _status("VmRSS")
        given = run(length)
    stored = sum(given[name].nbytes for name in ALONG) + given["u"].nbytes
    stored *= 2 if backward else 1
    peak = _status("VmHWM") - before
    return {"stored_bytes": stored, "peak_bytes": peak, "ratio": peak / stored}


def in_child(*arguments: Any) -> dict[str, float]:
    """Run :func:`measure` in a process of its own.

    Raises
    ------
    BenchError
        When it fails; the message is its last line.
    """
    command = [sys.executable, "-m", "benchmarks.speed.scan", json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BenchError(f"the measurement of memory failed: {lines[-1]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(*json.loads(sys.argv[1]))))

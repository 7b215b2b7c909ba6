"""One point of a measurement: one model at one length, in a process of its own.

Run as ``python -m benchmarks.speed.point SPEC RESULT READY`` with the paths of three files: what to
measure (JSON), where to write the result, and a file that is created once everything is loaded and
the clock starts. The process measures its own peak memory, so nothing of another point is in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.config import BenchError
from benchmarks.speed.plain import PlainHyenaDNA

__all__ = ["build_model", "main", "measure"]

# Every dropout is off: attention with dropout has no fast path on a CPU, and the figure is about
# the operators.
_SETTINGS: dict[str, Callable[[int, int, int], dict[str, Any]]] = {
    "hyenadna": lambda width, layers, length: {
        "d_model": width, "n_layer": layers, "max_seq_len": length,
        "embed_dropout": 0.0, "resid_dropout": 0.0, "hyena_dropout": 0.0,
    },
    "gpt": lambda width, layers, length: {
        "d_model": width, "n_layer": layers, "max_position_embeddings": length,
        "embed_dropout": 0.0, "resid_dropout": 0.0, "attention_dropout": 0.0,
    },
    "mamba": lambda width, layers, length: {"d_model": width, "n_layer": layers},
    "caduceus": lambda width, layers, length: {"d_model": width, "n_layer": layers},
}  # fmt: skip
_KINDS = {"hyenadna": "causal-lm", "gpt": "causal-lm", "mamba": "causal-lm",
          "caduceus": "masked-lm"}  # fmt: skip
_BASES = (7, 11)


def build_model(name: str, width: int, layers: int, length: int) -> torch.nn.Module:
    """Build a model of a family for inputs of a length, without dropout.

    The name ``plain`` gives HyenaDNA computed the published way.

    Raises
    ------
    BenchError
        When this installation does not have the family.
    """
    if name == "plain":
        return PlainHyenaDNA(build_model("hyenadna", width, layers, length).config)
    families = importlib.import_module("megabase.models.families")
    known = name in families.FAMILIES
    family = families.FAMILIES[name] if known else None
    if family is None or _KINDS[name] not in family.classes():
        raise BenchError(f"this installation has no {name} language model")
    model_class = family.classes()[_KINDS[name]]
    return model_class(model_class.config_class(**_SETTINGS[name](width, layers, length)))


def peak_memory(device: torch.device) -> int:
    """Give the peak memory of this process, or of its device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            # Not ru_maxrss: a process inherits that from the one that started it.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _pass(
    model: torch.nn.Module,
    ids: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, float]:
    """Run forward and backward (and an optimizer's step) once; give the seconds of each."""
    device = ids.device
    model.zero_grad(set_to_none=True)
    lower = (
        torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    )
    _wait(device)
    begin = time.perf_counter()
    with lower:
        found = model(input_ids=ids)
        logits = found if isinstance(found, Tensor) else found.logits
        del found
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    _wait(device)
    middle = time.perf_counter()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    _wait(device)
    return middle - begin, time.perf_counter() - middle


def measure(spec: dict[str, Any], ready: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Measure one point in this process.

    Parameters
    ----------
    spec
        ``model``, ``length``, ``checkpointing``, ``width``, ``layers``, ``batch``, ``dtype``,
        ``device``, ``threads``, ``repeats``, ``budget`` (seconds) and ``seed``; ``optimizer``
        (whether AdamW steps, counted as part of the backward pass) may be left out.
    ready
        Called when the model is built, before the first pass.

    Returns
    -------
    dict
        ``seconds`` (median of forward and backward together), ``forward``, ``backward``,
        ``passes`` (seconds of each counted pass), ``warmed_up``, ``elapsed`` (seconds from the
        first pass to the last), ``peak_bytes``, ``loaded_bytes`` (peak before the first pass),
        ``parameters``, ``threads``.

    Raises
    ------
    BenchError
        When the family is not installed, or cannot checkpoint its activations.
    """
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    device = torch.device(spec["device"])
    model = build_model(spec["model"], spec["width"], spec["layers"], spec["length"])
    model = model.to(device).train()
    if spec["checkpointing"]:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise BenchError(f"{spec['model']} cannot checkpoint its activations")
        from megabase.models.base import checkpoint_activations

        checkpoint_activations(model, spec.get("stretch", 1))  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(model.parameters()) if spec.get("optimizer") else None
    ids = torch.randint(*_BASES, (spec["batch"], spec["length"]), device=device)
    targets = ids.roll(-1, dims=1)
    dtype = getattr(torch, spec["dtype"])
    loaded = peak_memory(device)
    ready()
    begin = time.perf_counter()
    passes = [_pass(model, ids, targets, dtype, optimizer)]
    first = sum(passes[0])
    # The first pass also pays for plans and fresh memory. It counts only when there is no time for
    # another one, or none is asked for.
    more = spec["repeats"] > 0
    warmed_up = more and time.perf_counter() - begin + first <= spec["budget"]
    if warmed_up:
        passes = []
        while len(passes) < spec["repeats"]:
            passes.append(_pass(model, ids, targets, dtype, optimizer))
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
        "peak_bytes": peak_memory(device),
        "loaded_bytes": loaded,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str]) -> int:
    """Read a specification, measure, and write the result or the error."""
    from megabase.training.process import keep_freed_memory

    spec_file, result_file, ready_file = map(Path, arguments)
    spec = json.loads(spec_file.read_text())
    if spec.get("keep_freed", True):
        keep_freed_memory()  # as training does
    try:
        result = measure(spec, ready_file.touch)
    except (BenchError, ImportError) as error:
        result = {"error": str(error), "kind": "unsupported"}
    except (MemoryError, torch.OutOfMemoryError) as error:
        result = {"error": str(error) or "out of memory", "kind": "memory"}
    except RuntimeError as error:
        # torch's CPU allocator raises a plain RuntimeError.
        memory = "alloc" in str(error) or "memory" in str(error)
        result = {"error": str(error), "kind": "memory" if memory else "failed"}
    temporary = result_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    os.replace(temporary, result_file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

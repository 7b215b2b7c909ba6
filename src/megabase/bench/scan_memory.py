"""Peak memory of one selective scan, in a process of its own.

Run as ``python -m megabase.bench.scan_memory`` with the arguments of :func:`measure` as JSON;
prints the result as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megabase.bench.config import BenchError

__all__ = ["ALONG", "in_child", "make", "measure"]

ALONG = ("u_BLE", "delta_BLE", "B_BLN", "C_BLN", "z_BLE")
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
        "u_BLE": draw(batch, length, channels),
        "delta_BLE": draw(batch, length, channels),
        "A_EN": -rates.clone(),
        "B_BLN": draw(batch, length, states),
        "C_BLN": draw(batch, length, states),
        "D_E": torch.ones(channels, dtype=dtype),
        "z_BLE": draw(batch, length, channels),
        "delta_bias_E": torch.full((channels,), -4.0, dtype=dtype),
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
    from megabase.ops.selective_scan import selective_scan

    def run(length: int) -> dict[str, Any]:
        given = make(1, length, channels, states, torch.float32, grad=backward)
        y, _ = selective_scan(**given)
        if backward:
            torch.autograd.grad(y, list(given.values()), torch.ones_like(y))
        return given

    with backends.override(backend):
        run(300)
        before = _status("VmRSS")
        given = run(length)
    stored = sum(given[name].nbytes for name in ALONG) + given["u_BLE"].nbytes
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
    command = [sys.executable, "-m", "megabase.bench.scan_memory", json.dumps(arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BenchError(f"the measurement of memory failed: {lines[-1]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(*json.loads(sys.argv[1]))))

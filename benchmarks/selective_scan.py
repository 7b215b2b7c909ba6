"""The blocked selective scan against the sequential one: speed, peak memory, training throughput.

    python benchmarks/selective_scan.py
    python benchmarks/selective_scan.py --memory-length 131072 --throughput --json result.json

The two implementations are timed forward and backward in turns, so that both meet the same weather;
the ratio is that of their medians. Before anything is timed, values and all gradients are compared
in float64, and nothing is reported when they differ. Peak memory is that of a process of its own,
over what it had before it made the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megabase import __version__
from megabase.ops.selective_scan import selective_scan_blocked, selective_scan_reference

TOLERANCE = 1e-10
_ALONG = ("u_BLE", "delta_BLE", "B_BLN", "C_BLN", "z_BLE")


def make(
    batch: int, length: int, channels: int, states: int, dtype: torch.dtype, grad: bool = True
) -> dict[str, Tensor]:
    """Draw inputs of the size that a Mamba mixer gives to the scan when it starts to learn."""
    torch.manual_seed(0)
    rates = torch.arange(1, states + 1, dtype=dtype).expand(channels, states)
    arguments = {
        "u_BLE": torch.randn(batch, length, channels, dtype=dtype),
        "delta_BLE": torch.randn(batch, length, channels, dtype=dtype),
        "A_EN": -rates.clone(),
        "B_BLN": torch.randn(batch, length, states, dtype=dtype),
        "C_BLN": torch.randn(batch, length, states, dtype=dtype),
        "D_E": torch.ones(channels, dtype=dtype),
        "z_BLE": torch.randn(batch, length, channels, dtype=dtype),
        "delta_bias_E": torch.full((channels,), -4.0, dtype=dtype),
    }
    return {name: tensor.requires_grad_(grad) for name, tensor in arguments.items()}


def gradients(scan: Any, arguments: dict[str, Tensor], dy: Tensor) -> list[Tensor]:
    """Give the output, the last state and every gradient."""
    y, state = scan(**arguments)
    return [y, state, *torch.autograd.grad(y, list(arguments.values()), dy)]


def largest_difference(length: int, channels: int, states: int) -> float:
    """Compare both in float64, relative to the largest value of a tensor where that is above 1."""
    arguments = make(2, length, channels, states, torch.float64)
    dy = torch.randn_like(arguments["u_BLE"])
    pair = [gradients(s, arguments, dy) for s in (selective_scan_reference, selective_scan_blocked)]
    return max(
        float((one - other).detach().abs().max() / one.detach().abs().max().clamp(min=1))
        for one, other in zip(*pair, strict=True)
    )


def time_in_turns(arguments: dict[str, Tensor], repeats: int, inner: int) -> dict[str, float]:
    """Milliseconds forward and backward, medians over turns."""
    dy = torch.randn_like(arguments["u_BLE"])
    scans = {"reference": (selective_scan_reference, 1), "blocked": (selective_scan_blocked, inner)}
    times: dict[str, list[float]] = {name: [] for name in scans}
    for turn in range(repeats + 1):
        for name, (scan, count) in scans.items():
            for _ in range(count):
                begin = time.perf_counter()
                gradients(scan, arguments, dy)
                if turn:  # the first turn warms up
                    times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_memory(length: int, channels: int, states: int, backward: bool) -> dict[str, float]:
    """Peak memory of this process over what inputs, outputs and their gradients take."""
    torch.set_num_threads(1)
    small = make(1, 300, channels, states, torch.float32)
    gradients(selective_scan_blocked, small, torch.randn_like(small["u_BLE"]))
    before = _status("VmRSS")
    arguments = make(1, length, channels, states, torch.float32, grad=backward)
    stored = sum(arguments[name].nbytes for name in _ALONG) + arguments["u_BLE"].nbytes
    if backward:
        stored *= 2
        dy = torch.ones_like(arguments["u_BLE"])
        gradients(selective_scan_blocked, arguments, dy)
    else:
        selective_scan_blocked(**arguments)
    peak = _status("VmHWM") - before
    return {"stored_bytes": stored, "peak_bytes": peak, "ratio": peak / stored}


def memory_in_child(length: int, channels: int, states: int, backward: bool) -> dict[str, float]:
    """Run :func:`measure_memory` in a process of its own."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import selective_scan as s; "
        "print(json.dumps(s.measure_memory(*json.loads(sys.argv[2]))))"
    )
    arguments = json.dumps([length, channels, states, backward])
    command = [sys.executable, "-c", code, str(Path(__file__).parent), arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def throughput(batch: int, length: int, repeats: int) -> dict[str, float]:
    """Tokens per second of forward and backward of the published small models; medians."""
    from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
    from megabase.models.mamba import MambaConfig, MambaForCausalLM

    models = {
        "mamba d128 n4": MambaForCausalLM(MambaConfig()),
        "caduceus-ph d118 n4": CaduceusForMaskedLM(CaduceusConfig()),
        "caduceus-ps d118 n4": CaduceusForMaskedLM(CaduceusConfig(rcps=True)),
    }
    ids = torch.randint(7, 11, (batch, length))
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            model(ids, labels=ids).loss.backward()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: batch * length / statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=256, help="inner channels (d_inner)")
    parser.add_argument("--states", type=int, default=16, help="states per channel (d_state)")
    parser.add_argument("--repeats", type=int, default=5, help="turns, after one to warm up")
    parser.add_argument("--inner", type=int, default=5, help="blocked runs per turn")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--memory-length", type=int, default=0, help="measure peak memory here")
    parser.add_argument("--throughput", action="store_true", help="time small models as well")
    parser.add_argument("--model-batch", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    lengths = (1, 63, min(options.length, 1000))
    worst = max(largest_difference(n, 8, options.states) for n in lengths)
    if worst > TOLERANCE:
        print(f"the two scans differ by {worst:.3g} in float64; nothing is reported")
        return 1
    results: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "shape": [options.batch, options.length, options.channels, options.states],
        "float64_difference": worst,
    }
    shape = (options.batch, options.length, options.channels, options.states)
    times = time_in_turns(make(*shape, torch.float32), options.repeats, options.inner)
    results["milliseconds"] = times
    results["ratio"] = times["reference"] / times["blocked"]
    print(f"values and gradients agree in float64 within {worst:.2g}")
    print(f"batch, length, channels, states: {shape}; {results['threads']} threads")
    for name, value in times.items():
        print(f"{name:>10}: {value:9.1f} ms forward and backward (median)")
    print(f"{'ratio':>10}: {results['ratio']:9.1f}")
    if options.memory_length:
        rows = results["memory"] = {}
        for name, backward in (("forward", False), ("forward and backward", True)):
            row = memory_in_child(options.memory_length, options.channels, options.states, backward)
            rows[name] = row
            print(
                f"memory at {options.memory_length:,}, {name}: peak {row['peak_bytes'] / 1e6:,.0f} "
                f"MB, {row['ratio']:.2f} times inputs and outputs"
                + (" and their gradients" if backward else "")
            )
    if options.throughput:
        results["tokens_per_second"] = throughput(options.model_batch, options.length, 5)
        for name, value in results["tokens_per_second"].items():
            print(f"{name}: {value:,.0f} tokens/s, batch {options.model_batch} x {options.length}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Memory and time of one sequence on several processes: ``python -m benchmarks.context_parallel``.

Each process is started anew with one thread. Of each the largest resident memory is given, above
what it has after imports and before there is a model; a row of one process computes the same
without sharing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import time
from typing import Any

_RESULT = "result: "
"""Begins the line on which a process tells what it measured."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--task", choices=("train", "evaluate"), default="train",
        help="a forward and backward pass, or a forward pass")  # fmt: skip
    add("--length", type=int, default=262_144, help="positions of the sequence")
    add("--processes", type=int, nargs="+", default=[1, 4], help="rows of the table")
    add("--family", choices=("hyenadna", "gpt", "mamba", "caduceus"), default="hyenadna")
    add("--layers", type=int, default=2)
    add("--width", type=int, default=128)
    add("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        print(_RESULT + json.dumps(_measure(options)), flush=True)
        return 0
    rows: dict[int, list[dict[str, Any]]] = {}
    for size in options.processes:
        rows[size] = _start(size)
        first = rows[size][0]
        largest = max(row["above_idle_mb"] for row in rows[size])
        whole = rows.get(1)
        share = f"{largest / whole[0]['above_idle_mb']:.3f} of one" if whole else ""
        print(
            f"{options.task} 1 x {options.length:,}, {options.family} {options.layers} x "
            f"{options.width}, {size} process(es): {largest:,.0f} MB above {first['idle_mb']:,.0f} "
            f"in each, {share}; {first['seconds']:.1f} s; loss {first['loss']:.6f}"
        )
    print(json.dumps(rows))
    return 0


def _start(size: int) -> list[dict[str, Any]]:
    """Run the command again in `size` processes; give what each measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.context_parallel", *sys.argv[1:],
             "--rank", str(rank)],
            env={**os.environ, **shared, "RANK": str(rank), "WORLD_SIZE": str(size)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    found = []
    for process in started:
        text = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"a process ended with status {process.returncode}")
        lines = [line for line in text.splitlines() if line.startswith(_RESULT)]
        found.append(json.loads(lines[-1].removeprefix(_RESULT)))
    return found


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from megabase.models.adapt.build import build_language_model
    from megabase.objectives.language import CausalLM, MaskedLM
    from megabase.parallel import context_parallel
    from megabase.settings import ModelConfig
    from megabase.training.process import MAPPED_PARTS, keep_freed_memory

    size = int(os.environ["WORLD_SIZE"])
    _ = keep_freed_memory() if size == 1 else keep_freed_memory(MAPPED_PARTS)  # as a run does
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = dist.init_device_mesh("cpu", (1, size), mesh_dim_names=("dp", "cp"))["cp"]
    torch.manual_seed(0)
    small = ModelConfig(family=options.family, d_model=16, n_layer=1)
    name = "masked_lm" if options.family == "caduceus" else "causal_lm"
    build_language_model(small, 64, name)(input_ids=torch.full((1, 64), 7))  # loads the rest
    idle = _resident_mb()
    shape = ModelConfig(family=options.family, d_model=options.width, n_layer=options.layers)
    model = build_language_model(shape, options.length, name).eval()
    objective: Any = MaskedLM() if name == "masked_lm" else CausalLM()
    if size > 1:
        objective.part = context_parallel(model, mesh).part
    codes = torch.randint(0, 4, (1, options.length + objective.extra_bases), dtype=torch.uint8)
    batch = {"codes": codes, "reverse": torch.zeros(1, dtype=torch.bool),
             "mask_seed": torch.ones(1, dtype=torch.int64)}  # fmt: skip
    dist.barrier()
    begin = time.perf_counter()
    with torch.set_grad_enabled(options.task == "train"):
        found = objective(model, batch)
        if options.task == "train":
            (found.loss_sum / options.length).backward()
    sums = torch.stack([found.loss_sum.detach(), found.count]).double()
    dist.all_reduce(sums)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    dist.destroy_process_group()
    return {
        "idle_mb": idle, "above_idle_mb": peak - idle, "seconds": seconds,
        "loss": float(sums[0] / sums[1]),
    }  # fmt: skip


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    raise SystemExit(main())

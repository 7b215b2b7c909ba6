"""Memory and time of one sequence that several processes share, beside one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from benchmarks.harness import BenchError, OtherWork, Say, proc_bytes, record
from megabase.models.adapt.build import build_language_model
from megabase.objectives.language import CausalLM, MaskedLM
from megabase.parallel import context_parallel
from megabase.settings import ModelConfig, Settings
from megabase.training.process import MAPPED_PARTS, keep_freed_memory

_RESULT = "result: "
"""Begins the line on which a process tells what it measured."""


@dataclass(frozen=True, kw_only=True)
class SharingConfig(Settings):
    """Memory and time of one sequence that several processes share.

    Each process is started anew, with one thread. Its memory is the largest resident one above what
    it has after imports and before there is a model.
    """

    task: Literal["train", "evaluate"] = "train"
    """A forward and backward pass, or a forward pass."""
    model: Literal["hyenadna", "gpt", "mamba", "caduceus"] = "hyenadna"
    """Family."""
    length: int = 262_144
    """Positions of the sequence."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    processes: tuple[int, ...] = (1, 4)
    """Processes of each row; one does not share."""


def run_sharing(config: SharingConfig, say: Say) -> dict[str, Any]:
    """Measure the rows; one that shares is compared with one process where that was measured."""
    others, rows = OtherWork(), []
    for size in config.processes:
        found = _start(config, size)
        row = {**found[0], "processes": size}
        row["above_idle"] = max(one["above_idle"] for one in found)
        rows.append(row)
        alone = next((one["above_idle"] for one in rows if one["processes"] == 1), None)
        share = f" ({row['above_idle'] / alone:.3f} of one process)" if alone else ""
        say(
            f"{config.task} 1 x {config.length:,}, {config.model} {config.layers} x "
            f"{config.width}, {size} process(es): {row['above_idle'] / 1e6:,.0f} MB above "
            f"{row['idle'] / 1e6:,.0f} in each{share}; {row['seconds']:.1f} s; "
            f"loss {row['loss']:.6f}"
        )
    return record("context-parallel", config, others, rows=rows)


def _start(config: SharingConfig, size: int) -> list[dict[str, Any]]:
    """Measure in `size` processes; give what each found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size)}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.context_parallel", json.dumps(asdict(config))]
    started = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    found = []
    for process in started:
        lines = [ln for ln in process.communicate()[0].splitlines() if ln.startswith(_RESULT)]
        if process.returncode or not lines:
            raise BenchError(f"a process of {size} ended with status {process.returncode}")
        found.append(json.loads(lines[-1].removeprefix(_RESULT)))
    return found


def _measure(config: SharingConfig) -> dict[str, Any]:
    """Measure in this process of a group."""
    size = int(os.environ["WORLD_SIZE"])
    _ = keep_freed_memory() if size == 1 else keep_freed_memory(MAPPED_PARTS)  # as a run does
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    name = "masked_lm" if config.model == "caduceus" else "causal_lm"
    small = ModelConfig(family=config.model, d_model=16, n_layer=1)
    build_language_model(small, 64, name)(input_ids=torch.full((1, 64), 7))  # loads the rest
    idle = proc_bytes("VmRSS")
    shape = ModelConfig(family=config.model, d_model=config.width, n_layer=config.layers)
    model = build_language_model(shape, config.length, name).eval()
    objective: Any = MaskedLM() if name == "masked_lm" else CausalLM()
    if size > 1:
        objective.part = context_parallel(model, dist.group.WORLD).part
    codes = torch.randint(0, 4, (1, config.length + objective.extra_bases), dtype=torch.uint8)
    batch = {"codes": codes, "reverse": torch.zeros(1, dtype=torch.bool),
             "mask_seed": torch.ones(1, dtype=torch.int64)}  # fmt: skip
    dist.barrier()
    begin = time.perf_counter()
    with torch.set_grad_enabled(config.task == "train"):
        found = objective(model, batch)
        if config.task == "train":
            (found.loss_sum / config.length).backward()
    sums = torch.stack([found.loss_sum.detach(), found.count]).double()
    dist.all_reduce(sums)
    seconds = time.perf_counter() - begin
    dist.destroy_process_group()
    return {
        "idle": idle, "above_idle": proc_bytes("VmHWM") - idle, "seconds": seconds,
        "loss": float(sums[0] / sums[1]),
    }  # fmt: skip


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(_RESULT + json.dumps(_measure(SharingConfig(**given))), flush=True)

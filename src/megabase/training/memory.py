"""How much memory a run needs, by a simple formula, and how much there is.

The formula, in bytes, for P parameters, width D, N layers, V logit columns and micro-batches of B
sequences of L positions:

=================  ==============================================================================
weights            4 P
gradients          4 P
optimizer          8 P (two running means)
activations        general: B L (N k D s + 12 V), s = 4 bytes (2 with bf16-mixed, for the share of
                   it that is kept in half precision), k the values kept per position, layer and
                   unit of width: :data:`KEPT`; with activation checkpointing N k becomes N + k
FFT workspace      general: :data:`FFT_COPIES` x 4 B D F, F = 2 L: padded inputs, spectra and
                   outputs of one long convolution, forward or backward
process            :data:`PROCESS` for the interpreter and libraries (on a CPU)
=================  ==============================================================================

HyenaDNA of order 2 works piece by piece and keeps only the running sums and the filters. There
activations are ``4 D (B L (2 N + 2) + L (N + 1)) + 24 V B L`` (with activation checkpointing N
+ 5 and 2 in the place of 2 N + 2 and N + 1): two running sums and the filter of each layer, but
for what the last mixer has given back already; gradients around it; the filter's gradient. The
kernels keep the long convolution's result of each layer too where it is small
(:data:`KEEP_BYTES`): N more, 1 with activation checkpointing. In
stretches of S checkpointed layers N / S + S - 1 inputs are alive instead of N. The workspace is two
arrays of a group of channels, ``8 B L min(D, max(64, 2^25 / B L))``, and ten of a call of the
transforms, ``40 max(2^20, min(16 L, max(4 L, 2^22)))``.

Peaks against estimates are measured by ``python -m benchmarks memory``.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = [
    "FFT_COPIES",
    "FUSED_GROUP",
    "KEEP_BYTES",
    "KEPT",
    "PROCESS",
    "Estimate",
    "available_bytes",
    "estimate",
    "resident_mb",
]

KEPT = 22
"""Values kept for the backward pass per position, layer and unit of width."""

FFT_COPIES = 6
"""Arrays of the padded size alive at once in the long convolution."""

KEEP_BYTES = 1 << 27
"""Size of a layer's long convolution up to which the kernels keep its result, as they have it."""

FUSED_GROUP = 64
"""Channels of a group in the mixer at the longest inputs."""

PROCESS = 700_000_000
"""Bytes of a process before it trains: interpreter, torch, transformers."""


@dataclass(frozen=True)
class Estimate:
    """Memory of one process, in bytes."""

    parameters: int
    """Weights."""
    gradients: int
    """Gradients."""
    optimizer: int
    """Running means of AdamW."""
    activations: int
    """Kept from forward to backward."""
    workspace: int
    """Of the operator at work."""
    process: int
    """The process itself."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return (
            self.parameters + self.gradients + self.optimizer + self.activations
            + self.workspace + self.process
        )  # fmt: skip


def estimate(
    *,
    parameters: int,
    layers: int,
    width: int,
    columns: int,
    micro_batch: int,
    length: int,
    half: bool = False,
    checkpointing: bool = False,
    stretch: int = 1,
    shards: int = 1,
    on_cpu: bool = True,
    fused: bool = False,
) -> Estimate:
    """Estimate the memory of one process at its largest stage.

    Parameters
    ----------
    parameters
        Trainable numbers in the model.
    layers, width, columns
        Depth, width and logit columns.
    micro_batch, length
        Sequences per forward pass and input positions of each.
    half
        Whether matrix products run in bfloat16.
    checkpointing
        Whether activations are recomputed.
    stretch
        Layers in a row that keep one input between them.
    shards
        Devices that share parameters, gradients and optimizer state (FSDP), else 1.
    on_cpu
        Whether the process itself lies in the same memory.
    fused
        Whether the model works piece by piece (HyenaDNA of order 2) and keeps only running sums.

    Returns
    -------
    Estimate
        Bytes by part.
    """
    positions = micro_batch * length
    inputs = -(-layers // stretch) + stretch - 1
    kept = inputs + KEPT if checkpointing else layers * KEPT
    size = 3 if half else 4  # about half of the kept values stay float32
    share = 4 * parameters // shards
    activations = positions * (kept * width * size + 12 * columns)
    workspace = FFT_COPIES * 4 * positions * width * 2
    if fused:
        sums, filters = (inputs + 5, 2) if checkpointing else (2 * layers + 2, layers + 1)
        if 4 * positions * width <= KEEP_BYTES:
            sums += 1 if checkpointing else layers
        activations = 4 * width * (positions * sums + length * filters) + 24 * columns * positions
        group = min(width, max(FUSED_GROUP, (1 << 25) // max(1, positions)))
        transforms = max(1 << 20, min(16 * length, max(4 * length, 1 << 22)))
        workspace = 8 * positions * group + 40 * min(transforms, positions * width)
    return Estimate(
        parameters=share,
        gradients=share,
        optimizer=2 * share,
        activations=activations,
        workspace=workspace,
        process=PROCESS if on_cpu else 0,
    )


def available_bytes(device: torch.device) -> int:
    """Bytes that may still be used on a device; for the CPU the smallest of all known limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), *_control_groups()]
    return min((value for value in found if value is not None), default=sys.maxsize)


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import os

        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _control_groups() -> list[int | None]:
    """Room under the memory limits of the control groups (containers, SLURM) of this process."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rooms: list[int | None] = []
    for line in groups:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / name.lstrip("/")
        # Every ancestor may set a limit; inside a container the path may not exist at all.
        for place in (folder, *folder.parents):
            if place == root.parent:
                break
            rooms.append(_room(place / limit, place / usage))
    return rooms


def _room(limit: Path, usage: Path) -> int | None:
    try:
        text = limit.read_text().strip()
        return None if text == "max" else max(0, int(text) - int(usage.read_text()))
    except (OSError, ValueError):
        return None


def resident_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the process on a CPU, of the allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6

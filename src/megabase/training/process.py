"""The process that trains: its devices, its allocator, and the signals that stop it.

Torch and Lightning Fabric are imported when devices are set up, so a command can catch signals
before either is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from megabase.errors import ConfigError
from megabase.settings import DeviceConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh


_PRECISION = {
    "fp32": "32-true", "tf32": "32-true", "bf16-mixed": "bf16-mixed", "bf16-true": "bf16-true",
    "fp16-mixed": "16-mixed",
}  # fmt: skip
"""Fabric's names."""
_CUDA_ONLY = ("tf32", "fp16-mixed")
"""Precisions of NVIDIA's and AMD's GPUs; elsewhere Fabric would quietly take another one."""
# mallopt's numbers, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_MALLOPT = ((_TRIM_THRESHOLD, -1), (_TOP_PAD, 16 << 20))
"""-1 is read as the largest size, so the heap is never trimmed; growing it by 16 MB keeps system
calls rare."""
_MAPPED = 32 << 20  # the largest mapping threshold that every version of glibc takes
MAPPED_PARTS = 2 << 20
"""Mapping threshold where processes share sequences to save memory: each works on small blocks, and
their gaps on the heap would take as much as what is used."""


def build_fabric(devices: DeviceConfig, precision: str) -> Fabric:
    """Build Fabric, for the caller to launch; a ConfigError when the machine lacks the devices."""
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    if devices.threads is not None:
        torch.set_num_threads(devices.threads)
    # Fabric announces its choices through warnings and info lines; the run's own plan shows them.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    number: Any = devices.devices
    if number == "auto" and not torch.cuda.is_available():
        number = 1
    strategy: Any = devices.strategy
    if strategy == "ddp":
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    elif strategy == "fsdp":
        strategy = ModelParallelStrategy(partial(_shard, replicas=devices.replicas))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fabric = Fabric(
                accelerator=devices.accelerator,
                devices=number,
                num_nodes=devices.nodes,
                strategy=strategy,
                precision=_PRECISION[precision],  # pyright: ignore[reportArgumentType]
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"devices cannot be set up (accelerator {devices.accelerator}, devices "
            f"{devices.devices}, strategy {devices.strategy}): {reason}"
        ) from error
    kind = fabric.device.type
    if precision in _CUDA_ONLY and kind != "cuda":
        raise ConfigError(
            f"precision is {precision}, which is for CUDA devices, and the device is {kind}; "
            "choose fp32 or bf16-mixed"
        )
    if precision != "fp32" and kind == "mps":
        raise ConfigError(f"precision is {precision}; on mps models train in fp32 only")
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    return fabric


def _shard(model: nn.Module, mesh: DeviceMesh, replicas: int) -> nn.Module:
    """Share parameters, gradients and optimizer state out (FSDP2), a block at a time."""
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world, kind = mesh.size(), mesh.device_type
    if world % replicas:
        raise ConfigError(
            f"devices.replicas is {replicas} and there are {world} processes; give a number that "
            "divides them"
        )
    first = 0 if replicas > 1 else 1  # without groups there is one axis
    shape, names = (replicas, world // replicas)[first:], ("replicate", "shard")[first:]
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    model.to(torch.device(kind) if kind == "cpu" else torch.accelerator.current_accelerator())
    # In every family the blocks are in a list; of lists within lists the inner ones come first.
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for blocks in reversed(lists) for block in blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def keep_freed_memory(mapped: int = _MAPPED) -> bool:
    """Make glibc's allocator keep freed blocks; call it once, before the first large tensor.

    By default glibc returns every large block to the system, which maps and clears its pages anew
    in each step: as expensive as the arithmetic. Blocks of `mapped` bytes and more are still mapped
    on their own: on the heap they would leave gaps that smaller blocks fill, so that a step needs
    twice the memory. False where the C library is not glibc, or ``GLIBC_TUNABLES``, which wins, is
    set.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    taken = [mallopt(name, value) == 1 for name, value in ((_MMAP_THRESHOLD, mapped), *_MALLOPT)]
    return all(taken)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; its notes (``add_note``) tell the user how to resume."""

    @classmethod
    def stop(cls, number: int, frame: FrameType | None) -> None:
        """Raise it: a handler for :func:`handling`."""
        raise cls


@contextlib.contextmanager
def handling(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int
) -> Iterator[None]:
    """Let `handler` take signals; outside the main thread, where none can be caught, do nothing."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list that the loop looks at after each step, to save and end.

    A second SIGINT interrupts at once. Outside the main thread none is caught.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    with handling(note, signal.SIGTERM, signal.SIGINT):
        yield received

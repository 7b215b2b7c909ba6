"""The memory that a process may still use."""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available_bytes(device: "torch.device") -> int:
    """Bytes that may still be used on a device; for the CPU the smallest of all known limits."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), *_control_groups()]
    return min((value for value in found if value is not None), default=sys.maxsize)


def _meminfo() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
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

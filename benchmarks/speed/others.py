"""Work of other programs while something is measured."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

__all__ = ["DISTURBED", "OtherWork", "disturbed"]

DISTURBED = 0.25
"""Cores kept busy by others from which times are said to be disturbed."""


def disturbed(cores: float | None) -> bool:
    """Whether times are too long because of what others did."""
    return cores is not None and cores > DISTURBED


# user, nice, system, irq, softirq, and what the host took away (steal), in /proc/stat.
_BUSY = (0, 1, 2, 5, 6, 7)


def _all_busy() -> float | None:
    """Give the seconds that all cores together were busy since the system began, or None."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        return sum(int(fields[i]) for i in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _own() -> float:
    """Give the processor seconds of this process and of those it began that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


class OtherWork:
    """Watches, from when it is made on, how busy other programs keep the machine.

    The average load of a system is no help: a measurement raises it itself.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic(), _all_busy(), _own()

    def cores(self) -> float | None:
        """Give the cores that others kept busy on average; None where the system does not say.

        Processes that the measurement began must have ended.
        """
        began, busy, own = self._begin
        now = _all_busy()
        elapsed = time.monotonic() - began
        if busy is None or now is None or elapsed <= 0:
            return None
        return max(0.0, (now - busy - (_own() - own)) / elapsed)

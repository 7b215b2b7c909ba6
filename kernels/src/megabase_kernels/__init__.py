"""Fast CPU operators for megabase, in C++ with vector instructions chosen at run time.

The functions of :mod:`megabase_kernels._megabase_kernels` are for :mod:`megabase.ops`, which makes
the outputs. They take arrays by the DLPack protocol and check rank, size, dtype, device and
contiguity of each. Nothing here needs torch.
"""

from __future__ import annotations

import os
import time

from megabase_kernels import _megabase_kernels as native

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "INSTRUCTION_SETS",
    "INTERFACE",
    "MAX_LAYERS",
    "MAX_TAPS",
    "__version__",
    "exponentials_seconds",
    "instruction_set",
    "native",
    "parallel_runtime",
    "runnable_sets",
    "use",
]

__version__ = "0.1.0"

INTERFACE = 6
"""Number of the functions' arguments and meaning; megabase asks for the one it was written for."""

MAX_TAPS = 8
"""Most taps of the causal convolution."""

MAX_LAYERS = 8
"""Most layers of sines of the implicit filter."""

INSTRUCTION_SETS = ("amx", "avx512bf16", "avx512", "avx2", "portable")
"""What the kernels are compiled for, fastest first."""

ENVIRONMENT_VARIABLE = "MEGABASE_KERNELS_ISA"
"""Names an instruction set to use in place of the fastest one that runs here."""


def instruction_set() -> str:
    """Name the instruction set in use."""
    return native.instruction_set()


def runnable_sets() -> tuple[str, ...]:
    """Name the instruction sets that run on this processor, fastest first."""
    return tuple(name for name in INSTRUCTION_SETS if native.runs_here(name))


def use(name: str) -> None:
    """Use the named instruction set from now on, in the whole process.

    Raises
    ------
    ValueError
        When it does not run here.
    """
    native.use(name)


def parallel_runtime() -> str:
    """Name where threads come from: ``openmp`` (torch's own) or ``threads``."""
    return native.parallel_runtime()


def exponentials_seconds(
    batch: int, length: int, channels: int, states: int, threads: int = 1, double: bool = False
) -> float:
    """Measure how long the exponentials of one selective scan take, and nothing else.

    The vectorised loop computes ``exp(step * rate)`` for every position, channel and state, from
    inputs in the cache, and adds the results up.

    Returns
    -------
    float
        Seconds on the wall clock.
    """
    blocks = batch * -(-channels // native.lanes(double))
    begin = time.perf_counter()
    native.exponentials(double, blocks, length, states, threads)
    return time.perf_counter() - begin


if _wanted := os.environ.get(ENVIRONMENT_VARIABLE):
    use(_wanted)

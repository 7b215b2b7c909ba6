"""Operators in Triton, for accelerators: whether they can run, and what starts their kernels.

Nothing here imports the library ``triton``; the modules beside this one do, when they are needed.
Their kernels take contiguous tensors of float16, bfloat16 or float32 and compute in float32.
Block sizes stand in tables: nothing is tuned while a model runs.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from megabase.errors import OperatorError

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of tensors that the kernels take; others are left to the fast path."""
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Whether kernels run as numpy on the CPU, as Triton decides when it is imported."""
_OLDEST = "3.4"  # what the extra asks for: before, other things interpret and compile kernels


def _lacking() -> str | None:
    how = "(pip install 'megabase[triton]', on Linux)"
    if importlib.util.find_spec("triton") is None:
        return f"triton is not installed {how}"
    with suppress(importlib.metadata.PackageNotFoundError):  # torch for ROCm names it otherwise
        found = importlib.metadata.version("triton")
        if Version(found) < Version(_OLDEST):
            return f"triton {found} is older than {_OLDEST} {how}"
    return None


_why = _lacking()
# What a launch on fake tensors shows to counters of operations: one call that touches its tensors.
_library = torch.library.Library("megabase_triton", "DEF")
_library.define("launch(str kernel, Tensor[] reads, Tensor[] writes) -> ()")
_library.impl("launch", lambda *_: None, "CompositeExplicitAutograd")


def why_missing() -> str | None:
    """Say why there is no Triton; None when it is there."""
    return _why


def launch(
    kernel: Any, grid: tuple[int, ...], reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | tuple[Tensor, ...] | None], *numbers: float, warps: int = 4,
    **constants: Any,
) -> None:  # fmt: skip
    """Start a kernel, whose arguments are what it reads, what it writes, numbers and constants.

    On fake tensors nothing runs: ``torch.ops.megabase_triton.launch`` is called with its name and
    tensors, once, so that a dispatch mode can count it. OperatorError for tensors on a CPU, unless
    Triton interprets its kernels (``TRITON_INTERPRET=1``).
    """
    some = [[t for t in pytree.tree_leaves(list(g)) if t is not None] for g in (reads, writes)]
    if any(isinstance(t, FakeTensor) for t in some[1]):
        torch.ops.megabase_triton.launch(kernel.__name__, *some)
        return
    device = some[1][0].device
    if device.type == "cpu" and not _INTERPRETED:
        raise OperatorError(
            f"{kernel.__name__.lstrip('_')}: the backend 'triton' was asked for, which runs on an "
            "accelerator, and found tensors on the CPU; move the model, leave out "
            "MEGABASE_BACKEND=triton, or set TRITON_INTERPRET=1 to try kernels on small inputs"
        )
    if 0 in grid:
        return
    arguments = [  # complex numbers as pairs, the only way kernels take them
        torch.view_as_real(t) if isinstance(t, Tensor) and t.is_complex() else t
        for t in (*reads, *writes)
    ]
    # Triton launches on the device that is current, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, *numbers, num_warps=warps, enable_fp_fusion=True, **constants)


def blocks(count: int, size: int) -> int:
    """Give the programs that take `size` each of `count`."""
    return -(-count // size)


def power(size: int, least: int = 1) -> int:
    """Give the power of two of at least `size` and `least`."""
    return max(least, 1 << max(0, size - 1).bit_length())

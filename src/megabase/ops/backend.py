"""Which implementation of the operators runs: a name in :data:`BACKENDS`.

The best that is there, unless the environment variable ``MEGABASE_BACKEND`` or :func:`override`
names one. ``kernels`` and ``fast`` cut the work by the caches of a CPU, and where an operator has
no kernel the fast path runs. On an accelerator ``plain`` runs in place of both: whole tensors, few
launches, nothing that a compiler cannot see through. ``triton``, for accelerators, runs where it is
asked for, and where an operator has no kernel of it the plain path. ``reference`` are the
definitions. An unknown name, or kernels that are asked for and missing, are errors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megabase.errors import OperatorError
from megabase.ops import kernels, triton

BACKENDS = ("kernels", "fast", "plain", "triton", "reference")
"""Names that can be asked for."""
ENVIRONMENT_VARIABLE = "MEGABASE_BACKEND"
"""Environment variable read when no :func:`override` is in force."""
_overrides: list[str] = []  # a list, because compilers can read one; the last entry is in force


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise OperatorError(
            f"{where}: expected one of {', '.join(BACKENDS)}, found {name!r}; "
            "choose one of them, or leave it out for the best that is there"
        )
    library = {"kernels": kernels, "triton": triton}.get(name)
    if library is not None and (why := library.why_missing()) is not None:
        raise OperatorError(f"{where}: {name} was asked for, but {why}")
    return name


def active() -> str:
    """Name the implementation that operators use now."""
    if _overrides:
        return _overrides[-1]
    if asked := os.environ.get(ENVIRONMENT_VARIABLE):
        return _checked(asked, ENVIRONMENT_VARIABLE)
    return "kernels" if kernels.verified() else "fast"


def _on_accelerator(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on a device where launches and memory cost, and caches do not help."""
    return tensor.device.type not in ("cpu", "meta")


def use_plain(tensor: torch.Tensor, in_triton: bool = True) -> bool:
    """Whether whole tensors are worked on at once by functions of torch alone.

    `in_triton` says whether the operator has kernels in Triton, for dtypes of 32 bits at most.
    """
    name = active()
    if name == "triton" and in_triton and tensor.dtype in triton.DTYPES:
        return False
    return name == "plain" or (name != "reference" and _on_accelerator(tensor))


def use_kernels(*tensors: torch.Tensor | None) -> bool:
    """Whether an operator that has a kernel runs it for these inputs: only on CPUs."""
    return active() == "kernels" and all(t is None or t.device.type == "cpu" for t in tensors)


def use_triton(*tensors: torch.Tensor | None) -> bool:
    """Whether an operator that has kernels in Triton runs them for these inputs."""
    return active() == "triton" and all(t is None or t.dtype in triton.DTYPES for t in tensors)


def fixed_steps() -> bool:
    """Whether steps of generation are the same operations everywhere, as a CUDA graph needs them.

    They are where an implementation for accelerators is asked for by name.
    """
    return active() in ("plain", "triton")


@contextmanager
def override(name: str) -> Iterator[None]:
    """Use the implementation `name`, one of :data:`BACKENDS`, inside a ``with`` block."""
    _overrides.append(_checked(name, "backend.override"))
    try:
        yield
    finally:
        _overrides.pop()

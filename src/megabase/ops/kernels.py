"""The optional distribution ``megabase-kernels``: whether it is there, and fits."""

import contextlib
import hashlib
import importlib
import os
import platform
import warnings
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from megabase.errors import OperatorError
from megabase.memory import available_bytes

_Maybe = TypeVar("_Maybe", Tensor, Tensor | None)
INTERFACE = 6
"""Interface of ``megabase-kernels`` that this version calls."""
KEEP_BYTES = 1 << 27
"""Size of an input up to which a backward pass reads what the forward pass computed (four times the
input of each operator) in place of computing it again. For longer ones memory counts for more."""
KEEP_ROOM = 64
"""Inputs there must be memory left for, so that what several layers keep does not fill it."""
_KEEP_ALWAYS = 1 << 20
"""Size of an input that nobody has to measure the memory for: that takes 0.1 ms."""

_SAME = 2e-4  # difference allowed, relative to the largest number: sums are formed in another order


def keeps(x: Tensor) -> bool:
    """Whether what a kernel computes of an input is worth its memory until the backward pass.

    Values and gradients are the same either way.
    """
    size = x.numel() * x.element_size()
    if size <= _KEEP_ALWAYS or size > KEEP_BYTES or torch.compiler.is_compiling():
        return size <= KEEP_BYTES
    return size * KEEP_ROOM <= available_bytes(x.device)


def _find() -> tuple[ModuleType | None, str | None]:
    try:
        found = importlib.import_module("megabase_kernels")
    except ImportError as error:
        if error.name == "megabase_kernels":
            return None, "megabase-kernels is not installed (pip install ./kernels)"
        return None, f"megabase-kernels cannot be loaded ({error}); build it again"
    except ValueError as error:  # an instruction set that does not run here
        raise OperatorError(f"MEGABASE_KERNELS_ISA: {error}") from None
    has = getattr(found, "INTERFACE", None)
    if has != INTERFACE:
        return None, (
            f"megabase-kernels has interface {has}, this version needs {INTERFACE}; "
            "install the kernels that come with it (pip install ./kernels)"
        )
    return found, None


_package, _why = _find()
_asked = False  # whether this process knows that they compute the definitions, or do not


def package() -> Any:
    """Give the module ``megabase_kernels``, or None when there is none that fits."""
    return _package


@torch.compiler.assume_constant_result
def verified() -> bool:
    """Whether there are kernels, and they compute the definitions on this processor.

    Compared at the first use on a machine; that they do is remembered in the cache folder. Where
    they do not there are none from then on, which a warning says.
    """
    global _package, _why, _asked
    if _package is None or _asked:
        return _package is not None
    _asked = True
    mark = _mark(_package)
    if not os.path.exists(mark):
        found: list[str] = []
        # A thread of its own knows nothing of autocast, dispatch modes and transformations here.
        thread = Thread(target=lambda: found.append(_differs()))
        thread.start()
        thread.join()
        if found == [""]:
            with contextlib.suppress(OSError):  # no home: compared again by the next process
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
        else:
            _why = (
                f"megabase-kernels ({_package.instruction_set()}) does not compute the definitions "
                f"on this processor ({''.join(found) or 'it fails'}); build it here "
                "(pip install --force-reinstall --no-deps ./kernels)"
            )
            _package = None
            warnings.warn(f"{_why}; the backend fast runs in its place", stacklevel=2)
    return _package is not None


def _mark(found: Any) -> Path:
    """Give the file that says that this build computes the definitions on this processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.version()
    built = os.stat(found.native.__file__)
    key = (
        found.__version__, found.instruction_set(), built.st_size, built.st_mtime_ns,
        torch.__version__, platform.machine(), flags,
    )  # fmt: skip
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return Path(home, "megabase", f"kernels-{name}")


def _differs() -> str:
    """Compare every operator, forward and backward, with its definition: name what differs."""
    from megabase.ops import backend
    from megabase.ops.causal_conv import causal_conv
    from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
    from megabase.ops.implicit_filter import FilterWeights, implicit_filter
    from megabase.ops.norm_mlp import MlpWeights, norm_mlp
    from megabase.ops.selective_scan import ScanInputs, selective_scan

    L, D = 37, 24  # no multiples of the widest vectors
    x, d, dd = (2, L, D), (D,), (D, D)
    cases: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
        "causal_conv": (causal_conv, [x, (D, 4), d, (2, 3, D)]),
        "selective_scan": (
            lambda u, s, A, *rest: selective_scan(ScanInputs(u, s, -A.exp(), *rest))[0],
            [x, x, (D, 5), (2, L, 5), (2, L, 5), d, x, d, (2, D, 5)],
        ),
        "norm_mlp": (
            lambda x, w, b, up, c, down, d: norm_mlp(x, MlpWeights(w, b, 1e-5, up, c, down, d)),
            [x, d, d, (50, D), (50,), (D, 50), d],
        ),
        "hyena_mixer": (
            lambda x, w, b, *rest: hyena_mixer(x, MixerWeights(w, b, 1e-5, *rest)),
            [x, d, d, (3 * D, D), (3 * D,), (3 * D, 3), (3 * D,), (D, L), d, dd, d],
        ),
        "implicit_filter": (
            lambda z, t, f, v, w, b, c, out, rates: implicit_filter(
                z, t, FilterWeights(f, [v, w], [b, c], out, rates, 0.1)
            ),
            [(L, 5), (L,), (1, D), (D, 5), dd, d, d, dd, d],
        ),
    }
    draw = torch.Generator().manual_seed(0)
    for name, (function, shapes) in cases.items():
        drawn = [torch.randn(s, generator=draw, dtype=torch.float32, device="cpu") for s in shapes]
        inputs = [(0.3 * one).requires_grad_() for one in drawn]
        results: list[list[Tensor | None]] = []
        for which in ("reference", "kernels"):
            with backend.override(which):
                y = function(*inputs)
                grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)
                results.append([y.detach(), *grads])
        for right, computed in zip(*results, strict=True):
            if right is None or computed is None:  # a time or a feature: no gradient is asked of it
                continue
            worst = float((right - computed).abs().max() / right.abs().max().clamp(1e-3))
            if not worst <= _SAME:
                return f"{name} differs by {worst:.0e}"
    return ""


def native() -> Any:
    """Give the functions in C++; OperatorError when there is no package that fits."""
    if _package is None:
        raise OperatorError(f"this operator exists in C++ only, but {_why}")
    return _package.native


def why_missing() -> str | None:
    """Say why there are no kernels; None when there are."""
    return _why


def slower_than_possible(model: nn.Module, device: torch.device) -> str | None:
    """Say in one line how much faster a long run of a model would be with kernels, or None.

    Classes of modules that gain by kernels say so in ``without_kernels``.
    """
    if _why is None or device.type != "cpu":
        return None
    gains = (getattr(module, "without_kernels", None) for module in model.modules())
    gain = next((text for text in gains if text is not None), None)
    return None if gain is None else f"{gain}: {_why}"


def array(tensor: Tensor | None) -> Any:
    """Give a tensor as the kernels take it: with its address, shape, strides and dtype."""
    return None if tensor is None else torch._C._to_dlpack(tensor)


def beside(tensor: _Maybe) -> _Maybe:
    """Give a tensor whose last axis lies side by side: the same one where it does already."""
    if tensor is None:
        return tensor
    tensor = tensor.resolve_neg()
    lies = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return tensor if lies else tensor.contiguous()


def dense(tensor: _Maybe) -> _Maybe:
    """Give a tensor without gaps: the same one where it has none."""
    return tensor if tensor is None else tensor.resolve_neg().contiguous()


def alike(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether `dtype` is one that the kernels compute in, and that of all the tensors."""
    return dtype in (torch.float32, torch.float64) and all(
        t is None or t.dtype == dtype for t in tensors
    )


def multiplies(product: torch.dtype | None, weight: Tensor) -> bool:
    """Whether the kernels compute products of `weight` in the dtype `product`.

    Of bfloat16 where the processor has it, over float32 weights of an even width.
    """
    if product is None or product == weight.dtype:
        return True
    even = weight.dtype == torch.float32 and all(size % 2 == 0 for size in weight.shape)
    return product == torch.bfloat16 and even and package().native.half_products()

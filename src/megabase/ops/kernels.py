"""The optional distribution ``megabase-kernels``: whether it is there, and fits."""

from __future__ import annotations

import importlib
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
    has = getattr(found, "INTERFACE", None)
    if has != INTERFACE:
        return None, (
            f"megabase-kernels has interface {has}, this version needs {INTERFACE}; "
            "install the kernels that come with it (pip install ./kernels)"
        )
    return found, None


_package, _why = _find()


def package() -> Any:
    """Give the module ``megabase_kernels``, or None when there is none that fits."""
    return _package


def native_package() -> Any:
    """Give the module ``megabase_kernels``; OperatorError when there is none that fits."""
    if _package is None:
        raise OperatorError(f"this operator exists in C++ only, but {_why}")
    return _package


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
    if tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()


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
    return (
        product == torch.bfloat16
        and weight.dtype == torch.float32
        and weight.shape[-1] % 2 == 0
        and weight.shape[0] % 2 == 0
        and package().native.half_products()
    )

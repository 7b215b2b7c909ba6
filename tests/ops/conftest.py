"""Unwritten memory is full of NaN here, so that reading it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.ops import backend, kernels


def _poisoned(make: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():  # torch itself makes empty leaves
                tensor.fill_(float("nan"))
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for holder, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(holder, name, _poisoned(getattr(holder, name)))


@contextmanager
def _running(instructions: str) -> Iterator[None]:
    package = kernels.package()
    if package is None:
        pytest.skip(f"no kernels: {kernels.why_missing()}")
    if instructions not in package.runnable_sets():
        pytest.skip(f"this processor does not run {instructions}")
    before = package.instruction_set()
    package.use(instructions)
    yield
    package.use(before)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def each_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test on the kernels of every instruction set that runs."""
    with _running(request.param):
        yield


@pytest.fixture(params=["plain", "fast", "amx", "avx512bf16", "avx512", "avx2", "portable"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on the paths in torch, and on the kernels of every instruction set that runs."""
    if request.param in ("plain", "fast"):
        with backend.override(request.param):
            yield request.param
        return
    with _running(request.param), backend.override("kernels"):
        yield request.param

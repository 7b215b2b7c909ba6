"""Unwritten memory is full of NaN here, so that reading it shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def _poisoned(make: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for holder, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(holder, name, _poisoned(getattr(holder, name)))

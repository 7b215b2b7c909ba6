"""The scan of whole tensors is the sequential one: values, every gradient, states, in parts too."""

from __future__ import annotations

import pytest
import torch
from test_selective_scan import OPTIONS, make
from torch import Tensor

from megabase.ops import backend, whole_scan
from megabase.ops.selective_scan import ScanInputs, selective_scan


def _both(arguments: dict[str, Tensor], reverse: bool, softplus: bool = True) -> list[list[Tensor]]:
    """Give output, state and every gradient, of the plain path and of the definition."""
    found = []
    for name in ("plain", "reference"):
        with backend.override(name):
            y, state = selective_scan(ScanInputs(**arguments), softplus=softplus, reverse=reverse)
        loss = (y * torch.cos(y.detach())).sum() + (state**2).sum()
        found.append([y, state, *torch.autograd.grad(loss, list(arguments.values()))])
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 17, 31, 32, 33, 100])
def test_values_and_gradients(length: int, reverse: bool) -> None:
    torch.testing.assert_close(*_both(make(3, length, 5, 4), reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("states", [40, 13 * 40, 1])
def test_in_parts(states: int, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_scan, "_STATES", states)
    for options in (OPTIONS, ()):
        torch.testing.assert_close(*_both(make(2, 29, 5, 4, options=options), reverse))


def test_without_softplus() -> None:
    arguments = make(2, 40, 3, 2, options=())
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    torch.testing.assert_close(*_both(arguments, False, softplus=False))


def test_decays_that_vanish_are_zero() -> None:
    arguments = make(1, 64, 3, 2, dtype=torch.float32)
    arguments["A"] = torch.full((3, 2), -1e4, requires_grad=True)
    ours, want = _both(arguments, False)
    assert all(t.isfinite().all() for t in ours)
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)

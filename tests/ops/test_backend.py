"""What runs can be asked for by name, and a wrong name is an error."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megabase.errors import OperatorError
from megabase.layers.hyena import HyenaOperator
from megabase.layers.mamba import MambaMixer
from megabase.ops import backend, kernels
from megabase.ops.kernels import slower_than_possible


def test_the_best_there_is_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ENVIRONMENT_VARIABLE, raising=False)
    assert backend.active() == ("fast" if kernels.package() is None else "kernels")
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "reference")
    assert backend.active() == "reference"
    with backend.override("fast"):
        assert backend.active() == "fast"
    assert backend.active() == "reference"


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(
        OperatorError, match=r"MEGABASE_BACKEND.*kernels, fast, plain, triton, reference.*'cuda'"
    ):
        backend.active()
    with (
        pytest.raises(OperatorError, match="expected one of"),
        backend.override("cuda"),
    ):
        pass


def test_an_accelerator_has_the_plain_path_unless_the_definitions_are_asked_for() -> None:
    here = torch.empty(1)
    with FakeTensorMode():
        there = torch.empty(1, device="cuda")
    assert not backend.on_accelerator(here)
    assert not backend.on_accelerator(torch.empty(1, device="meta"))
    assert backend.on_accelerator(there)
    for name in ("kernels", "fast") if kernels.package() else ("fast",):
        with backend.override(name):
            assert backend.use_plain(there)
            assert not backend.use_plain(here)
    with backend.override("plain"):
        assert backend.use_plain(here)
    with backend.override("reference"):
        assert not backend.use_plain(there)


def test_missing_kernels_are_said_when_asked_for_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_package", None)
    monkeypatch.setattr(kernels, "_why", "megabase-kernels is not installed (how to)")
    monkeypatch.delenv(backend.ENVIRONMENT_VARIABLE, raising=False)
    assert backend.active() == "fast"
    with pytest.raises(OperatorError, match="not installed"), backend.override("kernels"):
        pass
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "kernels")
    with pytest.raises(OperatorError, match=r"MEGABASE_BACKEND: .*not installed"):
        backend.active()


def test_kernels_of_another_interface_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("megabase_kernels")
    other.INTERFACE = kernels.INTERFACE + 1  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "megabase_kernels", other)
    found, why = kernels._find()
    assert found is None
    assert why is not None
    assert f"needs {kernels.INTERFACE}" in why


def test_without_the_distribution_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megabase_kernels", None)
    assert kernels._find()[0] is None


def test_a_long_run_says_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    mixer = torch.nn.Sequential(MambaMixer(8))
    monkeypatch.setattr(kernels, "_why", "megabase-kernels is not installed (how to)")
    hint = slower_than_possible(mixer, cpu)
    assert hint is not None
    assert "not installed" in hint
    assert slower_than_possible(mixer, other) is None
    assert slower_than_possible(torch.nn.Linear(2, 2), cpu) is None
    assert "Hyena" in str(slower_than_possible(HyenaOperator(4, 8), cpu))
    monkeypatch.setattr(kernels, "_why", None)
    assert slower_than_possible(mixer, cpu) is None

"""What runs can be asked for by name, and a wrong name is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megabase.errors import OperatorError
from megabase.layers.hyena import HyenaOperator
from megabase.layers.mamba import MambaMixer
from megabase.ops import backend, kernels, whole_scan
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
    assert not backend._on_accelerator(here)
    assert not backend._on_accelerator(torch.empty(1, device="meta"))
    assert backend._on_accelerator(there)
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


needs_kernels = pytest.mark.skipif(kernels.package() is None, reason=kernels.why_missing() or "")


@pytest.fixture
def _unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a process on a machine that has never used the kernels."""
    monkeypatch.delenv(backend.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("_asked", False), ("_package", kernels._package), ("_why", None)):
        monkeypatch.setattr(kernels, name, value)


@needs_kernels
@pytest.mark.usefixtures("_unasked")
def test_kernels_are_compared_with_the_definitions_once_on_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):  # where no number can be seen
        assert backend.active() == "kernels"
    (mark,) = (tmp_path / "megabase").iterdir()
    assert mark.name.startswith("kernels-")
    monkeypatch.setattr(kernels, "_asked", False)
    monkeypatch.setattr(kernels, "_differs", lambda: "asked again")
    assert backend.active() == "kernels"
    monkeypatch.setattr(kernels, "_asked", False)
    monkeypatch.setattr(kernels.platform, "machine", lambda: "another processor")
    with pytest.warns(UserWarning, match="asked again"):
        assert backend.active() == "fast"


@needs_kernels
@pytest.mark.usefixtures("_unasked")
def test_kernels_that_compute_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = whole_scan._stepwise_scan
    monkeypatch.setattr(
        whole_scan, "_stepwise_scan", lambda *x, **k: tuple(1.01 * y for y in right(*x, **k))
    )
    with pytest.warns(UserWarning, match=r"selective_scan differs .* build it here .* fast runs"):
        assert backend.active() == "fast"
    assert backend.active() == "fast"  # said once
    assert kernels.package() is None
    assert "does not compute the definitions" in str(kernels.why_missing())
    assert not list(tmp_path.iterdir())  # the next process looks again


@needs_kernels
def test_the_portable_kernels_compute_the_definitions_where_nothing_else_runs(
    tmp_path: Path,
) -> None:
    code = (
        "from megabase.ops import backend, kernels; assert backend.active() == 'kernels'; "
        "print(kernels.package().instruction_set(), repr(kernels._differs()))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for wanted, said in (("portable", "portable ''"), ("mmx", "MEGABASE_KERNELS_ISA: ")):
        environment["MEGABASE_KERNELS_ISA"] = wanted
        call = [sys.executable, "-c", code]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        assert said in done.stdout + done.stderr


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

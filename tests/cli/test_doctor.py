"""What is wrong with an installation is told, with the command that repairs it."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import torch

from megabase.cli.main import main
from megabase.ops import long_conv


def test_a_whole_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "wrong" not in shown
    assert shown.rstrip().endswith("megabase works here")
    for name in ("HyenaDNA, plain", "Mamba, fast", "Caduceus, fast"):
        assert f"ok       {name}" in shown


def test_a_package_that_is_missing_or_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "pybigtools":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "pybigtools not installed; pip install 'megabase[tracks]'" in shown
    assert "1.0; pip install 'torch" in shown
    assert "to repair: torch" in shown


def test_a_copy_that_is_not_installed_is_checked_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "not installed, only on the path" in shown
    assert "ok       Caduceus, plain" in shown


def test_an_operator_that_computes_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = long_conv._long_conv_reference

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        return right(*args, **kwargs) * 1.01

    monkeypatch.setattr(long_conv, "_long_conv_reference", wrong)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "wrong    HyenaDNA, fast" in shown
    assert "MEGABASE_BACKEND=reference" in shown
    assert "ok       Mamba, fast" in shown

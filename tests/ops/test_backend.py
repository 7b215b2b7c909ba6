"""What runs can be asked for by name, and a wrong name is an error."""

from __future__ import annotations

import pytest

from megabase.ops import backend


def test_fast_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.ENVIRONMENT_VARIABLE, raising=False)
    assert backend.active() == "fast"
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "reference")
    assert backend.active() == "reference"
    with backend.override("fast"):
        assert backend.active() == "fast"
    assert backend.active() == "reference"


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(backend.BackendError, match=r"MEGABASE_BACKEND.*fast, reference.*'triton'"):
        backend.active()
    with (
        pytest.raises(backend.BackendError, match="expected one of"),
        backend.override("cuda"),
    ):
        pass

"""What a run says about where it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megabase.training import run_folder as provenance


def test_versions_and_machine_without_anything_personal() -> None:
    found = provenance.environment()
    assert found["packages"]["torch"]
    assert found["cores"] >= 1
    assert set(found) == {
        "megabase", "packages", "python", "platform", "processor", "cores", "threads", "devices",
        "git", "command",
    }  # fmt: skip
    json.dumps(found)


def test_a_resumed_run_adds_its_environment(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    provenance._record_environment(path, resumed=True)
    assert "resumed" not in json.loads(path.read_text())
    provenance._record_environment(path, resumed=True)
    provenance._record_environment(path, resumed=True)
    assert len(json.loads(path.read_text())["resumed"]) == 2
    provenance._record_environment(path, resumed=False)
    assert "resumed" not in json.loads(path.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_outside_a_checkout_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._git(tmp_path) is None

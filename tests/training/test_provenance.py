"""What a run says about where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megabase.settings import RunConfig
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
    def start(*, resume: bool) -> dict[str, Any]:
        config = RunConfig(output=str(tmp_path), resume=resume)
        provenance._start_run(config, "a: 1\n", {})
        return json.loads((tmp_path / "environment.json").read_text())

    assert "resumed" not in start(resume=True)
    start(resume=True)
    assert len(start(resume=True)["resumed"]) == 2
    assert "resumed" not in start(resume=False)


def test_outside_a_checkout_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._git(tmp_path) is None

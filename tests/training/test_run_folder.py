"""The folder of a run is never overwritten by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from megabase.errors import RunError
from megabase.settings import TrainConfig
from megabase.training.run_folder import RunFolder, _changed_settings, _start_run, check_run


def config(path: Path, **fields: bool) -> TrainConfig:
    return TrainConfig(output=str(path), steps=1, **fields)


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    run = tmp_path / "a" / "b"
    assert check_run(config(run), "x: 1\n") == []
    assert not run.exists()
    _start_run(config(run), "x: 1\n", {})
    assert (run / "config.yaml").read_text() == "x: 1\n"


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    _start_run(config(tmp_path), "x: 1\n", {})
    with pytest.raises(RunError, match=r"exists and is not empty.*resume=True.*overwrite=True"):
        check_run(config(tmp_path), "x: 1\n")


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _start_run(config(run), "x: 1\n", {})
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run / "last").symlink_to("checkpoints/step-00000001")
    (run / "metrics.jsonl").write_text("old")
    check_run(config(run, overwrite=True), "x: 2\n")
    _start_run(config(run, overwrite=True), "x: 2\n", {})
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml", "data.json", "environment.json"
    ]  # fmt: skip
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        check_run(config(run, overwrite=True), "x: 2\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match=r"no config\.yaml"):
        check_run(config(other, overwrite=True), "x: 2\n")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        check_run(config(tmp_path / "file"), "")


def test_resume_needs_a_run_of_the_same_settings(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        check_run(config(tmp_path, resume=True), "seed: 1\n")
    _start_run(config(tmp_path), "seed: 1\nsteps: 5\nkeep: 2\ndata: {genome: a}\n", {})
    same = "seed: 1\nsteps: 9\nkeep: 3\ndata: {genome: a}\n"
    assert check_run(config(tmp_path, resume=True), same) == ["steps: 5 then, 9 now"]
    with pytest.raises(RunError, match=r"data\.genome: 'a' then, 'b' now.*seed: 1 then, 2 now"):
        check_run(config(tmp_path, resume=True), "seed: 2\nsteps: 5\ndata: {genome: b}\n")


def test_changes_name_the_field() -> None:
    assert _changed_settings("a: {b: 1}\n", "a: {b: 2, c: 3}\n") == {
        "a.b": "a.b: 1 then, 2 now",
        "a.c": "a.c: None then, 3 now",
    }


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b"- 1\n", b"a: &a [*a]\n", b"5\n"])
def test_a_damaged_record_of_settings_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(RunError, match=r"config\.yaml"):
        RunFolder(tmp_path).finished_result("a: 1\n", dict)

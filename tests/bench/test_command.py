"""The command: its help, a result written once, and bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from benchmarks.__main__ import MEASUREMENTS, main


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_every_measurement_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert "--overwrite" in said
    for field in dataclasses.fields(MEASUREMENTS[name][0]):
        assert f"--{field.name}" in said


def test_a_bad_setting_ends_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = main(["runtime", "-o", str(tmp_path / "x"), "--checkpointing", "maybe"])
    assert status == 2
    assert "checkpointing is one of both, on, off" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_result_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "load.json"
    options = ["--bases", "20000", "--length", "50", "--repeats", "1", "-o", str(out)]
    assert main(["load", *options]) == 0
    found = json.loads(out.read_text())
    assert (found["kind"], found["config"]["length"]) == ("load", 50)
    assert main(["load", *options]) == 2
    assert "--overwrite" in capsys.readouterr().err

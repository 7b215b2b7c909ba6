from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from megabase.cli.main import main


def small(table: Path, *more: str) -> list[str]:
    return [
        "icl", "default", "--train", str(table), "--test", str(table),
        "--devices.accelerator", "cpu", "--output", str(table.parent / "run"), *more,
    ]  # fmt: skip


def test_several_numbers_of_shots(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(table, "--sweep", "{shots: [0, 2]}")) == 0
    shown = capsys.readouterr()
    assert "nothing is trained" in shown.err
    assert "test_accuracy" in shown.out
    runs = pl.read_parquet(table.parent / "run" / "results.parquet")
    assert runs["shots"].to_list() == [0, 2]
    recipe = str(table.parent / "run" / "shots-2" / "config.yaml")
    again = str(table.parent / "2")
    assert main(["icl", "default", "--config", recipe, "--output", again]) == 0
    found = json.loads((table.parent / "2" / "result.json").read_text())
    assert found["test"]["loss"] == runs["test_loss"][1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shots", "99"], "take shots of at most"),
        (["--tune", "some"], "tune"),
        (["--shot", "3"], "did you mean '--shots'"),
        (["--sweep", "{samples: [2, 4]}"], "for --tune prompt or --tune all"),
    ],
)
def test_bad_input_is_one_line(
    table: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(table, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (table.parent / "run").exists()

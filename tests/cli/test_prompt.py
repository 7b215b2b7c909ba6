from __future__ import annotations

import json
from pathlib import Path

import pytest

from megabase.cli.main import main


def small(table: Path, *more: str) -> list[str]:
    return [
        "prompt", "default", "--train", str(table), "--test", str(table), "--steps", "2",
        "--devices.accelerator", "cpu", "--output", str(table.parent / "run"), *more,
    ]  # fmt: skip


def test_a_sweep_of_lengths(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = ("--sweep", "{prompt.length: [0, 2]}")
    assert main(small(table, *several)) == 0
    shown = capsys.readouterr()
    assert "nothing to train" in shown.err
    assert "all frozen, from default" in shown.err
    assert "test_accuracy" in shown.out
    run = table.parent / "run"
    results = [run / f"prompt.length-{length}" / "result.json" for length in (0, 2)]
    runs = [json.loads(result.read_text()) for result in results]
    assert [one["length"] for one in runs] == [0, 2]
    assert [one["trained_parameters"] for one in runs] == [0, 2 * 192]
    assert (run / "prompt.length-2" / "prompt" / "prompt.safetensors").is_file()
    assert main(small(table, *several, "--resume")) == 0
    assert [json.loads(result.read_text()) for result in results] == runs


def test_a_picture_of_a_region(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = table.parent
    (folder / "g.fa").write_text(f">one\n{'ACGTTGCA' * 8}\n>two\n{'ACGTTGCA' * 8}\n")
    (folder / "x.bed").write_text("one\t8\t40\ntwo\t16\t30\n")
    assert main(["genome", "build", str(folder / "g.fa"), "-o", str(folder / "g.mb")]) == 0
    command = [
        "prompt", "default", "--train", str(folder / "g.mb"), "--genome.features",
        f"[{folder / 'x.bed'}]", "--genome.length", "16", "--genome.test", "[two]", "--steps", "1",
        "--prompt.answer", "head", "--global-batch", "2", "--devices.accelerator", "cpu",
        "--sweep", "{prompt.length: [0, 1]}", "--output", str(folder / "run"),
        "--picture", "two:9-40",
    ]  # fmt: skip
    assert main(command) == 2
    assert "--picture needs --predictions" in capsys.readouterr().err
    assert main([*command, "--predictions"]) == 0
    shown = capsys.readouterr().err
    for name in ("prompt.length-0", "prompt.length-1"):
        picture = folder / "run" / name / "picture.png"
        assert f"wrote {picture}" in shown
        assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_recipe_of_a_run(table: Path) -> None:
    assert main(small(table, "--prompt.answer", "head", "--prompt.length", "1")) == 0
    recipe = str(table.parent / "run" / "config.yaml")
    again = str(table.parent / "2")
    assert main(["prompt", "default", "--config", recipe, "--output", again]) == 0
    first, second = (
        json.loads((table.parent / name / "result.json").read_text()) for name in ("run", "2")
    )
    assert first["test"] == second["test"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt.position", "middle"], "prompt.position"),
        (["--prompt.lenght", "3"], "did you mean '--prompt.length'"),
        (["--prompt.length", "2000"], "leaves no room for a sequence"),
        (["--sweep", "{prompt.length: [-1]}"], "must be at least 0"),
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

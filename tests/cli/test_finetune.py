from __future__ import annotations

import json
from pathlib import Path

import pytest

from megabase.cli.main import main


def small(table: Path, *more: str) -> list[str]:
    shape = '{"d_model": 8, "n_layer": 1, "filter_order": 4}'
    return [
        "finetune", "--train", str(table), "--test", str(table), "--family", "hyenadna",
        "--overrides", shape, "--steps", "2", "--global-batch", "4",
        "--devices.accelerator", "cpu", "--output", str(table.parent / "run"), *more,
    ]  # fmt: skip


def test_one_command(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(table)) == 0
    shown = capsys.readouterr()
    assert "test (20)" in shown.out
    assert "accuracy" in shown.out
    assert "training tokens/s" in shown.out
    assert "chooses the best" in shown.err
    assert "overlap: 18 of 20 test rows are in train (18 equal" in shown.err
    run = table.parent / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 2
    # The saved recipe re-creates the run, and the run is a model to start from.
    recipe = str(run / "config.yaml")
    assert main(["finetune", "--config", recipe, "--output", str(table.parent / "2")]) == 0
    again = json.loads((table.parent / "2" / "result.json").read_text())
    assert again["test"] == result["test"]
    command = ["finetune", str(run), "--train", str(table), "--steps", "1"]
    assert main([*command, "--output", str(table.parent / "3")]) == 0
    # A recipe names its model; one on the command line wins, wherever it stands.
    third = str(table.parent / "3" / "config.yaml")
    for words in (["--config", third], [str(run), "--config", third]):
        assert main(["finetune", *words, "--dry-run", "--output", str(table.parent / "4")]) == 0
    other = ["finetune", "nowhere", "--config", third, "--output", str(table.parent / "4")]
    assert main(other) == 2


def test_several_label_columns(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table.read_text().replace("seq,label", "seq,x").replace("\n", ",1\n")
    table.write_text(text.replace("x,1", "x,y", 1))
    assert main(small(table, "--dry-run", "--table.label", "[x, y]")) == 0
    assert "multi_label: 2 (x 9, y 18)" in capsys.readouterr().err


def test_crops_and_special_tokens_exclude_each_other(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(table, "--head.crop", "0.5")) == 0
    shown = json.loads((table.parent / "run" / "result.json").read_text())
    assert shown["steps"] == 2
    specials = ["--head.crop", "0.5", "--head.special-tokens", "yes", "--dry-run"]
    assert main(small(table, *specials, "--output", str(table.parent / "s"))) == 2
    assert "would lose the special tokens" in capsys.readouterr().err
    assert main(small(table, "--head.crop", "0", "--dry-run")) == 2
    assert "head.crop is 0" in capsys.readouterr().err


def test_seeds(table: Path) -> None:
    assert main(small(table, "--sweep", "{seed: [1, 2]}")) == 0
    summary = (table.parent / "run" / "summary.tsv").read_text().splitlines()
    assert summary[1].startswith("all\t2\t")
    assert (table.parent / "run" / "seed-2" / "result.json").exists()


def test_a_picture_of_a_region(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = table.parent
    (folder / "g.fa").write_text(f">one\n{'ACGTTGCA' * 8}\n>two\n{'ACGTTGCA' * 8}\n")
    (folder / "x.bed").write_text("one\t8\t40\ntwo\t16\t30\n")
    assert main(["genome", "build", str(folder / "g.fa"), "-o", str(folder / "g.mb")]) == 0
    command = [
        "finetune", "--train", str(folder / "g.mb"), "--genome.features", f"[{folder / 'x.bed'}]",
        "--genome.length", "16", "--genome.test", "[two]", "--steps", "1", "--global-batch", "2",
        "--family", "hyenadna", "--overrides", '{"d_model": 8, "n_layer": 1, "filter_order": 4}',
        "--devices.accelerator", "cpu", "--output", str(folder / "run"), "--picture",
    ]  # fmt: skip
    for more, message in (
        (["two:9-40"], "--picture needs --predictions"),
        (["two:9-x", "--predictions"], "two:9-x"),
    ):
        capsys.readouterr()
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
    assert main([*command, "two:9-40", "--predictions"]) == 0
    assert f"wrote {folder / 'run' / 'picture.png'}" in capsys.readouterr().err
    assert (folder / "run" / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_dry_run_writes_nothing(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(table, "--dry-run")) == 0
    assert "2 steps of 4 sequences" in capsys.readouterr().err
    assert not (table.parent / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--table.label", "class"], "has no column 'class'"),
        (["--table.label", "class"], "name the right one (--table.label)"),
        (["--valid", "/nowhere.csv"], "there is no file /nowhere.csv"),
        (["--epoch", "3"], "did you mean '--epochs'"),
        (["--head.poling", "max"], "did you mean '--head.pooling'"),
    ],
)
def test_bad_input_is_one_line(
    table: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(table, *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1

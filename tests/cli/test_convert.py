from __future__ import annotations

from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.models.auto import load_model

NAMING = Path(__file__).parents[1] / "golden" / "hyena_naming"


def test_convert_writes_a_folder_and_says_what_it_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(NAMING / "config.standalone.json")
    arguments = [str(NAMING / "lightning.ckpt"), str(tmp_path / "out"), "--config", config]
    assert main(["convert", *arguments]) == 0
    said = capsys.readouterr().out
    assert "HyenaDNAForCausalLM" in said
    assert "66 tokens" in said
    assert "note: no file says the window shift" in said
    assert main(["convert", *arguments]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", *arguments, "--overwrite", "--window-shift", "0.0"]) == 0
    assert "window shift" not in capsys.readouterr().out
    assert load_model(tmp_path / "out").config.window_shift == 0.0


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nothing.ckpt", "nothing.ckpt: there is no such file"),
        ("text.ckpt", "text.ckpt: is damaged or not a torch checkpoint"),
        ("harm.ckpt", "posix.system"),
        ("empty", "empty: expected weights"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, problem: str
) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "harm.ckpt").write_bytes(b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R.")
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / source), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert problem in captured.err
    assert not (tmp_path / "out").exists()

"""What every verb has: help by name, a file of options, quiet work, completion in a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megabase.cli import streams
from megabase.cli.main import VERBS, main


def test_help_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["help", "score"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: megabase score")
    assert main(["help"]) == 0
    usage = capsys.readouterr().out
    assert all(verb in usage for verb in VERBS)
    assert main(["help", "scroe"]) == 2
    assert "did you mean 'score'" in capsys.readouterr().err


def test_options_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "g.mb"
    (tmp_path / "g.fa").write_text(">a\nACGTN\n")
    (tmp_path / "build.yaml").write_text(f"build:\n  output: {store}\n  name: mine\n")
    config = ["--config", str(tmp_path / "build.yaml")]
    assert main(["genome", *config, "build", str(tmp_path / "g.fa")]) == 0
    assert "mine" in capsys.readouterr().out
    assert store.is_file()
    (tmp_path / "bad.yaml").write_text("nonsense: 3\n")
    assert main(["info", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_lines_of_progress_have_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with streams.show_progress("sequences") as update:
        assert update is not None
        for second in range(100):
            now[0] = float(second)
            update("model", 20 * second, 12_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "megabase: model: 600 of 12,000 sequences, 20 a second, 9 min 30 s left"


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "quiet", True)
    with streams.show_progress("sequences") as update:
        assert update is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["megabase", "sc"], ["score"]),
        (["megabase", "score", "--strand"], ["--strands"]),
        (["megabase", "score", "--strands", ""], ["forward", "reverse", "both"]),
        (["megabase", "genome", ""], ["build", "info", "verify"]),
    ],
)
def test_bash_completes(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    given = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _megabase; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == expected
    assert shown.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)

"""The command: help without torch, and bad input."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.speed.command import main


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from benchmarks.speed.command import main\n"
        "try:\n"
        "    main(['runtime', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "loaded = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max_length" in done.stdout
    assert "extrapolated" in done.stdout


def test_a_bad_setting_ends_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # noqa: ANN001
    status = main(["runtime", "-o", str(tmp_path / "x"), "--checkpointing", "maybe"])
    assert status == 2
    assert "checkpointing is one of both, on, off" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()

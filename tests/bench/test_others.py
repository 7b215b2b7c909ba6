"""What other programs take of the machine is told apart from what the measurement takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import harness
from benchmarks.harness import OtherWork, disturbed

_SPIN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


def _spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _made_up(monkeypatch: pytest.MonkeyPatch, busy: list[float], own: list[float]) -> None:
    monkeypatch.setattr(harness, "_all_busy", lambda: busy.pop(0))
    monkeypatch.setattr(harness, "_own", lambda: own.pop(0))
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))


def test_own_work_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _made_up(monkeypatch, [50.0, 72.0], [5.0, 20.0])
    found = OtherWork().cores()
    assert found == pytest.approx((22.0 - 15.0) / 10.0)
    assert disturbed(found)


def test_a_clock_that_counts_in_steps_gives_nothing_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _made_up(monkeypatch, [50.0, 59.99], [5.0, 15.0])
    assert OtherWork().cores() == 0.0
    assert not disturbed(0.0)


def test_without_the_file_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "Path", lambda name: tmp_path / "missing")
    assert OtherWork().cores() is None
    assert not disturbed(None)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_processes_that_have_ended_count_as_own() -> None:
    before = harness._own()
    _spin(0.1)
    subprocess.run([sys.executable, "-c", _SPIN.format(seconds=0.3)], check=True)
    assert harness._own() - before >= 0.39
    busy = harness._all_busy()
    assert busy is not None
    assert busy > 0

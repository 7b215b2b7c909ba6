"""Freed memory stays in the process: far fewer page faults over repeated large blocks."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from megabase.training.process import keep_freed_memory

CODE = """
import resource, sys
import torch
from megabase.training.process import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    a = torch.full((4_000_000,), 1.0)
    return a + 1
for _ in range(12):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if mode == "leave":  # glibc's own threshold, which otherwise grows with what is freed
        environment["MALLOC_MMAP_THRESHOLD_"] = str(128 << 10)
    done = subprocess.run(
        [sys.executable, "-c", CODE, mode],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_fewer_page_faults() -> None:
    assert faults("keep") * 5 < faults("leave")


def test_the_users_own_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=17179869184")
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()

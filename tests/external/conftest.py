"""Suites of other projects are fetched and read only when slow tests are asked for."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path

import pytest

# Markers that the suite of transformers uses.
_MARKERS = (
    "accelerate_tests", "all_flash_attn_tests", "flash_attn_3_test", "flash_attn_4_test",
    "flash_attn_test", "generate", "is_training_test", "order", "torch_compile_test",
    "torch_export_test",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Make markers of foreign suites known."""
    for name in _MARKERS:
        config.addinivalue_line("markers", f"{name}: of the suite of transformers")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out modules that need a fetched suite, or fetch it before the first of them is read.

    A hook of the whole collection would not be called: this file is read in its midst.
    """
    if not collection_path.name.startswith("test_suite_"):
        return None
    if config.option.markexpr == "not slow":
        return True
    _fetch()
    return None


@functools.cache
def _fetch() -> None:
    """Put the suite of transformers on the path, where there is one."""
    from tests.external import fetch

    # Without it the modules skip themselves with a reason.
    with contextlib.suppress(fetch.FetchError):
        sys.path.append(str(fetch.fetch()))

"""Every recorded case of the published implementations, one test each.

``MEGABASE_GOLDEN`` names the folder of cases (default: ``tests/golden``).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

import kinds
import pytest
from harness import DEFECTS, HANDLERS, Case

for module in pkgutil.iter_modules(kinds.__path__):
    importlib.import_module(f"kinds.{module.name}")

ROOT = Path(os.environ.get("MEGABASE_GOLDEN") or Path(__file__).parents[1] / "golden")
CASES = sorted(path.parent for path in ROOT.glob("*/config.json"))


def test_there_are_cases() -> None:
    assert CASES, f"no recorded cases under {ROOT}"


# Recorded texts hold IUPAC letters, which are read as N with a warning.
@pytest.mark.filterwarnings("ignore::megabase.errors.AmbiguousLettersWarning")
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore:the tokenizer:UserWarning")
def test_golden(path: Path) -> None:
    case = Case.load(path)
    kind = case.config["kind"]
    handler = HANDLERS.get(case.name) or HANDLERS.get(kind)  # one case may have its own
    if handler is None:
        pytest.skip(f"not covered: kind {kind!r}")
    handler(case)
    reason = DEFECTS.get(case.name)
    unchecked = case.unchecked()
    assert not unchecked or reason, f"recorded but never compared: {unchecked}"

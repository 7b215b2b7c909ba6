"""metrics.jsonl, the lines of a plain console, and the bar of a terminal."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from megabase.errors import RunError
from megabase.training.engine import _ratios
from megabase.training.logging import RunLog, perplexity

STEP = {
    "stage": 1, "length": 1024, "loss": 1.25, "perplexity": perplexity(1.25), "lr": 6e-4,
    "tokens_per_second": 12345.6, "memory_mb": 789.0, "grad_norm": math.nan,
}  # fmt: skip


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path, 10, 0, None) as log:
        log.train(1, **STEP)
        log.validation(1, loss=1.0, perplexity=math.e, count=5.0, best=True)
        log.flush()
    with RunLog(path, 10, 1, None) as log:
        log.write("checkpoint", 2, folder="step-00000002")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in found] == [
        ("train", 1), ("validation", 1), ("checkpoint", 2),
    ]  # fmt: skip
    assert found[0]["grad_norm"] is None


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown(terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with RunLog(None, 10, 0, console) as log:
        log.train(1, **STEP)
        log.validation(1, loss=1.0, perplexity=math.e, acgt_perplexity=2.5, count=5.0, best=True)
        log.note("a [note]")
    shown = text.getvalue()
    for part in ("1,024", "1.2500", "3.490", "6.00e-04", "12,346", "ETA", "789 MB", "ACGT 2.5000",
                 "best so far", "a [note]"):  # fmt: skip
        assert part in shown
    assert ("\x1b[" in shown) == terminal


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_named() -> None:
    with (
        pytest.raises(RunError, match=r"/dev/full: No space left.*resume=True"),
        RunLog(Path("/dev/full"), 10, 0, None) as log,
    ):
        log.write("train", 1, loss=1.0)


def test_figures_of_an_objective() -> None:
    sums = {"targets": 4.0, "nll": 4.0, "correct": 1.0, "acgt_targets": 2.0, "acgt_nll": 2.0}
    assert _ratios(sums) == {"accuracy": 0.25, "acgt_perplexity": pytest.approx(math.e)}
    assert _ratios({}) == {}
    assert _ratios({"acgt_nll": 0.0, "acgt_targets": 0.0}) == {}
    assert perplexity(1e6) == math.inf

"""Evaluations side by side: only of the same bases, and with what each model saw."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.errors import InputError
from megabase.evaluate.results import Baseline, EvaluationResult, Measure


def measured(nats: float) -> Measure:
    return Measure(1_000, None, nats, None, 0.01, None, math.exp(nats))


def result(model: str, objective: str, nats: float) -> EvaluationResult:
    baseline = Baseline("order 3", 3, (1.0,), False, measured(1.35), None, 0.1, None)
    return EvaluationResult(
        model=model, objective=objective, genome="toy", genome_checksum="c" * 64,
        regions=("chr1:1-1,000",), region_count=1, region_bases=1_000, window=256, stride=256,
        windows=4, train_overlap=0, skipped=0, overall=measured(nats), by_contig={},
        by_soft_mask={}, context=(), baselines=(baseline,), baseline_bases=10, seconds=1.0,
        version="0", parameters=1_234,
    )  # fmt: skip


def test_each_row_says_what_its_model_saw() -> None:
    text = EvaluationResult.compare([result("left", "causal", 1.3), result("both", "masked", 1.2)])
    left, both, best = text.splitlines()[2:5]
    assert left == (
        "| left | 1,234 | perplexity | bases before it | 1 to 256 | 3.669 +- 0.010 | 1.8755 |"
    )
    assert both.startswith("| both | 1,234 | pseudo-perplexity | bases on both sides | up to 255 |")
    assert best.startswith("| best baseline: order 3 |  | perplexity | bases before it | up to 3 |")
    assert "cannot be ranked" in text
    assert "cannot be ranked" not in EvaluationResult.compare([result("left", "causal", 1.3)])


def test_bases_in_training_are_named() -> None:
    text = EvaluationResult.compare([replace(result("left", "causal", 1.3), train_overlap=7)])
    assert "\nNOT HELD OUT: 7 bases" in text


@pytest.mark.parametrize(("field", "value"), [
    ("genome_checksum", "d" * 64), ("regions", ("chr2:1-1,000",)),
    ("overall", replace(measured(1.2), targets=999)),
])  # fmt: skip
def test_other_bases_are_refused(field: str, value: object) -> None:
    other = replace(result("both", "masked", 1.2), **{field: value})
    with pytest.raises(InputError, match="not measured on the same bases"):
        EvaluationResult.compare([result("left", "causal", 1.3), other])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for name, objective in (("a", "causal"), ("b", "masked")):
        folder = tmp_path / name
        folder.mkdir()
        result(name, objective, 1.3).save(folder / "evaluation.json")
        runs.append(str(folder))
    table = tmp_path / "table.md"
    assert main(["compare", *runs, "-o", str(table)]) == 0
    assert table.read_text() in capsys.readouterr().out
    assert main(["compare", *runs, "-o", str(table)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "c")]) == 2
    assert "megabase evaluate" in capsys.readouterr().err

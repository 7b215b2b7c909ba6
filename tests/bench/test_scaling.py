"""The scaling law is found again in runs that follow it, and says what longer ones come to."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.__main__ import main
from benchmarks.harness import BenchError
from benchmarks.scaling import Point, ScalingConfig, predicted, run_scaling

TRUE = np.array([1.22, 0.01, 0.015])


def made_up(parameters: int, tokens: int) -> Point:
    return Point(
        "", parameters, tokens, float(predicted(TRUE, [Point("", parameters, tokens, 0)])[0])
    )


def test_the_law_is_found_and_says_what_a_longer_run_comes_to(tmp_path: Path) -> None:
    for parameters in (50_000, 250_000, 900_000):
        for tokens in (2_000_000, 6_000_000, 16_000_000):
            point = made_up(parameters, tokens)
            folder = tmp_path / str(parameters) / str(tokens)
            folder.mkdir(parents=True)
            known = {
                "trained_parameters": parameters, "trained_tokens": tokens,
                "valid": {"loss": point.loss},
            }  # fmt: skip
            (folder / "result.json").write_text(json.dumps(known))
    longer = made_up(1_900_000, 90_000_000)
    runs = ",".join(f'"{tmp_path / name}"' for name in ("50000", "250000", "900000"))
    given = f"[[1900000, 90000000, {math.exp(longer.loss)}]]"
    output = tmp_path / "law.json"
    short = {"trained_parameters": 50_000, "trained_tokens": 500_000, "valid": {"loss": 1.36}}
    (tmp_path / "50000" / "500000").mkdir()
    (tmp_path / "50000" / "500000" / "result.json").write_text(json.dumps(short))
    call = ["scaling", "--runs", f"[{runs}]", "--points", given, "-o", str(output)]
    assert main([*call, "--below", "3.6"]) == 0
    found = json.loads(output.read_text())
    assert len(found["runs"]) == 9
    assert [row["tokens"] for row in found["short"]] == [500_000]
    assert found["predictions"][0]["error"] == pytest.approx(0, abs=1e-9)
    assert max(abs(row["left_out_error"]) for row in found["runs"]) < 1e-9
    assert output.with_suffix(".svg").read_text().count("parameters") >= 3


def test_too_few_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no finished run"):
        run_scaling(ScalingConfig(runs=(str(tmp_path),)), print)
    (tmp_path / "result.json").write_text(
        json.dumps({"trained_parameters": 1, "trained_tokens": 1, "valid": {"loss": 1.0}})
    )
    with pytest.raises(BenchError, match="more than 1 runs"):
        run_scaling(ScalingConfig(runs=(str(tmp_path),)), print)
    (tmp_path / "result.json").write_text(json.dumps({"trained_parameters": 1, "valid": {}}))
    with pytest.raises(BenchError, match="expected a run of pretraining with validation"):
        run_scaling(ScalingConfig(runs=(str(tmp_path),)), print)

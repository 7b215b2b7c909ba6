"""The measurement of generation: what it reports, and when it refuses to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import generation
from benchmarks.__main__ import main
from benchmarks.generation import GenerateConfig
from benchmarks.harness import BenchError

SMALL = {"tokens": 96, "width": 16, "layers": 1, "compare_at": 32, "repeats": 2, "positions": 10}


@pytest.mark.parametrize("model", ["hyenadna", "gpt", "mamba"])
def test_every_family_is_measured(model: str) -> None:
    said: list[str] = []
    found = generation.run_generation(GenerateConfig(model=model, **SMALL), said.append)
    assert len(found["runs"]) == 2
    assert found["equality"]["largest_difference"] < 1e-4
    ratio = found["full_pass_seconds"] / found["step_at_compared"]
    assert found["full_pass_to_step"] == pytest.approx(ratio)
    rates = sorted(run["tokens_per_second"] for run in found["runs"])
    assert found["tokens_per_second"] == pytest.approx(sum(rates) / 2)
    assert any("of a full pass" in line for line in said)


def test_wrong_scores_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    make = generation.Decoder

    def wrong(*arguments: object) -> object:
        reader = make(*arguments)  # pyright: ignore
        step = reader.step
        reader.step = lambda ids: step(ids) + 2e-4 * (reader.position == 60)
        return reader

    monkeypatch.setattr(generation, "Decoder", wrong)
    with pytest.raises(BenchError, match="nothing is reported"):
        generation.run_generation(GenerateConfig(**{**SMALL, "positions": 96}), print)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "g.json"
    call = ["generate", "-o", str(file)]
    call += [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    threads = torch.get_num_threads()
    assert main([*call, "--threads", str(threads)]) == 0
    assert "tokens/s over 96 tokens" in capsys.readouterr().out
    assert json.loads(file.read_text())["config"]["width"] == 16
    assert main(["generate", "--compare_at", "8", "--model", "cnn"]) == 2
    said = capsys.readouterr().err
    assert "compare_at must lie" in said
    assert "model is one of" in said

"""Species told by likelihood: made-up genomes, samples that keep to their piece, the interval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import species
from benchmarks.__main__ import main
from benchmarks.harness import build_model
from benchmarks.species import LikelihoodConfig, run_likelihood

from megabase.errors import ConfigError

WINDOW = 64


@pytest.fixture
def genomes(tmp_path: Path) -> dict[str, str]:
    rng, found = np.random.default_rng(0), {}
    for name, gc in (("poor", 0.4), ("rich", 0.6)):
        letters = rng.choice(list("ACGT"), 9_000, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])
        path = tmp_path / f"{name}.fa"
        path.write_text(
            f">{name}1\n{''.join(letters[:5_000])}\n>{name}2\n{''.join(letters[5_000:])}"
        )
        found[name] = str(path)
    return found


def test_genomes_of_another_composition_are_told_apart(
    tmp_path: Path, genomes: dict[str, str]
) -> None:
    build_model("hyenadna", 32, 1, WINDOW + 2).save_pretrained(tmp_path / "start")
    config = LikelihoodConfig(
        runs=str(tmp_path / "runs"), genomes=genomes, start=str(tmp_path / "start"), lr=1e-2,
        tokens=40 * 8 * WINDOW, shared_tokens=8 * WINDOW, batch=8, precision="fp32",
        window=WINDOW, lengths=(WINDOW, 4 * WINDOW), train_bases=40_000, markov_order=2,
        groups={"a": ["poor"], "b": ["rich"]},
    )  # fmt: skip
    said: list[str] = []
    found = run_likelihood(config, said.append)
    assert [one["name"] for one in found["training"]] == ["all species", "poor", "rich"]
    assert found["species"]["poor"]["train"] == 6_300
    assert (found["species"]["poor"]["test"], found["species"]["poor"]["windows"]) == (1_800, 27)
    short, long = found["lengths"]
    for way in species.WAYS:
        # 0.081 nats a base apart: 5 a window, with a standard deviation of 3; 21 of 6 in four
        assert short[way]["accuracy"]["value"] > 0.8
        assert long[way]["accuracy"]["value"] > 0.95
        assert long[way]["groups"] == long[way]["accuracy"]
        assert sum(map(sum, long[way]["answers"])) == long["samples"]
    assert 0.03 < long["model"]["ahead"]["mean"] * np.log(2) < 0.12
    assert any(line.startswith("256 bases") for line in said)

    weights = tmp_path / "runs" / "poor" / "best" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run_likelihood(config, said.append)
    assert again["lengths"] == found["lengths"]
    assert weights.stat().st_mtime_ns == written

    picture = species.save_plot(json.loads(json.dumps(found)), tmp_path / "out.json")
    assert "likelihood" in picture[0].read_text()


def test_windows_that_training_holds_are_told() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (3, WINDOW), dtype=np.uint8)
    parts = {"a": {"train": [np.concatenate([codes[0], codes[1][:40]])]}}
    test = species._Test(codes, np.array([2, 1]))
    share = species._shared(parts, {"a": test})["a"]
    assert share.tolist() == [1.0, pytest.approx(10 / 34), 0.0]
    assert test.only(share <= 0.5).pieces.tolist() == [1, 1]
    assert (test.only(share <= 0.5).windows == codes[1:]).all()


def test_samples_keep_to_their_piece() -> None:
    test = species._Test(np.zeros((9, 2), np.uint8), np.array([4, 1, 4]))
    drawn = test.samples(3, 10)
    assert drawn.first.tolist() == [0, 1, 5, 6]
    assert (drawn.last - drawn.first == 3).all()
    assert drawn.stretch.tolist() == [0, 0, 1, 2]
    assert test.samples(3, 2).first.tolist() == [0, 6]
    assert not len(test.samples(5, 10).first)


def test_the_interval_is_over_stretches() -> None:
    right = [np.array([True] * 50 + [False] * 50)]
    apart = species._interval(right, [np.arange(100)])
    together = species._interval(right, [np.arange(100) // 25])
    assert apart["value"] == together["value"] == 0.5
    assert 0.38 < apart["low"] < 0.42 < 0.58 < apart["high"] < 0.62
    assert (together["low"], together["high"]) == (0.0, 1.0)


def test_settings_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="multiples of the window"):
        LikelihoodConfig(runs="x", lengths=(1_000,))
    with pytest.raises(ConfigError, match="twice"):
        LikelihoodConfig(runs="x", groups={"a": ["x"], "b": ["x", "y"]})
    assert main(["species", "--runs", "x", "--lengths", "[100]"]) == 2
    assert "multiples of the window" in capsys.readouterr().err

"""A sweep is its runs made one by one, and their table; checked first, and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import megabase as mb
from megabase.cli.main import main
from megabase.errors import ConfigError
from megabase.genome.store import Genome
from megabase.tasks.sweep import _combinations, sweep

SHAPE = {"d_model": 8, "n_layer": 1, "overrides": {"filter_order": 8}}


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("genome")
    draw = np.random.default_rng(3)
    with (folder / "toy.fa").open("w") as file:
        for name, length in (("chr1", 3000), ("chr2", 600)):
            file.write(f">{name}\n{''.join(draw.choice(list('ACGT'), length))}\n")
    Genome.build([folder / "toy.fa"], folder / "toy.mb", name="toy")
    return str(folder / "toy.mb")


def settings(genome: str, output: Path, **changes: Any) -> mb.PretrainConfig:
    return mb.PretrainConfig(
        **{
            "data": mb.DataConfig(genome=genome, validation=["chr2"]),
            "model": mb.ModelConfig(**SHAPE), "stages": (mb.Stage(length=32),), "steps": 4,
            "global_batch": 4, "eval_every": 2, "output": str(output),
            "devices": mb.DeviceConfig(accelerator="cpu", threads=1), **changes,
        }
    )  # fmt: skip


def drawn(values: dict[str, Any], draws: int, seed: int = 0) -> list[dict[str, Any]]:
    return list(_combinations(values, draws, seed))


def test_the_table_is_that_of_the_runs_made_one_by_one(genome: str, tmp_path: Path) -> None:
    config = settings(genome, tmp_path / "s")
    values = {"optim.lr": [1e-3, "1e-2"], "model.overrides.num_inner_mlps": [1], "seed": [1, 2]}
    heard: list[str] = []
    table = mb.sweep(config, values, on_record=lambda record: heard.append(record["kind"]))
    assert heard.count("validation") == 8
    assert table.equals(pl.read_parquet(tmp_path / "s" / "results.parquet"))
    assert table["optim.lr"].to_list() == [1e-3, 1e-3, 1e-2, 1e-2]
    assert table["trained_tokens"].to_list() == [4 * 4 * 32] * 4
    row = table.row(3, named=True)
    saved = yaml.safe_load((tmp_path / "s" / row["run"] / "config.yaml").read_text())
    assert saved["model"]["overrides"] == {"filter_order": 8, "num_inner_mlps": 1}
    alone = mb.pretrain(
        replace(
            config, output=str(tmp_path / "alone"), seed=2, optim=mb.OptimConfig(lr=1e-2),
            model=mb.ModelConfig(**{**SHAPE, "overrides": saved["model"]["overrides"]}),
        )
    )  # fmt: skip
    assert alone.metrics == {"loss": row["valid_loss"], "perplexity": row["valid_perplexity"]}
    summary = pl.read_csv(tmp_path / "s" / "summary.tsv", separator="\t")
    pair = table["valid_loss"].to_numpy()[2:]
    assert summary.height == 2
    assert summary["valid_loss"][1] == pytest.approx(pair.mean())
    assert summary["valid_loss_sd"][1] == pytest.approx(pair.std(ddof=1))


def test_draws() -> None:
    grid = {"a": [1, 2, 3], "b": ["x", "y"]}
    assert drawn(grid, 4, seed=7) == drawn(grid, 4, seed=7) != drawn(grid, 4, seed=8)
    assert drawn(grid, 3) == drawn(grid, 5)[:3]  # more of them begin with the same ones
    every = sorted(str(one) for one in _combinations(grid, None, 0))
    assert sorted(map(str, drawn(grid, 6))) == every
    with pytest.raises(ConfigError, match="draws is 7, and there are 6 combinations"):
        drawn(grid, 7)
    rates = [one["r"] for one in drawn({"r": {"low": "1e-4", "high": 1.0, "log": True}}, 400)]
    assert 1e-4 <= min(rates) < 2e-4
    assert 0.35 < np.mean([rate < 1e-2 for rate in rates]) < 0.65  # half of the decades
    counts = [one["n"] for one in drawn({"n": {"low": 1, "high": 3}, "x": list(range(90))}, 200)]
    assert {counts.count(n) > 40 for n in (1, 2, 3)} == {True}


@pytest.mark.parametrize(
    ("values", "draws", "message"),
    [
        ({}, None, "there is no field"),
        ({"optim.lrr": [1e-3]}, None, r"there is no field optim\.lrr; did you mean optim\.lr\?"),
        ({"seed": [1, 2.5]}, None, r"seed cannot be 2\.5"),
        ({"optim.lr": ["fast"]}, None, r"optim\.lr cannot be 'fast'"),
        ({"optim.lr": [1e-3, -1]}, None, r"lr is -1; it must be above 0"),
        ({"optim.lr": 1e-3}, None, r"optim\.lr is 0\.001; expected a list of values"),
        ({"optim.lr": []}, None, r"sweep: optim\.lr has no values; give at least one"),
        ({"optim.lr": []}, 2, r"sweep: optim\.lr has no values"),
        ({"optim.lr": {"low": 1e-4, "high": 1e-2}}, None, "is for draws"),
        ({"optim.lr": {"low": 1e-2, "high": 1e-4}}, 2, "expected low below high"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, 2, "above 0 with log"),
        ({"optim.lr": {"low": 0, "hihg": 1}}, 2, "expected low below high"),
        ({"seed": [1]}, 0, "draws is 0"),
        ({"output": ["a"]}, None, "output is not for values"),
        ({"optim": [{}], "optim.lr": [1]}, None, None),
        ({"stages.length": [32]}, None, "stages"),
        ({"seed": [1], "model.overrides.d_modle": [8]}, None, "d_modle"),
        ({"seed": [1], "data.validation": [["chr9"]]}, None, "^seed-1-.*: .*chr9"),
        (
            {"seed": [1], "stages": [[{"length": 32}], [{"length": 6000}]]},
            None,
            r"^seed-1-stages-.*: .* 6,001 bases",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    values: dict[str, Any], draws: int | None, message: str | None, genome: str, tmp_path: Path
) -> None:
    config = settings(genome, tmp_path / "s")
    if message is None:
        sweep(config, values, draws, dry_run=True)
    else:
        with pytest.raises(mb.MegabaseError, match=message):
            sweep(config, values, draws)
    assert not (tmp_path / "s").exists()


def test_a_run_whose_loss_is_not_finite_is_a_row(genome: str, tmp_path: Path) -> None:
    config = settings(genome, tmp_path / "s", max_non_finite=1)
    done = sweep(config, {"optim.lr": [1e15, 1e-3], "optim.warmup_steps": [0]})
    assert done.table["valid_loss"].is_null().to_list() == [True, False]
    assert "not finite" in done.table["notes"][0]
    assert done.best is done.results[1]


def test_several_kinds_of_values_are_named_apart(genome: str, tmp_path: Path) -> None:
    config = settings(genome, tmp_path / "s", steps=1, eval_every=None)
    long = [[{"length": 32, "steps": 1}], [{"length": 16, "steps": 1}, {"length": 32}]]
    table = sweep(config, {"stages": long, "data.shift": [None]}).table
    assert table["run"].n_unique() == 2
    assert all(len(name) < 100 and "/" not in name for name in table["run"])
    assert '"length": 16' in table["stages"][1]


@pytest.mark.parametrize(
    ("swept", "steps"),
    [
        ("{steps: [2, 3]}", [2, 3]),
        ("{tokens: [256, 512]}", [2, 4]),
        ("{stages: [[{length: 32, steps: 1}], [{length: 16, steps: 2}]]}", [1, 2]),
        ("{steps: {low: 1, high: 2}}", [2, 1]),
    ],
)
def test_what_is_swept_may_give_the_end_of_the_runs(
    swept: str, steps: list[int], genome: str, tmp_path: Path
) -> None:
    output = tmp_path / "s"
    words = [
        "pretrain", "--data.genome", genome, "--data.validation", "[chr2]", "--model.d_model", "8",
        "--model.n_layer", "1", "--model.overrides", "{filter_order: 8}", "--global-batch", "4",
        "--devices.accelerator", "cpu", "--devices.threads", "1", "--quiet", "-o", str(output),
        "--sweep", swept,
    ]  # fmt: skip
    words += [] if "stages" in swept else ["--stages", "[{length: 32}]"]
    words += ["--draws", "2"] if "low" in swept else []
    assert main(words) == 0
    table = pl.read_parquet(output / "results.parquet")
    assert table["trained_steps"].to_list() == steps


@pytest.mark.slow
def test_a_killed_sweep_continues_to_the_same_table(genome: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{genome: {genome}, validation: [chr2]}}\nmodel: {SHAPE}\n"
        "stages: [{length: 32}]\nsteps: 40\nglobal_batch: 4\neval_every: 20\ncheckpoint_every: 5\n"
        "devices: {accelerator: cpu, threads: 1}\noutput: unused\n"
        "sweep: {optim.lr: {low: 1e-4, high: 1e-2, log: true}, seed: [1, 2]}\ndraws: 3\n"
    )
    command = ["pretrain", "--config", str(recipe), "--quiet", "-o"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    whole = pl.read_parquet(tmp_path / "whole" / "results.parquet")
    assert whole.height == 3
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "megabase", *command, str(killed)])
    second = killed / whole["run"][1] / "checkpoints"
    until = time.monotonic() + 120
    while not (second.is_dir() and any(second.iterdir())) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pl.read_parquet(killed / "results.parquet").height == 1
    assert not (killed / whole["run"][2]).exists()
    first = (killed / whole["run"][0] / "result.json").stat().st_mtime_ns
    assert main([*command, str(killed)]) == 2  # taken
    assert main([*command, str(killed), "--resume"]) == 0
    found = pl.read_parquet(killed / "results.parquet")
    assert found.drop("minutes").equals(whole.drop("minutes"))
    assert (killed / whole["run"][0] / "result.json").stat().st_mtime_ns == first
    assert os.path.lexists(killed / "summary.tsv")

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.made_tables import write_table

from megabase import load
from megabase.benchmarking.config import BenchmarkConfig, ModelEntry
from megabase.benchmarking.run import _check_entry, _check_overlap, run_benchmark
from megabase.benchmarking.table import Tables
from megabase.errors import ConfigError, InputError, MegabaseError
from megabase.report.benchmark_page import write_benchmark_page
from megabase.training import engine
from megabase.training.process import Terminated

TINY = {
    "overrides": {"d_model": 16, "n_layer": 1, "filter_order": 8, "embed_dropout": 0.0},
    "epochs": 2,
    "global_batch": 16,
    "eval_every": 4,
    "optim.lr": 1e-2,
    "devices": {"accelerator": "cpu", "devices": 1},
}


def write_rows(path: Path, rows: int, seed: int) -> None:
    write_table(path, rows, seed, 32, "sequence,label")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in (("train", 64), ("dev", 24), ("test", 40)):
        write_rows(tmp_path / "gue" / "mouse" / "0" / f"{name}.csv", rows, rows)
    return tmp_path / "gue"


def settings(tmp_path: Path, data: Path, **options: Any) -> BenchmarkConfig:
    given: dict[str, Any] = {
        "suite": "gue",
        "data": str(data),
        "output": str(tmp_path / "sweep"),
        "models": [ModelEntry(name="tiny", start="hyenadna", settings=TINY), "kmer:3"],
        "seeds": [1, 2],
        "bootstrap": 20,
    }
    return BenchmarkConfig(**{**given, **options})


def table(output: Path, order: list[str] | None = None) -> str:
    Tables(output, order=order or [], resamples=20).write(output)
    return (output / "results.md").read_text()


def without_minutes(text: str) -> str:
    """Leave the two columns of minutes out, which no two runs share."""
    return re.sub(r"\| \d+\.\d \| \d+\.\d \|", "| |", text)


def test_one_table_and_the_same_again_after_a_kill(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_benchmark(settings(tmp_path, data))
    assert [(r["model"], r["seed"]) for r in whole] == [("tiny", 1), ("tiny", 2), ("kmer:3", 1)]
    first = table(tmp_path / "sweep", ["tiny", "kmer:3"])
    assert "## gue: mouse_0" in first
    assert "DNABERT-2 0.568" in first
    assert "Protocol **holdout**" in first
    assert "0 of 40 test rows are in train (0 equal, 0 as reverse complement, 0 near)" in first

    # A second sweep is stopped in its second run, and goes on.
    second = settings(tmp_path, data, output=str(tmp_path / "second"))
    real, calls = engine.evaluate, []

    def terminated(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # the first validation of the second run
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(engine, "evaluate", terminated)
    with pytest.raises(Terminated):
        run_benchmark(second)
    assert len(Tables(tmp_path / "second", resamples=0).records) == 1
    monkeypatch.setattr(engine, "evaluate", real)
    with pytest.raises(MegabaseError, match="resume=True"):
        run_benchmark(second)
    run_benchmark(replace(second, resume=True))
    again = table(tmp_path / "second", ["tiny", "kmer:3"])
    assert without_minutes(again) == without_minutes(first)

    tables = Tables(tmp_path / "sweep", order=["tiny"], resamples=20)
    page = write_benchmark_page(tmp_path / "sweep", tables.lines, tables.of)
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in re.sub(r'src(set)?="[^"]*"', "", text).replace("http-equiv", "")

    tidy = pl.read_parquet(tmp_path / "sweep" / "results.parquet")
    mcc = tidy.filter((pl.col("split") == "test") & (pl.col("metric") == "mcc"))
    assert mcc.height == 3
    assert set(mcc["rows"]) == {40}


def test_task_names_by_their_end_and_errors(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="named 'mouse_1'"):
        run_benchmark(settings(tmp_path, data, tasks="mouse_1"))
    with pytest.raises(InputError, match="did you mean 'hyenadna'"):
        run_benchmark(settings(tmp_path / "b", data, models="hyenadn"))
    with pytest.raises(ConfigError, match="no field optm; did you mean optim"):
        run_benchmark(settings(tmp_path / "c", data, models="hyenadna", settings={"optm.lr": 1}))
    with pytest.raises(MegabaseError, match="several models"):
        settings(tmp_path, data, models="kmer,kmer")


def test_settings_of_single_tasks_win_in_their_order(tmp_path: Path, data: Path) -> None:
    for name, rows in (("train", 64), ("dev", 24), ("test", 40)):
        write_rows(data / "mouse" / "1" / f"{name}.csv", rows, rows)
    own = {"mouse_1": {"optim.lr": 3e-3, "optim": {"weight_decay": 0.3}}}
    shape = {name: TINY[name] for name in ("overrides", "devices")}
    entries = [
        ModelEntry(name="plain", start="hyenadna", settings=TINY),
        ModelEntry(name="own", start="hyenadna", settings=TINY, task_settings=own),
        ModelEntry(name="sweep", start="hyenadna", settings=shape),
        "kmer:2",
    ]
    asked = settings(
        tmp_path,
        data,
        models=entries,
        seeds=[1],
        bootstrap=0,
        settings={"epochs": 1, "optim.lr": 5e-3},
        task_settings={"1": {"epochs": 3, "optim.lr": 4e-3}, "mouse_mouse_0": {}},
    )
    with pytest.raises(InputError, match="task_settings: gue holds no task named 'mouse_mouse_0'"):
        run_benchmark(asked)
    asked = replace(asked, task_settings={"1": asked.task_settings["1"]})
    found = {(r["task"], r["model"]): r["settings"] for r in run_benchmark(asked)}
    learned = {
        key: (each["epochs"], each["optim"]["lr"], each["optim"]["weight_decay"])
        for key, each in found.items()
        if "kmer" not in each
    }
    assert learned == {
        ("mouse_0", "plain"): (2, 1e-2, 0.1),
        ("mouse_1", "plain"): (2, 1e-2, 0.1),
        ("mouse_0", "own"): (2, 1e-2, 0.1),
        ("mouse_1", "own"): (2, 3e-3, 0.3),
        ("mouse_0", "sweep"): (1, 5e-3, 0.1),
        ("mouse_1", "sweep"): (3, 4e-3, 0.1),
    }
    # A task that is not run may have settings; what fine-tuning lacks is found before any run.
    short = replace(asked, tasks="mouse_0", models=["kmer:2"], output=str(tmp_path / "short"))
    assert len(run_benchmark(short)) == 1
    wrong = replace(
        short, output=str(tmp_path / "wrong"), models="cnn", task_settings={"1": {"a": 1}}
    )
    with pytest.raises(ConfigError, match="no field a"):
        run_benchmark(wrong)
    assert not (tmp_path / "wrong").exists()


def write_overlapping(path: Path, rows: int, seed: int) -> None:
    """Write rows of which class 0 are pieces of one sequence, class 1 all their own."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(7).choice(list("ACGT"), 400)
    lines = ["sequence,label"]
    for i in range(rows):
        start = int(rng.integers(0, 340))
        piece = shared[start : start + 60] if i % 2 else rng.choice(list("ACGT"), 60)
        if i % 10 == 1:
            piece = rng.choice(list("ACGT"), 60)  # some of class 0 are new as well
        lines.append("".join(piece) + (",0" if i % 2 else ",1"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def test_overlap_answers_what_overlaps_and_figures_apart_leave_it_out(tmp_path: Path) -> None:
    for name, rows in (("train", 200), ("dev", 40), ("test", 100)):
        write_overlapping(tmp_path / "gue" / "mouse" / "0" / f"{name}.csv", rows, rows)
    config = settings(
        tmp_path, tmp_path / "gue", models="overlap,kmer:2", seeds=[1, 2], metric="accuracy"
    )
    records = run_benchmark(config)
    assert [(r["model"], r["family"]) for r in records] == [
        ("overlap", "overlap"),
        ("kmer:2", "kmer"),
    ]
    overlap, words = records
    # All pieces of the shared sequence are found, and the ten new rows of class 0 are not.
    assert overlap["test"]["accuracy"] == pytest.approx(0.9)
    assert words["test"]["accuracy"] < 0.9
    assert overlap["rows_apart"] == words["rows_apart"] == 60
    assert overlap["test_apart"]["accuracy"] == pytest.approx(50 / 60)
    assert overlap["test_apart"]["mcc"] == 0.0
    text = table(tmp_path / "sweep")
    assert "| accuracy apart | MCC apart |" in text
    assert "Apart: over the 60 test rows" in text
    assert "0: 100% and 17%, 1: 0% and 83%" in text
    tidy = pl.read_parquet(tmp_path / "sweep" / "results.parquet")
    apart = tidy.filter((pl.col("split") == "test_apart") & (pl.col("metric") == "accuracy"))
    assert apart["rows"].to_list() == [60, 60]

    # Without the rows that leak nothing is left to copy.
    dropped = replace(config, drop_leaks=True, output=str(tmp_path / "dropped"), models="overlap")
    (record,) = run_benchmark(dropped)
    assert "test_apart" not in record
    assert abs(record["test"]["mcc"]) < 0.3

    # Cut where nothing overlaps, validation too, it is no better than the largest class.
    apart = replace(
        config, resplit=0.25, together=0.1, output=str(tmp_path / "apart"), models="overlap"
    )
    (record,) = run_benchmark(replace(apart, seeds=[1]))
    assert record["test"]["mcc"] == 0.0
    assert "rows_apart" not in record
    text = table(tmp_path / "apart")
    assert "groups of rows that overlap" in text
    assert "Rows that share at least 10% of their 16-mers" in text
    folds = replace(apart, resplit=None, protocol="kfold", folds=3, output=str(tmp_path / "folds"))
    found = run_benchmark(replace(folds, seeds=[1]))
    assert [r["fold"] for r in found] == [0, 1, 2]
    assert sum(r["rows"]["test"] for r in found) == 340
    assert all("rows_apart" not in r for r in found)
    with pytest.raises(MegabaseError, match="protocol cv5 splits as its paper did"):
        replace(apart, protocol="cv5")

    with pytest.raises(InputError, match="overlap looks for test rows in training rows"):
        run_benchmark(replace(config, suite="biotype", output=str(tmp_path / "b"), tasks=""))


EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_sweeps_of_the_examples_are_read_and_know_their_settings(path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(BenchmarkConfig)
    read = parser.parse_args(["--config", str(path), "--suite", "gue", "--output", "out"])
    values = vars(parser.instantiate(read))
    config = BenchmarkConfig(**{k: v for k, v in values.items() if k != "config"})
    for entry in config.entries:
        if not entry.is_baseline:
            # Folders that the file's own commands make stand for the packaged model here.
            made = entry.start.startswith(("runs/", "long-"))
            _check_entry(config, replace(entry, start="default") if made else entry)


def test_tuning_never_reads_the_test_rows(tmp_path: Path, data: Path) -> None:
    entry = ModelEntry(
        name="tuned", start="hyenadna", settings=TINY, tune={"optim.lr": [1e-9, 1e-2]}
    )
    records = run_benchmark(settings(tmp_path, data, models=[entry], seeds=[1]))
    assert records[0]["chosen"] == {"optim.lr": 1e-2}
    tuned = sorted((tmp_path / "sweep" / "runs").glob("*/tuning-*/result.json"))
    assert len(tuned) == 2
    assert all(json.loads(file.read_text())["test"] == {} for file in tuned)
    assert records[0]["tuning_seconds"] > 0


def test_kfold_and_published(tmp_path: Path, data: Path) -> None:
    folds = run_benchmark(
        settings(tmp_path, data, models="kmer:2", protocol="kfold", folds=4, seeds=[3])
    )
    assert [r["fold"] for r in folds] == [0, 1, 2, 3]
    assert sum(r["rows"]["test"] for r in folds) == 128
    config = settings(
        tmp_path, data, models="kmer:2", protocol="published", output=str(tmp_path / "p")
    )
    (record,) = run_benchmark(config)
    assert record["rows"] == {"train": 88, "valid": 40, "test": 40}
    assert record["valid"] == record["test"]
    assert "ON THE TEST ROWS" in table(tmp_path / "p")


def test_a_linear_model_reads_what_a_frozen_model_says(tmp_path: Path, data: Path) -> None:
    asked = settings(tmp_path, data, models="default:embeddings,kmer:2", metric="accuracy")
    found = run_benchmark(asked)
    assert [(one["model"], one["seed"], one["family"]) for one in found] == [
        ("default:embeddings", 1, "hyenadna"), ("kmer:2", 1, "kmer"),
    ]  # fmt: skip
    embedded = found[0]
    assert embedded["test"]["accuracy"] > 0.8
    # Mean, maximum and deviation of 4 layers of 192; mean and maximum of their 768 units.
    width = 4 * (3 * 192 + 2 * 768)
    assert embedded["trained_parameters"] == width + 1
    assert embedded["parameters"] == width + 1 + load().hf.num_parameters()


@pytest.mark.parametrize(
    ("start", "message"),
    [("./nowhere", "nowhere"), ("hyenadna", "no trained weights"), ("scratch", "no trained")],
)
def test_embeddings_need_a_trained_model(
    tmp_path: Path, data: Path, start: str, message: str
) -> None:
    with pytest.raises(MegabaseError, match=message):
        run_benchmark(settings(tmp_path, data, models=f"kmer:2,{start}:embeddings"))
    assert not (tmp_path / "sweep" / "runs").exists()  # told before anything is run


def test_embeddings_need_labeled_sequences(tmp_path: Path) -> None:
    asked = BenchmarkConfig(
        suite="variants", data="x", models="default:embeddings", output=str(tmp_path / "sweep")
    )
    with pytest.raises(MegabaseError, match="reads labeled sequences"):
        _check_overlap(asked)

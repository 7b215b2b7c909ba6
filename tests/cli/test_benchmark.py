from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.run import run_benchmark
from megabase.cli.main import main


def table(folder: Path) -> Path:
    folder.mkdir()
    for name, rows in (("train", 40), ("test", 20)):
        lines = ["sequence,label"]
        lines += [("GGCAGG" * 4 + "ACGT"[i % 4] * 3 + ",g") if i % 2 else
                  ("AATCAA" * 4 + "ACGT"[i % 4] * 3 + ",a") for i in range(rows)]  # fmt: skip
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_table_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = table(tmp_path / "mine"), tmp_path / "out"
    words = ["benchmark", "table", "--data", str(data), "--models", "kmer:2", "--seeds", "1,2"]
    words += ["--output", str(output), "--bootstrap", "10"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| kmer:2 | holdout | 1.000 |" in said
    assert "20 of 20 test rows are in train (20 equal" in said
    assert {p.name for p in output.iterdir()} >= {
        "benchmark.json", "results.md", "results.html", "results.parquet", "summary.parquet",
    }  # fmt: skip
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--no-page"]) == 0

    other = [*words[:5], "kmer:1", *words[6:9], str(tmp_path / "other"), "--no-page"]
    assert main(other) == 0
    capsys.readouterr()
    both = ["benchmark", "collect", "--data", f"{output},{tmp_path / 'other'}", "--output"]
    assert main([*both, str(tmp_path / "both")]) == 0
    said = capsys.readouterr().out
    assert "| kmer:2 | holdout" in said
    assert "| kmer:1 | holdout" in said
    assert "20 of 20 test rows are in train" in said
    # A run that two sweeps hold counts once.
    shutil.copytree(output, tmp_path / "again")
    both[3] = f"{output},{tmp_path / 'again'}"
    assert main([*both, str(tmp_path / "once")]) == 0
    once = [one for one in capsys.readouterr().out.splitlines() if one.startswith("| kmer:2")]
    assert [one.split("|")[6].strip() for one in once] == ["2"]  # of two seeds, not 4
    assert main(["benchmark", "collect", "--data", str(data), "--output", str(output)]) == 2


def test_recipe_with_models_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = table(tmp_path / "mine")
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(
        f"data: {data}\nseeds: [3]\nprotocol: kfold\nfolds: 2\nbootstrap: 0\n"
        "models:\n  - kmer:1\n  - {name: words, start: 'kmer:2'}\n"
    )
    words = ["benchmark", "table", "--config", str(recipe), "--output", str(tmp_path / "out")]
    assert main([*words, "--no-page"]) == 0
    said = capsys.readouterr().out
    assert "| words | kfold |" in said
    assert "disjoint folds" in said


@pytest.mark.parametrize(
    ("protocol", "given", "seeds"),
    [
        ("cv5", None, [1, 2, 3, 4, 5]),
        ("cv5", [1, 2, 3], [1, 2, 3]),
        ("cv5", [7], [7]),
        ("holdout", None, [1, 2, 3]),
        ("kfold", [1, 2, 3], [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("door", ["flag", "recipe", "python"])
def test_seeds_are_the_same_from_every_door(
    door: str, protocol: str, given: list[int] | None, seeds: list[int], tmp_path: Path
) -> None:
    """Seeds that are given win; those of a protocol hold for the command and for Python alike."""
    data, output = table(tmp_path / "mine"), tmp_path / "out"
    words = ["benchmark", "table", "--data", str(data), "--models", "kmer:1", "--bootstrap", "0"]
    words += ["--output", str(output), "--protocol", protocol, "--folds", "2", "--no-page"]
    if door == "python":
        options = {} if given is None else {"seeds": given}
        run_benchmark(
            BenchmarkConfig(
                suite="table", data=str(data), models="kmer:1", bootstrap=0, output=str(output),
                protocol=protocol, folds=2, **options,
            )
        )  # fmt: skip
    else:
        if door == "flag" and given is not None:
            words += ["--seeds", str(given)]
        elif door == "recipe":
            (tmp_path / "r.yaml").write_text(f"seeds: {'null' if given is None else given}\n")
            words += ["--config", str(tmp_path / "r.yaml")]
        assert main(words) == 0
    runs = (output / "runs").glob("*/*-seed-*")
    assert sorted({int(run.name.split("-seed-")[1].split("-")[0]) for run in runs}) == seeds


@pytest.mark.parametrize(
    ("suite", "package", "extra"),
    [("table", "sklearn", "suites"), ("biotype", "xgboost", "biotype")],
)
def test_a_missing_extra_is_named_before_the_work(
    suite: str, package: str, extra: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, output = table(tmp_path / "mine"), tmp_path / "out"
    monkeypatch.setitem(sys.modules, package, None)
    given = data / "train.csv" if suite == "biotype" else data
    words = ["benchmark", suite, "--data", str(given), "--models", "kmer:2"]
    assert main([*words, "--output", str(output)]) == 2
    assert f"pip install 'megabase[{extra}]'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["gou"], "there is no suite 'gou'"),
        (["gue"], "gue needs --data: Expected DATA/TASK"),
        (["gue", "--data", "nowhere"], "there is no folder nowhere"),
        (["table", "--data", ".", "--protocol", "best"], "best"),
        (["table", "--data", ".", "--sead", "1"], "seeds"),
    ],
)
def test_bad_requests(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["benchmark", *words, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not output.exists()

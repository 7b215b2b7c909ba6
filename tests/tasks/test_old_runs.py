"""Runs of the version before the settings were regrouped: their records are read, and go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from megabase.cli.main import main
from megabase.genome.store import Genome

OLD = Path(__file__).parent / "old_runs"
"""config.yaml of each verb as that version wrote it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGT"), size=20)) + f",{'ab'[i % 2]}" for i in range(40)]
    Path("train.csv").write_text("\n".join(["sequence,label", *rows]) + "\n")
    Path("g.fa").write_text(">chr1\n" + "".join(rng.choice(list("ACGT"), size=2000)) + "\n")
    Genome.build("g.fa", "GENOME")
    return tmp_path


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "prompt", "icl"])
def test_an_old_record_is_a_recipe_and_can_be_resumed(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (OLD / f"{verb}.yaml").read_text()
    recipe = folder / "old.yaml"
    recipe.write_text(old)
    call = [verb, *(["default"] if verb in ("prompt", "icl") else []), "--config", str(recipe)]
    assert main(call) == 0
    before, now = yaml.safe_load(old), yaml.safe_load(Path("OUTPUT/config.yaml").read_text())
    gone = {"lora"} if verb == "prompt" else set()
    assert set(before) - set(now) == gone
    for name in set(before) - gone - {"output", "data", "train"}:
        # A field that was added since stands beside those of that version.
        old_fields = before[name] if isinstance(before[name], dict) else {}
        kept = {key: now[name][key] for key in old_fields} if old_fields else now[name]
        assert kept == before[name], name
    # The folder as that version left it, one that is finished: nothing is said to have changed.
    values = {**before, "output": now["output"]}
    values |= {name: now[name] for name in ("data", "train") if name in now}
    Path("OUTPUT/config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    result = Path("OUTPUT/result.json")
    kept = json.loads(result.read_text()) if result.is_file() else None
    capsys.readouterr()
    assert main([*call, "--resume"]) == 0
    shown = capsys.readouterr()
    assert "another setting" not in shown.out + shown.err
    if kept is not None:
        found = json.loads(result.read_text())
        assert {k: v for k, v in found.items() if "second" not in k} == {
            k: v for k, v in kept.items() if "second" not in k
        }


def test_a_switch_wins_over_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "r.yaml"
    recipe.write_text("head: {freeze: true}\ntrain: train.csv\nmodel: default\noutput: out\n")
    call = ["finetune", "--config", str(recipe), "--dry-run"]
    for more, frozen in (([], True), (["--head.no-freeze"], False), (["--head.freeze"], True)):
        assert main([*call, *more]) == 0
        assert ("of them trained" in capsys.readouterr().err) == frozen

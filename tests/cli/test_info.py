from __future__ import annotations

import json
from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.models.checkpoints.convert import convert_checkpoint

NAMING = Path(__file__).parents[1] / "golden" / "hyena_naming"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    convert_checkpoint(NAMING / "lightning.ckpt", path)
    return path


def test_info_in_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder)]) == 0
    said = capsys.readouterr().out
    for text in ("HyenaDNAForCausalLM", "66 tokens", "padding_side right", "lightning.ckpt",
                 "memory, scoring", "memory, training"):  # fmt: skip
        assert text in said, text


def test_info_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder), "--json", "--length", "40", "--batch", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    model_bytes = (folder / "model.safetensors").stat().st_size
    assert said["file_bytes"] == model_bytes
    assert said["longest"] == 66
    # 12 d^2 + ... per layer at width 16, filter network of width 16: counted from the weights.
    assert 4 * (said["parameters"] + said["constants"]) == pytest.approx(model_bytes, rel=0.15)
    assert (said["memory"]["length"], said["memory"]["batch"]) == (40, 3)
    assert said["memory"]["training_step_bytes"] > 4 * 4 * said["parameters"]


def test_more_positions_need_more_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = []
    for batch in ("1", "100"):
        main(["info", str(folder), "--json", "--batch", batch])
        needed.append(json.loads(capsys.readouterr().out)["memory"])
    assert needed[0]["inference_bytes"] < needed[1]["inference_bytes"]
    assert needed[0]["training_step_bytes"] < needed[1]["training_step_bytes"]


def test_the_models_known_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--list"]) == 0
    said = capsys.readouterr().out
    first, *_, last = said.splitlines()[1:]
    assert first.startswith("default ")  # those with weights come first
    assert "a shape without weights" in last
    (line,) = [line for line in said.splitlines() if "hyenadna-large-1m-seqlen" in line]
    assert all(text in line for text in ("6,550,528", "1,000,000", "15.1 GB", "BSD-3-Clause"))
    assert main(["info", "--list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["hyenadna-tiny-1k-seqlen"]["parameters"] == 436_096
    # Whatever can be fetched says under which terms, and what for.
    fetched = [row for row in rows.values() if row["hub"] or row["checkpoint"]]
    assert len(fetched) == 7 + 6 + 4
    assert all(row["license"] and "without" not in row["use"] for row in fetched)


def test_the_list_and_the_description_estimate_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "default", "--length", "1024", "--json"])
    described = json.loads(capsys.readouterr().out)["memory"]["inference_bytes"]
    main(["info", "--list", "--json"])
    listed = json.loads(capsys.readouterr().out)[0]["scoring_bytes"]
    assert listed == pytest.approx(described, rel=0.01)


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, problem in (
        ([str(tmp_path / "none")], "there is no such folder"),
        ([str(tmp_path)], "no config.json"),
        ([str(folder), "--length", "67"], "longest input"),
        ([str(folder), "--batch", "0"], "at least 1"),
    ):
        assert main(["info", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert problem in captured.err

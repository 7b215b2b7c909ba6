"""A published folder holds what the run recorded, and loads without megabase being asked."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

import megabase as mb
from megabase.cli.main import main


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish")
    rng = random.Random(0)
    for name, count in (("train", 24), ("test", 12)):
        rows = [f"{''.join(rng.choices('ACGT', k=40))},{i % 2}" for i in range(count)]
        (folder / f"{name}.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    run = folder / "tuned"
    command = f"finetune default --train {folder}/train.csv --test {folder}/test.csv --steps 2"
    more = f"--global-batch 8 --devices.accelerator cpu --output {run}"
    assert main([*command.split(), *more.split()]) == 0
    return run


def test_the_card_says_what_the_run_recorded(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    assert main(["publish", str(tuned), "me/promoters", "--dry-run", "-o", str(out)]) == 0
    card = ModelCard.load(out / "README.md")
    data = card.data
    assert (data.license, data.model_name) == ("apache-2.0", "me/promoters")
    assert data.pipeline_tag == "text-classification"
    found = json.loads((tuned / "result.json").read_text())
    kept = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert kept == {(s, k): v for s in ("test", "valid") for k, v in found[s].items()}
    again = ModelCard(str(card))  # written and read again: nothing of model-index is lost
    assert again.data.to_dict() == data.to_dict()
    assert "12 rows of test" in card.text
    assert re.search(r'"sha256": "[0-9a-f]{64}"', card.text)
    one, two = (mb.load(path).predict(["ACGT" * 10]) for path in (out, tuned))
    np.testing.assert_array_equal(one.values, two.values)
    sent = sorted(path.name for path in out.iterdir())
    assert not [name for name in sent if "state" in name]
    for path in (*out.glob("*.md"), *out.glob("run-*")):
        assert str(tuned.parent) not in path.read_text(), path.name
    code = (
        "import sys, megabase.models.auto; from transformers import "
        "AutoModelForSequenceClassification as A; A.from_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)


def test_what_cannot_be_published_is_refused(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "README.md").write_text("my own")
    command = ["publish", str(tuned), "me/promoters", "--dry-run", "-o", str(out)]
    assert main([*command, "--overwrite"]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "my own"
    assert main(["publish", str(tuned), "promoters", "--dry-run", "-o", str(tmp_path / "b")]) == 2
    assert "owner/name; found 'promoters'" in capsys.readouterr().err
    assert main(["publish", str(tmp_path), "me/x", "--dry-run", "-o", str(tmp_path / "c")]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_a_pretrained_run_is_of_its_genome(tmp_path: Path) -> None:
    draw = random.Random(0)
    (tmp_path / "g.fa").write_text("".join(f">{n}\n{''.join(draw.choices('ACGT', k=400))}\n"
                                           for n in ("one", "two")))  # fmt: skip
    genome = mb.Genome(tmp_path / "g.fa")
    mb.pretrain(
        mb.PretrainConfig(
            output=str(tmp_path / "run"), steps=2, global_batch=2, stages=(mb.Stage(length=32),),
            data=mb.DataConfig(genome=str(genome.path), validation=["two"]),
            model=mb.ModelConfig(d_model=8, n_layer=1, overrides={"filter_order": 8}),
            devices=mb.DeviceConfig(accelerator="cpu"),
        )
    )  # fmt: skip
    out = tmp_path / "hub"
    assert main(["publish", str(tmp_path / "run"), "me/g", "--dry-run", "-o", str(out)]) == 0
    card = ModelCard.load(out / "README.md")
    kept = {(r.task_type, r.dataset_name, r.metric_type) for r in card.data.eval_results}
    assert kept == {("text-generation", "g", name) for name in ("loss", "perplexity")}
    assert "12 windows of valid" in card.text
    code = (
        "import sys, torch, megabase.models; from transformers import AutoModel as A; "
        "A.from_pretrained(sys.argv[1], trust_remote_code=False)(torch.full((1, 9), 7))"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)

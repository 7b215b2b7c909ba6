from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tests.made_tables import write_table

from megabase.errors import ConfigError, MegabaseError
from megabase.models import load_model
from megabase.models.adapt.prompt import load_prompt
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer
from megabase.settings import DeviceConfig, HeadConfig, OptimConfig
from megabase.tasks.config import PromptConfig, PromptSettings, TableConfig
from megabase.tasks.prompt import learn_prompt
from megabase.tasks.sweep import sweep


def write(path: Path, rows: int, seed: int, labels: Any, length: tuple[int, int] = (20, 25)) -> str:
    header = "seq,label" if labels(0).count(",") == 1 else "seq,x,y"
    return write_table(path, rows, seed, length, header, labels)


def make(folder: Path, n_layer: int = 1, scale: float = 1.0) -> str:
    torch.manual_seed(0)
    config = HyenaDNAConfig(
        d_model=8, n_layer=n_layer, max_seq_len=40, filter_order=8, embed_dropout=0.0
    )
    model = HyenaDNAForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "implicit" not in name:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    DNATokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return make(tmp_path / "model")


def settings(tmp_path: Path, model: str, labels: Any = None, **options: Any) -> PromptConfig:
    labels = labels or (lambda kind: ",g" if kind else ",a")
    files = {
        name: write(tmp_path / f"{name}.csv", rows, rows, labels)
        for name, rows in (("train", 64), ("valid", 24), ("test", 26))
    }
    given: dict[str, Any] = {
        "output": str(tmp_path / "run"), "epochs": 4, "eval_every": 4,
        "prompt": PromptSettings(length=3),
        "optim": OptimConfig(lr=3e-2, weight_decay=0.0),
    }  # fmt: skip
    return PromptConfig(
        model=model,
        **files,
        devices=DeviceConfig(accelerator="cpu", devices=1),
        **{**given, **options},
    )


def test_label_tokens_learn_and_the_model_stays(tmp_path: Path) -> None:
    # Weights as large as trained ones, so that positions reach each other.
    model = make(tmp_path / "model", n_layer=2, scale=10.0)
    before = (Path(model) / "model.safetensors").read_bytes()
    optim = OptimConfig(lr=0.3, weight_decay=0.0)
    prompt = PromptSettings(length=3, position="after")
    config = settings(tmp_path, model, optim=optim, prompt=prompt, monitor="loss")
    result = learn_prompt(config)
    plain = learn_prompt(
        replace(config, output=str(tmp_path / "plain"), prompt=PromptSettings(length=0))
    )
    assert result is not None
    assert plain is not None
    assert (Path(model) / "model.safetensors").read_bytes() == before
    assert (result.trained_parameters, result.steps, result.epochs) == (24, 16, 4.0)
    assert set(result.test) >= {"loss", "accuracy", "strict_accuracy", "auroc"}
    assert result.test["loss"] < plain.test["loss"] - 0.4
    folder = tmp_path / "run" / "prompt"
    assert sorted(path.name for path in folder.iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert result.prompt_bytes == sum(path.stat().st_size for path in folder.iterdir()) < 3000
    saved = json.loads((folder / "prompt.json").read_text())
    assert saved["model"] == model
    assert (saved["letters"], saved["label_ids"], saved["end_id"]) == ("AN", [7, 11], 1)
    # No checkpoint holds the model either.
    state = load_file(tmp_path / "run" / "last" / "training_state" / "model.safetensors")
    assert list(state) == ["vectors"]
    prompted = load_prompt(tmp_path / "run")
    assert prompted.config.id2label == {0: "a", 1: "g"}
    weights = load_model(model).state_dict()
    found = prompted.model.state_dict()
    assert all(torch.equal(weights[name], found[name]) for name in weights)


@pytest.mark.parametrize("position", ["before", "after", "both"])
def test_a_head_learns(tmp_path: Path, model: str, position: Any) -> None:
    head = HeadConfig(strand_average=True, reverse_complement=0.5)
    config = settings(
        tmp_path, model, head=head,
        prompt=PromptSettings(length=2, answer="head", position=position),
    )  # fmt: skip
    result = learn_prompt(config)
    assert result is not None
    assert result.trained_parameters == 2 * 8 + 2 * 8 + 2
    assert result.test["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("labels", "kind", "metric"),
    [
        (lambda kind: f",{kind},{1 - kind}", "multi_label", "auroc"),
        (lambda kind: f",{kind + 0.5}", "regression", "pearson"),
    ],
)
def test_other_labels(tmp_path: Path, model: str, labels: Any, kind: str, metric: str) -> None:
    table = TableConfig(label=["x", "y"]) if kind == "multi_label" else TableConfig()
    options: dict[str, Any] = {
        "table": table, "prompt": PromptSettings(length=2, answer="head"),
        "optim": OptimConfig(lr=0.1, weight_decay=0.0),
    }  # fmt: skip
    result = learn_prompt(settings(tmp_path, model, labels, **options))
    assert result is not None
    assert result.kind == kind
    assert result.test[metric] > 0.85
    with pytest.raises(ConfigError, match=r"take prompt\.answer='head'"):
        learn_prompt(
            settings(tmp_path, model, labels, table=table, output=str(tmp_path / "2")), dry_run=True
        )


def test_no_vectors_asks_the_plain_model(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, prompt=PromptSettings(length=0))
    result = learn_prompt(config)
    assert result is not None
    assert (result.steps, result.trained_parameters, result.best_step) == (0, 0, None)
    assert load_prompt(tmp_path / "run").spec.length == 0
    plain, loss = load_model(model), 0.0
    rows = [line.split(",") for line in Path(str(config.test)).read_text().split()[1:]]
    tokenizer = DNATokenizer()
    for letters, label in rows:
        ids = tokenizer(letters, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = plain(torch.cat([ids, torch.tensor([[1]])], dim=1)).logits[0, -1]
        loss -= float(logits.log_softmax(-1)[7 if label == "a" else 11]) / len(rows)
    assert result.test["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_sweep_resumes_to_the_same_table(tmp_path: Path, model: str) -> None:
    whole = sweep(settings(tmp_path, model), {"prompt.length": [0, 2, 3]})
    table = pl.read_csv(tmp_path / "run" / "results.tsv", separator="\t").drop("minutes")
    assert table["valid_loss"].to_list() == [one.valid["loss"] for one in whole.results]
    assert table["prompt.length"].to_list() == [0, 2, 3]
    # A second sweep is cut short: one length done, one half done, one not begun.
    half = settings(tmp_path, model, output=str(tmp_path / "half"))
    sweep(half, {"prompt.length": [0]})
    optim = replace(half.optim, schedule_steps=16)
    cut = replace(
        half, steps=5, optim=optim, prompt=PromptSettings(length=2),
        output=str(tmp_path / "half" / "prompt.length-2"),
    )  # fmt: skip
    learn_prompt(cut)
    (tmp_path / "half" / "prompt.length-2" / "result.json").unlink()
    done = (tmp_path / "half" / "prompt.length-0" / "result.json").stat().st_mtime_ns
    again = sweep(replace(half, resume=True), {"prompt.length": [0, 2, 3]})
    assert again.table.drop("minutes").equals(table)
    assert (tmp_path / "half" / "prompt.length-0" / "result.json").stat().st_mtime_ns == done
    # Nothing is started when one of the folders is taken.
    with pytest.raises(ConfigError, match=r"prompt\.length-3 exists"):
        sweep(half, {"prompt.length": [9, 3]})
    assert not (tmp_path / "half" / "prompt.length-9").exists()


def test_sequences_must_fit_beside_the_prompt(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, prompt=PromptSettings(length=17))
    with pytest.raises(
        MegabaseError,
        match=r"train.csv, row \d+: 2\d tokens, a prompt of 17 and a separator are longer than the "
        r"model's longest input, 40 \(.*table.truncate, take a prompt of at most 15 vectors",
    ):
        learn_prompt(config)
    assert not (tmp_path / "run").exists()
    short = replace(config, table=TableConfig(truncate=True), steps=1)
    with pytest.warns(UserWarning, match="are cut to 22 bases"):
        assert learn_prompt(short) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": HeadConfig(freeze=True)}, "always frozen"),
        ({"head": HeadConfig(pooling="max")}, "head.pooling is for prompt.answer head"),
        ({"prompt": PromptSettings(answer="head", letters="labels")}, "letters is for"),
        (
            {
                "prompt": PromptSettings(layers="all"),
                "activation_checkpointing": True,
                "checkpointing_stretch": 2,
            },
            "layers all needs checkpointing_stretch 1",
        ),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, model, **options)

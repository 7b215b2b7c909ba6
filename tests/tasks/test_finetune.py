from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tests.made_tables import write_table

from megabase.errors import ConfigError, InputError, MegabaseError
from megabase.settings import DeviceConfig, HeadConfig, OptimConfig, Stage
from megabase.tasks.config import FinetuneConfig, TableConfig, to_yaml
from megabase.tasks.finetune import _plan, finetune
from megabase.tasks.labeled_data import read_splits
from megabase.tasks.sweep import sweep
from megabase.training.process import build_fabric

TINY: dict[str, Any] = {"d_model": 16, "n_layer": 1, "filter_order": 8, "embed_dropout": 0.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in (("train", 64), ("valid", 24), ("test", 24)):
        write_table(folder / f"{name}.csv", rows, seed=rows)
    return folder


def settings(tmp_path: Path, data: Path, **options: Any) -> FinetuneConfig:
    given = {"family": "hyenadna", "overrides": TINY, "epochs": 4, "global_batch": 16}
    return FinetuneConfig(
        train=str(data),
        **{"output": str(tmp_path / "run"), **given, **options},
        optim=OptimConfig(lr=1e-2, warmup_fraction=0.0),
        devices=DeviceConfig(accelerator="cpu", devices=1),
    )


def test_learns_and_writes_a_whole_run(tmp_path: Path, data: Path) -> None:
    result = finetune(settings(tmp_path, data))
    assert result is not None
    run = tmp_path / "run"
    assert result.test["accuracy"] > 0.8
    assert result.rows == {"train": 64, "valid": 24, "test": 24}
    assert (result.steps, result.epochs) == (16, 4.0)
    saved = json.loads((run / "result.json").read_text())
    assert saved["test"] == result.test
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [r for r in records if r["kind"] == "validation"]
    assert [r["step"] for r in validations] == list(range(2, 17, 2))  # 4 epochs of 4 steps
    best = max(validations, key=lambda r: (r["accuracy"], -r["loss"]))
    assert result.valid["accuracy"] == best["accuracy"]
    assert result.best_step == best["step"]
    config = json.loads((run / "best" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "g"}
    assert (config["label_kind"], config["strand_average"]) == ("classes", False)
    assert config["architectures"] == ["HyenaDNAForSequenceClassification"]
    described = json.loads((run / "data.json").read_text())
    assert described["train"]["classes"] == {"a": 32, "g": 32}
    again = yaml.safe_load((run / "config.yaml").read_text())
    assert again["train"] == str(data.absolute())


def test_the_saved_folder_predicts_with_transformers(tmp_path: Path, data: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import megabase.models  # noqa: F401 (registers the families)

    finetune(settings(tmp_path, data))
    folder = tmp_path / "run" / "best"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["GGGTGGCGGAGGGGTGGCGGAGGG", "AAATAACAAGAAAATAACAAGAAA"]
    ids = tokenizer(texts, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        said = model(input_ids=ids).logits.argmax(dim=1).tolist()
    assert [model.config.id2label[i] for i in said] == ["g", "a"]


def test_same_seed_same_run_and_resume_is_exact(tmp_path: Path, data: Path) -> None:
    options: dict[str, Any] = {"head": HeadConfig(reverse_complement=0.5, strand_average=True)}
    first = finetune(settings(tmp_path, data, **options))
    half = settings(tmp_path, data, output=str(tmp_path / "half"), **options)
    finetune(replace(half, steps=6, optim=replace(half.optim, schedule_steps=16)))
    whole = replace(half, optim=replace(half.optim, schedule_steps=16), steps=16, resume=True)
    second = finetune(whole)
    assert first is not None
    assert second is not None
    assert second.test == first.test
    assert second.valid == first.valid


def test_starts_from_a_trained_model(tmp_path: Path, data: Path) -> None:
    finetune(settings(tmp_path, data))
    config = replace(
        settings(tmp_path, data),
        family=None,
        overrides={},
        model=str(tmp_path / "run"),
        output=str(tmp_path / "second"),
        epochs=0.25,
        head=HeadConfig(freeze=True, pooling="max"),
    )
    result = finetune(config)
    assert result is not None
    assert result.trained_parameters == 16 * 2 + 2
    fresh = finetune(
        replace(config, from_scratch=True, head=HeadConfig(), output=str(tmp_path / "3"))
    )
    assert fresh is not None
    assert fresh.parameters == result.parameters == fresh.trained_parameters


@pytest.mark.parametrize(
    ("text", "label", "kind", "metric"),
    [
        ("seq,label\n{}", None, "regression", "mse"),
        ("seq,x,y\n{}", ["x", "y"], "multi_label", "auroc"),
    ],
)
def test_other_kinds(
    tmp_path: Path, text: str, label: list[str] | None, kind: str, metric: str
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        letters = "".join(rng.choice(list("ACGT"), size=20))
        share = letters.count("G") / 20
        rows.append(
            f"{letters},{share + 0.01}" if label is None else f"{letters},{share > 0.25:d},1"
        )
        if label is not None:
            rows[-1] = f"{letters},{share > 0.25:d},{letters[0] == 'A':d}"
    path = tmp_path / "train.csv"
    path.write_text(text.format("\n".join(rows)))
    config = settings(
        tmp_path, path, valid=str(path), test=str(path), epochs=1, table=TableConfig(label=label)
    )
    result = finetune(config)
    assert result is not None
    assert result.kind == kind
    assert metric in result.test
    assert "chosen on the test rows" in result.notes[0]


def test_lengths_differ_and_both_paddings_agree_on_real_tokens(tmp_path: Path) -> None:
    path = write_table(tmp_path / "train.csv", 40, 1, length=(10, 40))
    for side in ("right", "left"):
        config = settings(
            tmp_path,
            path,
            output=str(tmp_path / side),
            epochs=1,
            head=HeadConfig(padding=side),  # type: ignore[arg-type]
        )
        result = finetune(config)
        assert result is not None
        assert result.rows["valid"] == 4


def test_early_stopping(tmp_path: Path, data: Path) -> None:
    config = settings(tmp_path, data, epochs=50, patience=1, monitor="accuracy")
    stuck = replace(config, optim=OptimConfig(lr=1e-12))
    result = finetune(stuck)
    assert result is not None
    assert result.steps == 8  # the second validation is no better than the first


def test_class_weights_and_other_families(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("megabase.models.cnn")
    for folder in ("train", "valid", "test"):
        write_table(data / f"{folder}.csv", 16, 3, length=(60, 61))
    config = settings(
        tmp_path,
        data,
        family="cnn",
        overrides={"variant": "caduceus"},
        epochs=1,
        head=HeadConfig(class_weights="balanced", label_smoothing=0.1),
    )
    result = finetune(config)
    assert result is not None
    assert result.family == "cnn"


def test_kmers(tmp_path: Path, data: Path) -> None:
    result = finetune(settings(tmp_path, data, tokenizer="3mer", epochs=1))
    assert result is not None
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["vocab_size"] == 12 + 64
    assert result.rows["test"] == 24


def test_length_warm_up(tmp_path: Path, data: Path) -> None:
    stages = (Stage(length=8, steps=2), Stage(length=24, steps=2))
    result = finetune(settings(tmp_path, data, stages=stages))
    assert result is not None
    assert result.steps == 4


def test_long_sequences_warm_up_stage_by_stage(tmp_path: Path) -> None:
    """As for species: every row is long, and each stage reads its own length of either strand."""
    path = write_table(tmp_path / "train.csv", 24, 5, length=(3000, 3001))
    stages = (
        Stage(length=256, epochs=1),
        Stage(length=1024, epochs=1),
        Stage(length=3000, steps=2),
    )
    config = settings(
        tmp_path, path, stages=stages, global_batch=None, global_batch_tokens=6000,
        head=HeadConfig(reverse_complement=0.5, pooling="last"),
    )  # fmt: skip
    plan = _plan(config, build_fabric(config.devices, config.precision))
    rows = len(plan.batches)
    points = [(point.length, point.global_batch, steps) for point, steps in plan.schedule.stages()]
    assert rows == 22
    assert points == [(256, 23, 1), (1024, 5, 5), (3000, 2, 2)]
    assert plan.model.config.max_length >= 3000
    assert plan.model.base_model.padded_side == "right"  # no mask has to be looked at
    assert plan.notes == []
    forward = {tuple(plan.splits["train"].sequence(i)[:256]) for i in range(rows)}
    seen = set()
    for point, _ in plan.schedule.stages():
        batch = plan.batches.batch(point.stage, np.arange(8), point.length)
        assert batch["input_ids"].shape == (8, point.length)
        codes = batch["input_ids"].numpy()[:, :256] - 7
        seen |= {tuple(row) in forward for row in codes}
    assert seen == {True, False}  # both strands, each from its own beginning
    result = finetune(config)
    assert result is not None
    assert result.steps == 8
    short = replace(config, stages=stages[:2], output=str(tmp_path / "short"))
    cut = finetune(short)
    assert cut is not None
    assert cut.notes == [
        "22 of 22 training sequences have more tokens than the longest stage, 1,024: training "
        "never reads their ends"
    ]


def test_seeds(tmp_path: Path, data: Path) -> None:
    config = settings(tmp_path, data, epochs=1)
    swept = sweep(config, {"seed": [0, 1]})
    values = [r.test["accuracy"] for r in swept.results]
    assert len(values) == 2
    mean, sd = swept.summary.select("test_accuracy", "test_accuracy_sd").row(0)
    assert (mean, sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    again = sweep(replace(config, resume=True), {"seed": [0, 1]})
    assert again.results == swept.results


def test_validation_is_cut_from_train(tmp_path: Path, data: Path) -> None:
    alone = str(data / "train.csv")
    config = settings(tmp_path, data)
    splits = read_splits(replace(config, train=alone))
    assert {name: len(split) for name, split in splits.items()} == {"train": 58, "valid": 6}
    rows = np.concatenate([splits["train"].rows, splits["valid"].rows])
    assert sorted(rows) == list(range(64))
    published = TableConfig(validation_split="published")
    splits = read_splits(replace(config, train=alone, table=published))
    assert len(splits["valid"]) == 7
    none = read_splits(replace(config, train=alone, table=TableConfig(validation_fraction=0)))
    assert set(none) == {"train"}


class TestRefusals:
    def test_settings(self, tmp_path: Path, data: Path) -> None:
        with pytest.raises(ConfigError, match="there is no model"):
            settings(tmp_path, data, family=None)
        with pytest.raises(ConfigError, match="model and family are given"):
            settings(tmp_path, data, model="default")
        with pytest.raises(ConfigError, match="epochs is 0"):
            settings(tmp_path, data, epochs=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"family": "hyenadn"}, "did you mean 'hyenadna'"),
            ({"overrides": {"d_modle": 3}}, "did you mean 'd_model'"),
            ({"metrics": ["acc"]}, "there is no metric 'acc'"),
            ({"monitor": "pearson"}, "not a metric of classes"),
            ({"tokenizer": "9mer"}, "tokenizer is '9mer'"),
            ({"head": HeadConfig(class_weights=[1.0])}, "1 numbers, but there are 2 classes"),
            ({"head": HeadConfig(pooling="median")}, "pooling"),
        ],
    )
    def test_plans(self, tmp_path: Path, data: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(MegabaseError, match=message):
            finetune(settings(tmp_path, data, **options), dry_run=True)
        assert not (tmp_path / "run").exists()

    def test_sequence_beyond_the_model(self, tmp_path: Path, data: Path) -> None:
        overrides = {**TINY, "max_seq_len": 20}
        config = settings(tmp_path, data, overrides=overrides, epochs=1)
        with pytest.raises(InputError, match=r"train\.csv, row 1: the sequence has 24 tokens"):
            finetune(config)
        with pytest.warns(UserWarning, match=r"of \d+ sequences .* are cut to 20 bases"):
            result = finetune(replace(config, table=TableConfig(truncate=True)))
        assert result is not None

    def test_freezing_a_model_without_a_body(self, tmp_path: Path, data: Path) -> None:
        pytest.importorskip("megabase.models.cnn")
        config = settings(tmp_path, data, family="cnn", overrides={"max_length": 60})
        with pytest.raises(ConfigError, match="no part below its head"):
            finetune(replace(config, head=HeadConfig(freeze=True)))


def test_yaml_gives_the_same_settings(tmp_path: Path, data: Path) -> None:
    config = settings(tmp_path, data, head=HeadConfig(pooling="last"), steps=4)
    values = yaml.safe_load(to_yaml(config))
    assert values["head"]["pooling"] == "last"
    assert "stages" not in values
    assert "resume" not in values


class TestWhatTheRowsDecide:
    def plan(self, tmp_path: Path, rows: int, length: int = 24, **options: Any) -> Any:
        path = write_table(tmp_path / "train.csv", rows, seed=1, length=(length, length + 1))
        given: dict[str, Any] = {"family": "hyenadna", "overrides": {**TINY, "d_model": 32}}
        config = FinetuneConfig(
            train=str(path), output=str(tmp_path / "run"), **{**given, **options},
            devices=DeviceConfig(accelerator="cpu", devices=1),
        )  # fmt: skip
        return _plan(config, build_fabric(config.devices, config.precision))

    @pytest.mark.parametrize(
        ("rows", "length", "epochs"),
        [(100, 24, 20), (5000, 24, 7.1), (40_000, 24, 2), (2000, 2000, 5.6), (2000, 9000, 2)],
    )
    def test_epochs(self, tmp_path: Path, rows: int, length: int, epochs: float) -> None:
        plan = self.plan(tmp_path, rows, length)
        trained = len(plan.splits["train"])  # a tenth is held out for validation
        assert plan.schedule.total_steps == math.ceil(epochs * trained / 64)
        assert math.ceil(plan.schedule.total_steps / plan.settings.eval_every) >= 8

    def test_optimizer(self, tmp_path: Path) -> None:
        named = self.plan(tmp_path, 64, optim=OptimConfig()).settings.optim
        assert (named.name, named.lr) == ("adamw", 6e-4)
        chosen = self.plan(tmp_path, 64).settings.optim
        assert (chosen.name, chosen.lr) == ("muon", 1e-3)
        head_alone = self.plan(tmp_path, 64, head=HeadConfig(freeze=True))
        assert head_alone.settings.optim.name == "adamw"
        assert self.plan(tmp_path, 64, family="cnn", overrides={}).settings.optim.name == "adamw"

    def test_a_part_of_the_optimizer_keeps_the_rest(self) -> None:
        given = {"train": "x", "output": "y", "family": "cnn", "optim": {"lr": 2e-3}}
        assert FinetuneConfig.of(given).optim == OptimConfig(
            name=None, lr=2e-3, warmup_fraction=0.1
        )

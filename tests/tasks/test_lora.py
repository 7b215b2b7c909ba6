"""Adapters, frozen parts, and that a reloaded model says the same, head included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.made_tables import write_table

from megabase.errors import ConfigError, MegabaseError
from megabase.models.auto import load_model
from megabase.settings import DeviceConfig, HeadConfig, LoraConfig, OptimConfig
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.finetune import finetune

SHAPES: dict[str, dict[str, Any]] = {
    "hyenadna": {"d_model": 16, "n_layer": 2, "filter_order": 8, "embed_dropout": 0.0},
    "gpt": {"d_model": 16, "n_layer": 2, "num_heads": 2},
    "mamba": {"d_model": 16, "n_layer": 2},
    "caduceus": {"d_model": 16, "n_layer": 2, "rcps": True},
}
IDS = torch.tensor([[7, 8, 9, 10, 10, 7, 8, 8], [9, 9, 9, 7, 10, 9, 9, 8]])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    write_table(path, 40, 0, 24)
    return path


def settings(output: Path, table: Path, **options: Any) -> FinetuneConfig:
    return FinetuneConfig(
        train=str(table),
        output=str(output),
        **{"global_batch": 8, "epochs": 2, **options},
        optim=OptimConfig(lr=1e-2, warmup_fraction=0.0),
        devices=DeviceConfig(accelerator="cpu", devices=1),
    )


def start(folder: Path, table: Path, family: str) -> Path:
    shape = SHAPES[family]
    finetune(settings(folder, table, family=family, overrides=shape, steps=1))
    return folder


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_a_reloaded_model_says_the_same_head_included(
    tmp_path: Path, table: Path, family: str
) -> None:
    pytest.importorskip("peft")
    first = start(tmp_path / "first", table, family)
    config = settings(tmp_path / "run", table, model=str(first), lora=LoraConfig(rank=2))
    result = finetune(config)
    assert result is not None
    assert result.trained_parameters < result.parameters / 2
    best = tmp_path / "run" / "best"
    model = load_model(best)
    before = dict(load_model(first).named_parameters())
    now = dict(model.named_parameters())
    assert set(before) == set(now)
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    assert any("score" in name for name in changed)  # the head was trained, and saved
    linear = {name for name in changed if "score" not in name}
    assert linear  # the adapters were trained through every path of the operators
    modules = dict(model.named_modules())
    assert all(
        isinstance(modules[name.rsplit(".", 1)[0]], torch.nn.Linear) and name.endswith("weight")
        for name in linear
    )
    want = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "score" not in name and "filter" not in name
    }
    assert {name.removesuffix(".weight") for name in linear} >= want - _tied(model, want)


def _tied(model: Any, names: set[str]) -> set[str]:
    """Names of layers that share their weight with another."""
    return {name for name in names if f"{name}.weight" not in dict(model.named_parameters())}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", sorted(SHAPES))
def test_peft_loads_the_adapter(tmp_path: Path, table: Path, family: str) -> None:
    peft = pytest.importorskip("peft")
    first = start(tmp_path / "first", table, family)
    config = settings(
        tmp_path / "run", table, model=str(first), lora=LoraConfig(rank=2, save="adapter")
    )
    finetune(config)
    best = tmp_path / "run" / "best"
    base = load_model(str(first), "sequence-classification", new_head=True)
    loaded = peft.PeftModel.from_pretrained(base, best / "adapter")
    torch.testing.assert_close(said(loaded), said(load_model(best)))
    files = sum(file.stat().st_size for file in (best / "adapter").iterdir())
    assert files < 20_000


def test_resume_is_exact_with_adapters(tmp_path: Path, table: Path) -> None:
    pytest.importorskip("peft")
    first = start(tmp_path / "first", table, "hyenadna")
    options: dict[str, Any] = {
        "model": str(first), "lora": LoraConfig(rank=2), "monitor": "loss"
    }  # fmt: skip
    config = settings(tmp_path / "whole", table, steps=6, **options)
    whole = finetune(config)
    half = replace(config, output=str(tmp_path / "half"), steps=3)
    half = replace(half, optim=replace(half.optim, schedule_steps=6))
    finetune(half)
    again = finetune(replace(half, steps=6, resume=True))
    assert whole is not None
    assert again is not None
    assert again.valid == whole.valid


def test_frozen_parts_do_not_move(tmp_path: Path, table: Path) -> None:
    first = start(tmp_path / "first", table, "hyenadna")
    before = dict(load_model(first).named_parameters())
    for name, head in {
        "blocks": HeadConfig(freeze_blocks=1),
        "embeddings": HeadConfig(freeze_embeddings=True),
    }.items():
        finetune(settings(tmp_path / name, table, model=str(first), head=head, steps=2))
        now = dict(load_model(tmp_path / name).named_parameters())
        moved = {part for part in now if not torch.equal(now[part], before[part])}
        frozen = ["embeddings."] + (["layers.0."] if name == "blocks" else [])
        assert not [part for part in moved if any(word in part for word in frozen)]
        assert any("layers.1." in part for part in moved)
        assert any("score" in part for part in moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LoraConfig(rank=2, targets=["q_proj"])}, "lora.targets names q_proj; the linear"),
        ({"head": HeadConfig(freeze_blocks=3)}, "freeze_blocks is 3, but .* has 2 blocks"),
    ],
)
def test_what_a_model_does_not_have(
    tmp_path: Path, table: Path, options: dict[str, Any], message: str
) -> None:
    first = start(tmp_path / "first", table, "hyenadna")
    with pytest.raises(MegabaseError, match=message):
        finetune(settings(tmp_path / "run", table, model=str(first), **options), dry_run=True)


def test_settings_that_exclude_each_other(tmp_path: Path, table: Path) -> None:
    with pytest.raises(ConfigError, match="needs a trained model"):
        settings(tmp_path, table, family="hyenadna", lora=LoraConfig(rank=2))
    with pytest.raises(ConfigError, match=r"leave head\.freeze"):
        settings(tmp_path, table, model="x", lora=LoraConfig(rank=2), head=HeadConfig(freeze=True))
    with pytest.raises(ConfigError, match="rank is -1"):
        LoraConfig(rank=-1)

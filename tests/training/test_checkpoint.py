"""Checkpoints are whole or absent, and a full disk harms none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from megabase.errors import RunError
from megabase.training import checkpoint
from megabase.training.checkpoint import Checkpoints
from megabase.training.optimizer import build_optimizer


def test_tied_and_plain_state_survive(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.config(tmp_path)
    _, model = toy.run(settings)
    other = toy.ToyModel()
    optimizer = build_optimizer(other, settings.optim)
    progress = Checkpoints.load(tmp_path / "last", other, optimizer)
    assert progress.step == 20
    assert progress.tokens == 5 * 64 + 15 * 128
    assert other.head.weight is other.embedding.weight
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert [group["base_lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_nothing_in_a_checkpoint_is_a_pickle(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(toy.config(tmp_path))
    names = {path.suffix for path in (tmp_path / "last/training_state").iterdir()}
    assert names == {".safetensors", ".json"}


@pytest.mark.parametrize("where", ["model", "state", "folder"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    saves = 0

    def save(folder: Path, state: Any) -> None:
        nonlocal saves
        saves += 1
        if where == "model" and saves == 2:
            (folder / "half").write_text("x")
            raise full
        toy.save_model(folder, state)

    if where != "model":
        name = "save_file" if where == "state" else "_flush"
        original = getattr(checkpoint, name)

        def failing(*arguments: Any, **named: Any) -> Any:
            if saves == 2:
                if where == "state":
                    raise RuntimeError("I/O error: No space left on device (os error 28)")
                raise full
            return original(*arguments, **named)

        monkeypatch.setattr(checkpoint, name, failing)
    with pytest.raises(RunError, match=r"step-00000006.*No space left.*step-00000004 is whole"):
        toy.run(toy.config(tmp_path), save=save)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert Checkpoints.progress_of(tmp_path / "last").step == 4
    result, _ = toy.run(toy.config(tmp_path, resume=True))
    assert result.progress.step == 20


def test_other_errors_of_the_writer_pass_through(toy: ModuleType, tmp_path: Path) -> None:
    def save(folder: Path, state: Any) -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        toy.run(toy.config(tmp_path), save=save)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(toy.config(tmp_path))
    with pytest.raises(RunError, match="does not fit this model"):
        toy.run(toy.config(tmp_path, resume=True), model=toy.ToyModel(width=8))


@pytest.mark.parametrize("damage", ["cut", "missing", "newer"])
def test_damage_is_named(toy: ModuleType, tmp_path: Path, damage: str) -> None:
    toy.run(toy.config(tmp_path))
    folder = (tmp_path / "last").resolve() / "training_state"
    if damage == "cut":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "missing":
        (folder / "state.json").unlink()
    else:
        record = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**record, "format": 2}))
    with pytest.raises(RunError, match="training_state"):
        toy.run(toy.config(tmp_path, resume=True))


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": step}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"kind": "tr')
    Checkpoints(tmp_path).clean(3)
    assert path.read_text() == "\n".join(lines[:3]) + "\n"
    Checkpoints(tmp_path).clean(9)
    assert len(path.read_text().splitlines()) == 3
    Checkpoints(tmp_path / "none").clean(1)


def test_only_whole_folders_count(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).finished() == []
    for name in ("step-00000010", ".partial-step-00000020-ab", "step-00000009", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    found = [path.name for path in Checkpoints(tmp_path).finished()]
    assert found == ["step-00000009", "step-00000010"]

"""Other tools hear a run: a callback, TensorBoard, Weights & Biases without a network."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import megabase as mb
from megabase.errors import ConfigError


def settings(folder: Path, output: str, **more: Any) -> mb.PretrainConfig:
    rng = np.random.default_rng(0)
    genome = folder / "genome.fa"
    if not genome.exists():
        genome.write_text(">one\n" + "".join(rng.choice(list("ACGT"), 2000)) + "\n")
    return mb.PretrainConfig(
        output=str(folder / output),
        data=mb.DataConfig(genome=str(genome), validation=("one:1-400",), test=("one:401-600",)),
        model=mb.ModelConfig(d_model=8, n_layer=1, overrides={"filter_order": 8}),
        stages=(mb.Stage(length=32, micro_batch=4),),
        global_batch=4, log_every=1, eval_every=2, seed=1,
        devices=mb.DeviceConfig(accelerator="cpu", devices=1, threads=1), **more,
    )  # fmt: skip


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_callback_hears_what_the_file_holds(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    run = mb.pretrain(settings(tmp_path, "run", steps=4), heard.append)
    assert heard == records(run.folder)
    assert [r["step"] for r in heard if r["kind"] == "validation"] == [2, 4]
    mb.pretrain(settings(tmp_path, "other", steps=1))
    assert len(heard) == len(records(run.folder)), "only the runs inside"


def test_tensorboard_reads_a_run_and_its_resumption(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = mb.pretrain(settings(tmp_path, "run", steps=2, log=("tensorboard",))).folder
    mb.pretrain(settings(tmp_path, "run", steps=4, log=("tensorboard",), resume=True))
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("train/loss", "train/lr", "validation/loss", "validation/perplexity"):
        kind, _, value = name.partition("/")
        kept = [(r["step"], pytest.approx(r[value])) for r in records(run) if r["kind"] == kind]
        assert [(e.step, e.value) for e in found.Scalars(name)] == kept
    mb.pretrain(settings(tmp_path, "run", steps=1, overwrite=True))
    assert not (run / "tensorboard").exists()


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """Read what wandb writes: pieces of records in blocks of 32 kB, behind a header of 7 bytes."""
    at, block, record = 7, 1 << 15, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a header: filled up
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_writes_a_run_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = mb.pretrain(settings(tmp_path, "run", steps=3, log=("wandb",))).folder
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    losses, names = {}, set()
    for data in leveldb_log(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            names.add((record.run.project, record.run.display_name))
        values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
        if "train/loss" in values:
            losses[values["_step"]] = values["train/loss"]
    assert names == {("megabase", "run")}
    assert losses == {r["step"]: r["loss"] for r in records(run) if r["kind"] == "train"}


def test_a_tool_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed; pip install wandb"):
        settings(tmp_path, "run", steps=1, log=("wandb",))

"""The loop: it learns, however the batch is split; it skips, stops, resumes and repeats exactly."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from megabase.errors import ConfigError, NotFiniteError
from megabase.settings import DeviceConfig
from megabase.training import engine, evaluation
from megabase.training.checkpoint import Checkpoints, Progress
from megabase.training.engine import _step_seed as step_seed
from megabase.training.process import build_fabric


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def furthest(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(weights(a), weights(b), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def same_numbers(run: Path, other: Path) -> bool:
    """Compare every recorded number but the clock's."""

    def clean(path: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        clock = ("seconds", "tokens_per_second", "memory_mb")
        return [{k: v for k, v in line.items() if k not in clock} for line in lines]

    return clean(run) == clean(other)


def test_it_learns_a_few_windows_by_heart(toy: ModuleType, tmp_path: Path) -> None:
    class EightWindows(toy.ToyData):
        def batch(self, stream: int, indices: Any, length: int) -> dict[str, torch.Tensor]:
            return super().batch(0, indices % 8, 8)

    settings = toy.config(tmp_path, stages=[{"length": 8}], steps=300, optim={"lr": 2e-2})
    model = toy.ToyModel(width=32, dropout=0.0)
    toy.run(settings, data=EightWindows(), model=model, validate=False)
    losses = [record["loss"] for record in records(tmp_path, "train")]
    assert losses[0] > 5 * losses[-1]
    assert losses[-1] < 0.25


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_do_not_change_the_step(toy: ModuleType, tmp_path: Path, micro: int) -> None:
    def train(size: int) -> nn.Module:
        settings = toy.config(
            tmp_path / str(size), stages=[{"length": 8, "micro_batch": size}], steps=10
        )
        torch.manual_seed(5)
        return toy.run(settings, model=toy.ToyModel(dropout=0.0))[1]

    assert furthest(train(8 if micro != 8 else 4), train(micro)) < 1e-6


def test_the_first_gradient_is_that_of_the_global_mean(toy: ModuleType, tmp_path: Path) -> None:
    """One SGD-like check: the norm logged at step 1 is that of sum(loss) / sum(count)."""
    settings = toy.config(
        tmp_path, stages=[{"length": 8, "micro_batch": 3}], steps=1, optim={"clip": None}
    )
    torch.manual_seed(2)
    model = toy.ToyModel(dropout=0.0)
    twin = toy.ToyModel(dropout=0.0)
    twin.load_state_dict(model.state_dict())
    toy.run(settings, model=model)
    sums = toy.objective(twin, toy.ToyData().batch(0, np.arange(8), 8))
    (sums.loss_sum / sums.count).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters()))
    record = records(tmp_path, "train")[0]
    assert record["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert record["loss"] == pytest.approx((sums.loss_sum / sums.count).item(), rel=1e-6)
    assert record["count"] == float(sums.count)


def test_every_window_is_read_once_in_order(toy: ModuleType, tmp_path: Path) -> None:
    data = toy.ToyData()
    toy.run(toy.config(tmp_path), data=data, validate=False)
    assert data.seen == [(0, i, 8) for i in range(40)] + [(1, i, 16) for i in range(120)]


def test_the_same_settings_give_the_same_run(toy: ModuleType, tmp_path: Path) -> None:
    a = toy.run(toy.config(tmp_path / "a"))[1]
    b = toy.run(toy.config(tmp_path / "b"))[1]
    c = toy.run(toy.config(tmp_path / "c", seed=1))[1]
    assert equal(a, b)
    assert same_numbers(tmp_path / "a", tmp_path / "b")
    assert not equal(a, c)


@pytest.mark.parametrize("kept", [4, 6, 12, 16])
def test_a_resumed_run_is_the_same_run(toy: ModuleType, tmp_path: Path, kept: int) -> None:
    """Weights bit for bit, and every recorded number, from any checkpoint (dropout is on)."""
    whole = toy.run(toy.config(tmp_path / "whole", keep=9))[1]
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut, symlinks=True)
    for folder in Checkpoints(cut).finished():
        if int(folder.name[5:]) > kept:
            shutil.rmtree(folder)
    (cut / "checkpoints" / ".partial-step-00000099-abc").mkdir()
    resumed = toy.run(toy.config(cut, keep=9, resume=True))[1]
    assert equal(whole, resumed)
    assert same_numbers(tmp_path / "whole", cut)
    assert not list((cut / "checkpoints").glob(".partial*"))
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        place = Path("checkpoints/step-00000020/training_state") / name
        if name == "state.json":
            a, b = (json.loads((run / place).read_text()) for run in (tmp_path / "whole", cut))
            a["progress"].pop("seconds")
            b["progress"].pop("seconds")
            assert a == b
        else:
            assert (tmp_path / "whole" / place).read_bytes() == (cut / place).read_bytes()


def test_resuming_a_finished_run_does_nothing(toy: ModuleType, tmp_path: Path) -> None:
    done = toy.run(toy.config(tmp_path))[1]
    before = (tmp_path / "metrics.jsonl").read_text()
    result, again = toy.run(toy.config(tmp_path, resume=True))
    assert result.progress.step == 20
    assert equal(done, again)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_best_and_last_are_kept(toy: ModuleType, tmp_path: Path) -> None:
    result, _ = toy.run(toy.config(tmp_path, keep=1, checkpoint_every=1))
    best = result.progress.best_step
    names = {path.name for path in Checkpoints(tmp_path).finished()}
    assert names == {f"step-{best:08d}", "step-00000020"}
    assert (tmp_path / "last").resolve().name == "step-00000020"
    assert (tmp_path / "best").resolve().name == f"step-{best:08d}"
    losses = {r["step"]: r["loss"] for r in records(tmp_path, "validation")}
    assert set(losses) == {6, 12, 18, 20}
    assert min(losses, key=losses.__getitem__) == best


def test_tokens_per_second_leave_validation_out(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at this clock is a second later: a step takes one, and so each is its tokens."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("megabase.training.engine.time", clock)
    stages = [{"length": 8}]
    toy.run(toy.config(tmp_path, stages=stages, steps=20, log_every=5, eval_every=3))
    lines = records(tmp_path, "train")
    assert len(lines) == 4
    assert len({line["tokens_per_second"] for line in lines}) == 1
    assert lines[0]["tokens_per_second"] == lines[0]["tokens"] / 5
    assert [line["seconds"] for line in lines] == [5, 10, 15, 20]


def test_validation_counts_every_token_once(toy: ModuleType, tmp_path: Path) -> None:
    for batch in (None, 1, 3, 50):
        run = tmp_path / str(batch)
        toy.run(toy.config(run, steps=6, eval_batch=batch))
        record = records(run, "validation")[-1]
        codes = toy.ToyData(seed=99).batch(0, np.arange(7), 16)["codes"]
        assert record["count"] == int((codes[:, 1:] < 4).sum())
    losses = [records(tmp_path / str(b), "validation")[-1]["loss"] for b in (None, 1, 3, 50)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


class Spoiled:
    """The toy objective, with a loss that is not finite at some calls."""

    def __init__(self, toy: ModuleType, calls: set[int], value: float = math.nan) -> None:
        self.toy, self.calls, self.value, self.number = toy, calls, value, -1

    def __call__(self, model: Any, batch: Any) -> Any:
        sums = self.toy.objective(model, batch)
        self.number += 1
        return (
            sums._replace(loss_sum=sums.loss_sum * self.value)
            if self.number in self.calls
            else sums
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped(
    toy: ModuleType, tmp_path: Path, value: float
) -> None:
    settings = toy.config(tmp_path, stages=[{"length": 8}], steps=4, max_non_finite=3)
    torch.manual_seed(0)
    model = toy.ToyModel(dropout=0.0)
    result, _ = toy.run(settings, loss=Spoiled(toy, {1}, value), model=model)
    assert result.progress.non_finite == 1
    assert [r["step"] for r in records(tmp_path, "skipped")] == [2]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    # The optimizer made three steps: a skipped one leaves no trace in its moments.
    state = json.loads((tmp_path / "last/training_state/state.json").read_text())
    assert state["progress"]["step"] == 4
    values = load_file(tmp_path / "last/training_state/optimizer.safetensors")
    assert {float(v) for k, v in values.items() if k.endswith("/step")} == {3.0}


def test_too_many_bad_steps_stop_the_run(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.config(
        tmp_path, stages=[{"length": 8}], checkpoint_every=1, max_non_finite=3, optim={"clip": None}
    )
    with pytest.raises(NotFiniteError, match=r"step 8: 3 steps.*lower optim\.lr.*clip.*step-0"):
        toy.run(settings, loss=Spoiled(toy, {2, 5, 7}))
    assert Checkpoints.progress_of(tmp_path / "last").step == 7
    # The count survives a resume: one more bad step and it stops again.
    resumed = toy.config(
        tmp_path, stages=[{"length": 8}], checkpoint_every=1, max_non_finite=3, resume=True
    )
    with pytest.raises(NotFiniteError):
        toy.run(resumed, loss=Spoiled(toy, {0}))


@pytest.mark.parametrize(
    ("fill", "value", "text"),
    [(5, 1.0, "none of the 4 windows"), (0, math.nan, "is nan"), (0, math.inf, "is inf")],
)
def test_a_validation_that_measures_nothing_is_an_error(
    toy: ModuleType, fill: int, value: float, text: str
) -> None:
    class Filled(toy.ToyData):
        def batch(self, stream: int, indices: Any, length: int) -> dict[str, torch.Tensor]:
            return {"codes": torch.full((len(indices), length + 1), fill)}

    windows = evaluation.EvalSet(Filled(), 4, 8, Spoiled(toy, {0} if value != 1 else set(), value))
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(NotFiniteError, match=text):
        evaluation.evaluate(toy.ToyModel(dropout=0.0), windows, 4, fabric)


def test_a_step_without_targets_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    class Nothing(toy.ToyData):
        def batch(self, stream: int, indices: Any, length: int) -> dict[str, torch.Tensor]:
            return {"codes": torch.full((len(indices), length + 1), 5)}

    torch.manual_seed(1)
    model = toy.ToyModel()
    before = weights(model)
    result, _ = toy.run(toy.config(tmp_path, steps=2), data=Nothing(), model=model, validate=False)
    assert result.progress.non_finite == 0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(toy: ModuleType, tmp_path: Path, number: int) -> None:
    whole = toy.run(toy.config(tmp_path / "whole"))[1]
    calls = 0

    def interrupted(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 15:
            os.kill(os.getpid(), number)
        return toy.objective(model, batch)

    previous = signal.getsignal(number)
    result, _ = toy.run(toy.config(tmp_path / "cut"), loss=interrupted)
    assert result.signal == number
    assert signal.getsignal(number) == previous
    stopped = result.progress.step
    assert stopped < 20
    assert Checkpoints.progress_of(tmp_path / "cut/last").step == stopped
    assert equal(whole, toy.run(toy.config(tmp_path / "cut", resume=True))[1])


def test_an_error_in_the_data_ends_the_run(toy: ModuleType, tmp_path: Path) -> None:
    class Broken(toy.ToyData):
        def batch(self, stream: int, indices: Any, length: int) -> dict[str, torch.Tensor]:
            if stream == 1:
                raise RuntimeError("no such window")
            return super().batch(stream, indices, length)

    with pytest.raises(RuntimeError, match="no such window"):
        toy.run(toy.config(tmp_path), data=Broken())


def test_bfloat16_shares_the_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    """Settings of speed never change names: a bf16 checkpoint continues in float32."""
    toy.run(toy.config(tmp_path, steps=8, precision="bf16-mixed"))
    result, model = toy.run(toy.config(tmp_path, steps=12, resume=True))
    assert result.progress.step == 12
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_step_seeds_differ() -> None:
    seeds = {step_seed(s, t, r) for s in range(4) for t in range(50) for r in range(4)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_of_equal_metrics_the_lower_loss_is_the_best(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # (accuracy, loss): a higher one wins whatever its loss; of equal ones the lower loss does.
    seen = [(0.5, 0.9), (0.94, 0.58), (0.94, 0.60), (0.94, 0.35), (0.93, 0.1), (0.94, 0.35)]
    results = iter(seen)

    def evaluated(*_: object) -> evaluation._Evaluation:
        accuracy, loss = next(results)
        return evaluation._Evaluation(loss, {"count": 1.0}, {"accuracy": accuracy})

    monkeypatch.setattr(engine, "evaluate", evaluated)
    progress = Progress()
    log = SimpleNamespace(validation=lambda *_, **__: None)
    settings = toy.config(tmp_path, stages=[{"length": 8}], steps=10, eval_batch=2)
    windows = SimpleNamespace(monitor="accuracy", higher=True)
    best: list[bool] = []
    for _ in seen:
        progress.step += 1
        call: Any = (toy.ToyModel(), windows, settings, None, progress, log)
        best.append(engine._validate(*call))
    assert best == [True, True, False, True, False, False]
    assert (progress.best_step, progress.best_loss, progress.stale) == (4, 0.35, 2)


@pytest.mark.parametrize("precision", ["tf32", "fp16-mixed"])
def test_precisions_of_gpus_are_refused_elsewhere(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"precision is {precision}.*the device is cpu"):
        build_fabric(DeviceConfig(accelerator="cpu"), precision)


def test_whole_models_in_bfloat16(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(toy.config(tmp_path, steps=3, precision="bf16-true"), model=(model := toy.Hyena()))
    kept = {name for name, t in model.state_dict().items() if t.dtype == torch.float32}
    assert kept
    assert all("pos_emb" in name or "modulation" in name for name in kept)
    assert model.model.lm_head.weight.dtype == torch.bfloat16
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in metrics if line["kind"] == "train")


def test_a_scaled_loss_steps_over_what_overflows(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16's scaler on a CPU: two steps overflow, are not counted, and it is resumed."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)

    def fabric(devices: DeviceConfig, precision: str) -> Fabric:
        assert precision == "fp16-mixed"
        return Fabric(
            accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
        )

    monkeypatch.setattr(toy, "build_fabric", fabric)
    result, _ = toy.run(toy.config(tmp_path, steps=12, precision="fp16-mixed"), validate=False)
    assert result.progress.non_finite == 0
    assert scaler.get_scale() < 2.0**18
    skipped = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
               if '"skipped"' in line]  # fmt: skip
    assert 0 < len(skipped) < 12
    saved = Checkpoints.progress_of(Checkpoints(tmp_path).finished()[-1]).scaler
    assert saved is not None
    assert saved["scale"] == scaler.get_scale()

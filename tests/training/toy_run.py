"""A toy model, toy data and a toy run, for the tests of the loop; also a script for subprocesses.

``python toy_run.py '{"output": ..., "steps": ...}'`` trains, prints one JSON line and exits with
128 + signal when a signal stopped it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.settings import DeviceConfig, OptimConfig, Stage, TrainConfig
from megabase.training.engine import FitResult, fit
from megabase.training.evaluation import EvalSet
from megabase.training.process import build_fabric
from megabase.training.run_folder import _start_run, check_run

WORDS = 6  # codes 0-3 are targets, 4 and 5 are read and never counted


class Sums(NamedTuple):
    loss_sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor]


class ToyModel(nn.Module):
    """Predicts the next code from the running mean of embeddings; the head is tied."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.mix = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes)
        places = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        mean = x.cumsum(1) / places
        return self.head(self.norm(self.drop(torch.tanh(self.mix(torch.cat((x, mean), -1))))))

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        mix = set(self.mix.parameters())
        rest = [p for p in self.parameters() if p not in mix]
        return [
            {"name": "rest", "params": rest, "lr": lr, "weight_decay": weight_decay},
            {"name": "mix", "params": list(self.mix.parameters()), "lr": lr, "weight_decay": 0.0},
        ]


class Hyena(nn.Module):
    """A small HyenaDNA that reads and predicts the codes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        shape = {"d_model": width, "n_layer": 3, "max_seq_len": 32, "embed_dropout": 0.0}
        self.model = HyenaDNAForCausalLM(HyenaDNAConfig(**shape))

    def forward(self, codes: Tensor) -> Tensor:
        return self.model(codes + 7).logits[..., 7 : 7 + WORDS]


class ToyData:
    """Window i is a pure function of (stream, i, length); a varying share of it is not counted."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.seen: list[tuple[int, int, int]] = []

    def epoch_size(self, length: int) -> int | None:
        return 40

    def batch(self, stream: int, indices: np.ndarray, length: int) -> dict[str, Tensor]:
        rows = []
        for index in indices.tolist():
            self.seen.append((stream, index, length))
            draw = np.random.default_rng([self.seed, stream, index, length])
            row = (draw.integers(4) + np.arange(length + 1) * draw.integers(1, 4)) % 4
            row[draw.random(length + 1) < draw.random() * 0.8] = 4
            rows.append(row)
        return {"codes": torch.from_numpy(np.stack(rows))}


def objective(model: Any, batch: dict[str, Tensor]) -> Sums:
    codes = batch["codes"]
    logits, targets = model(codes[:, :-1]), codes[:, 1:]
    weights = (targets < 4).float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    counted = nll.view_as(weights) * weights
    return Sums(
        counted.sum(), weights.sum(), {"targets": weights.sum(), "nll": counted.detach().sum()}
    )


def config(output: Path | str, **fields: Any) -> TrainConfig:
    """Settings of a short run; nested fields may be dictionaries."""
    defaults: dict[str, Any] = {
        "stages": [{"length": 8, "micro_batch": 4, "steps": 5}, {"length": 16, "micro_batch": 2}],
        "global_batch": 8,
        "steps": 20,
        "optim": {"lr": 1e-2, "warmup_steps": 3},
        "devices": {"accelerator": "cpu", "devices": 1, "threads": 1},
        "eval_every": 6,
        "checkpoint_every": 4,
        "log_every": 1,
    }
    values = {**defaults, **fields}
    values["stages"] = tuple(
        stage if isinstance(stage, Stage) else Stage(**stage) for stage in values["stages"]
    )
    for name, kind in (("optim", OptimConfig), ("devices", DeviceConfig)):
        if isinstance(values[name], dict):
            values[name] = kind(**{**defaults[name], **values[name]})
    return TrainConfig(output=str(output), **values)


def save_model(folder: Path, state: Any) -> None:
    """Stand-in for the model's own format."""
    torch.save(dict(state), folder / "model.pt")


def run(
    settings: TrainConfig,
    *,
    loss: Callable[..., Any] = objective,
    data: ToyData | None = None,
    model: nn.Module | None = None,
    save: Callable[..., Any] = save_model,
    validate: bool = True,
    **others: Any,
) -> tuple[FitResult, nn.Module]:
    """Train a toy model; give the result and the model."""
    check_run(settings, "")
    fabric = build_fabric(settings.devices, settings.precision)
    fabric.launch()
    torch.manual_seed(settings.seed)
    model = ToyModel() if model is None else model
    data = ToyData() if data is None else data
    if fabric.global_rank == 0:
        _start_run(settings, "{}", {})
    fabric.barrier()
    result = fit(
        model,
        loss,
        data,
        settings,
        fabric=fabric,
        save_model=save,
        validation=EvalSet(ToyData(seed=99), 7, 16, objective) if validate else None,
        **others,
    )
    return result, model


def main() -> int:
    fields = json.loads(sys.argv[1])
    pause = fields.pop("pause", 0.0)
    dropout = fields.pop("dropout", 0.1)
    hyena = fields.pop("hyena", 0)

    def slow(model: Any, batch: dict[str, Tensor]) -> Sums:
        time.sleep(pause)
        return objective(model, batch)

    torch.manual_seed(fields.get("seed", 0))
    print("ready", flush=True)
    model = Hyena(hyena) if hyena else ToyModel(dropout=dropout)
    result, model = run(config(**fields), loss=slow, model=model)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        total = sum(
            float(p.detach().double().sum()) for p in model.parameters() if type(p) is nn.Parameter
        )
        print(json.dumps({"step": result.progress.step, "sum": total}), flush=True)
    return 128 + result.signal if result.signal is not None else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Made-up records of a run and of an evaluation, in the forms that the commands write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

Record = dict[str, Any]


def metrics_records(
    stages: tuple[tuple[int, int], ...] = ((64, 40), (256, 40), (1024, 120)),
) -> list[Record]:
    """Two hundred steps in three stages, with validation every 20 steps."""
    records: list[Record] = []
    tokens = step = 0
    for stage, (length, steps) in enumerate(stages):
        for _ in range(steps):
            step += 1
            tokens += 65_536
            wave = 0.01 * math.sin(1.7 * step)
            loss = 1.27 + 1.1 * math.exp(-step / 6) + 0.12 * math.exp(-step / 60) + wave
            if step % 2 == 0:
                records.append({
                    "kind": "train", "step": step, "stage": stage, "length": length,
                    "loss": loss, "perplexity": math.exp(loss), "lr": 1e-3, "grad_norm": 0.5,
                    "tokens": tokens, "count": 65_536.0, "seconds": step * 0.4,
                    "tokens_per_second": 160_000.0, "memory_mb": 900.0,
                })  # fmt: skip
            if step % 20 == 0:
                held = loss + 0.01 - wave
                records.append({
                    "kind": "validation", "step": step, "loss": held,
                    "perplexity": math.exp(held), "count": 20_000.0, "best": True,
                })  # fmt: skip
    records.append({"kind": "checkpoint", "step": step, "folder": "step-00000200"})
    return records


def measured(perplexity: float, targets: int = 60_000, whole: bool = True) -> Record:
    nats = math.log(perplexity)
    return {
        "targets": targets, "nats": nats + 0.0004 if whole else None, "nats_acgt": nats,
        "perplexity_se": 0.012 if whole else None, "perplexity_acgt_se": 0.012,
        "perplexity": math.exp(nats + 0.0004) if whole else None, "perplexity_acgt": perplexity,
    }  # fmt: skip


def baseline(name: str, order: int | None, value: float, fitted: bool = False) -> Record:
    return {
        "name": name, "order": order, "rates": [] if order is None else [8.0] * (order + 1),
        "fitted": fitted, "measure": measured(value, whole=False),
        "context_measure": measured(value - 0.01, whole=False),
        "margin_nats": math.log(value / 3.337), "margin_nats_se": 0.0006,
    }  # fmt: skip


def evaluation_record() -> Record:
    """An evaluation whose model beats every baseline."""
    baselines = [baseline("uniform", None, 4.0)]
    fixed = [
        3.947,
        3.83,
        3.802,
        3.788,
        3.766,
        3.731,
        3.67,
        3.599,
        3.523,
        3.461,
        3.433,
        3.463,
        3.541,
    ]
    fitted = [*fixed[:8], 3.522, 3.457, 3.407, 3.374, 3.353]
    baselines += [baseline(f"Markov order {k}", k, value) for k, value in enumerate(fixed)]
    baselines += [baseline(f"Markov order {k}, fitted", k, v, True) for k, v in enumerate(fitted)]
    context = [
        {"context": c, "context_min": c - 15, "measure": measured(p, 32_768),
         "saved_nats": math.log(3.512 / p), "saved_nats_se": 0.001}
        for c, p in ((64, 3.512), (128, 3.431), (256, 3.377), (512, 3.341), (1024, 3.322))
    ]  # fmt: skip
    return {
        "format": 1, "kind": "evaluation", "model": "run", "objective": "causal",
        "genome": "toy", "genome_checksum": "ab" * 32, "regions": ["chr20:50,000,001-55,000,000"],
        "region_count": 1, "region_bases": 5_000_000, "window": 1024, "stride": 1024,
        "windows": 4_883, "train_overlap": 0, "skipped": 12, "overall": measured(3.337, 4_999_988),
        "by_contig": {"chr20": measured(3.337, 4_999_988)},
        "by_soft_mask": {"upper case": measured(3.61, 2_400_000),
                         "soft-masked": measured(3.10, 2_599_988)},
        "context": context, "baselines": baselines, "baseline_bases": 54_505_436, "seconds": 92.1,
        "version": "0.1.0",
    }  # fmt: skip


def write_run(folder: Path, *, evaluation: bool = True) -> Path:
    """A run folder with everything the page reads."""
    checkpoint = folder / "checkpoints" / "step-00000200"
    checkpoint.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in metrics_records())
    )
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "data.json").write_text(json.dumps(data_record()))
    (folder / "environment.json").write_text(json.dumps(environment_record()))
    (checkpoint / "config.json").write_text(json.dumps({
        "model_type": "hyenadna", "d_model": 128, "n_layer": 2, "max_length": 1026}))  # fmt: skip
    weights = {"embedding": np.zeros((16, 128), np.float32), "filter": np.zeros((5, 5), np.float32)}
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    for name in ("best", "last"):
        (folder / name).symlink_to(checkpoint.relative_to(folder), target_is_directory=True)
    if evaluation:
        (folder / "evaluation.json").write_text(json.dumps(evaluation_record()))
    return folder


def data_record() -> Record:
    def part(bases: int, *regions: str) -> Record:
        return {"bases": bases, "regions": list(regions), "number_of_regions": len(regions)}

    return {
        "genome": {"name": "human chr20", "path": "/data/chr20.mb", "sha256": "ab" * 32},
        "contigs": {"chr20": 63_025_520}, "windows": "random",
        "splits": {
            "train": part(53_025_520, "chr20:1-45,000,000", "chr20:55,000,001-63,025,520"),
            "validation": part(5_000_000, "chr20:45,000,001-50,000,000"),
            "test": part(5_000_000, "chr20:50,000,001-55,000,000"),
        },
        "validation": {"windows": 256, "length": 1024},
    }  # fmt: skip


def environment_record() -> Record:
    return {
        "megabase": "0.1.0", "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "python": "3.11.2", "platform": "Linux", "processor": "Some CPU", "cores": 2,
        "threads": 2, "devices": [], "git": {"commit": "0123456789abcdef", "changed": False},
        "command": ["megabase", "pretrain", "--config", "recipe.yaml"],
    }  # fmt: skip


CONFIG = """\
output: runs/toy
stages:
- {length: 64, micro_batch: 64, steps: 40, tokens: null, epochs: null}
- {length: 256, micro_batch: 64, steps: 40, tokens: null, epochs: null}
- {length: 1024, micro_batch: 64, steps: null, tokens: null, epochs: null}
global_batch: 64
global_batch_tokens: null
steps: 200
tokens: null
optim: {lr: 0.002, weight_decay: 0.1, schedule: cosine}
precision: fp32
seed: 0
data: {genome: /data/chr20.mb, windows: random, reverse_complement: 0.5}
model: {preset: null, family: hyenadna, d_model: 128, n_layer: 2}
objective: {name: causal_lm, soft_mask_weight: 1.0}
"""


@pytest.fixture
def metrics() -> list[Record]:
    return metrics_records()


@pytest.fixture
def evaluation() -> Record:
    return evaluation_record()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")

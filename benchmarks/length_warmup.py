r"""Sequence-length warm-up against a fixed length, at the same number of tokens.

Both runs have the same seed, model, optimizer, tokens per step and number of steps; they differ in
the length of the sequences alone. Prints a table and writes JSON::

    python benchmarks/length_warmup.py --genome chr20.mb --validation 20:45,000,001-50,000,000 \
        --test 20:50,000,001-55,000,000 --output runs/warmup --json warmup.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import torch


def last_lines(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Give the last training line and the last validation line of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"][-1]
    valid = [row for row in rows if row["kind"] == "validation"][-1]
    return train, valid


def pretrain(arguments: argparse.Namespace, name: str, stages: list[dict[str, int]]) -> dict:
    """Run ``megabase pretrain`` and give what it measured."""
    run = Path(arguments.output) / name
    recipe = {
        "data": {
            "genome": arguments.genome,
            "validation": [arguments.validation],
            "test": [arguments.test],
            "eval_windows": max(1, 262_144 // arguments.length),
        },
        "model": {"overrides": {"embed_dropout": 0.0}},
        "stages": stages,
        "global_batch_tokens": arguments.step_tokens,
        "tokens": arguments.tokens,
        "optim": {"lr": arguments.lr, "betas": [0.9, 0.95], "warmup_fraction": 0.02},
        "eval_every": 10**9,
        "checkpoint_every": 10**9,
        "seed": arguments.seed,
        "output": str(run),
    }
    config = Path(arguments.output) / f"{name}.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    subprocess.run(
        [sys.executable, "-m", "megabase.cli.main", "pretrain", "--config", str(config)], check=True
    )
    train, valid = last_lines(run)
    return {
        "name": name,
        "stages": stages,
        "tokens": train["tokens"],
        "seconds": train["seconds"],
        "tokens_per_second": train["tokens"] / train["seconds"],
        "validation_perplexity": math.exp(valid["loss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genome", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--json")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--first", type=int, default=256, help="length of the first stage")
    parser.add_argument("--step-tokens", type=int, default=32_768)
    parser.add_argument("--tokens", type=int, default=6_553_600)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    lengths = [arguments.first]
    while lengths[-1] < arguments.length:
        lengths.append(2 * lengths[-1])
    share = arguments.tokens // arguments.step_tokens // len(lengths)
    warm: list[dict[str, int]] = [
        {"length": length, "micro_batch": arguments.step_tokens // length, "steps": share}
        for length in lengths[:-1]
    ]
    last = {"length": arguments.length, "micro_batch": arguments.step_tokens // arguments.length}
    rows = [
        pretrain(arguments, "fixed", [last]),
        pretrain(arguments, "warmup", [*warm, last]),
    ]
    print("\n| run | lengths | tokens | seconds | tokens/s | validation perplexity |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        path = " -> ".join(f"{stage['length']:,}" for stage in row["stages"])
        print(
            f"| {row['name']} | {path} | {row['tokens']:,} | {row['seconds']:.0f} "
            f"| {row['tokens_per_second']:,.0f} | {row['validation_perplexity']:.3f} |"
        )
    print(
        f"\ntime of warm-up / fixed: {rows[1]['seconds'] / rows[0]['seconds']:.2f}, both validated "
        f"on the same windows of {arguments.length:,} positions; {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

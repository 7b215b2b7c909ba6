"""Kill a pretraining run at random moments, resume it, and compare with an undisturbed one.

    python benchmarks/kill_resume.py --runs 20

A tiny HyenaDNA is pretrained on a made-up genome with length warm-up, dropout, random windows and
reverse complements, once undisturbed and N times with a SIGKILL at a random moment: after a step
drawn from the whole run and a delay of up to two steps. Checkpoints are frequent, so that a good
share of the kills falls into one being written. After each kill every checkpoint with a final name
is read; then the run is resumed to its end. Weights, optimizer state and recorded losses must equal
the undisturbed run's bit for bit. Exit status 1 if any does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file

from megabase.genome.store import Genome
from megabase.training.checkpoint import Checkpoints

FILES = (
    "model.safetensors",
    "training_state/model.safetensors",
    "training_state/optimizer.safetensors",
)


def recipe(folder: Path, steps: int) -> Path:
    letters = np.frombuffer(b"ACGTacgtN", dtype=np.uint8)
    codes = np.random.default_rng(0).choice(9, 200_000, p=[0.15] * 4 + [0.0975] * 4 + [0.01])
    (folder / "made_up.fa").write_text(f">chr1\n{letters[codes].tobytes().decode()}\n")
    Genome.build([folder / "made_up.fa"], folder / "made_up.mb")
    values = {
        "data": {"genome": str(folder / "made_up.mb"), "validation": ["chr1:1-20,000"]},
        "model": {"d_model": 16, "n_layer": 2, "overrides": {"embed_dropout": 0.1}},
        "stages": [
            {"length": 64, "micro_batch": 4, "steps": steps // 2},
            {"length": 256, "micro_batch": 4},
        ],
        "global_batch": 8,
        "steps": steps,
        "optim": {"lr": 2e-3},
        "devices": {"accelerator": "cpu", "devices": 1, "threads": 1},
        "eval_every": 10,
        "checkpoint_every": 2,
        "keep": 2,
        "log_every": 1,
        "output": str(folder / "run"),
    }
    values["data"]["eval_windows"] = 16
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(path: Path, output: Path, *switches: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "megabase.cli.main", "pretrain", "--config", str(path)]
    return subprocess.Popen(
        [*command, "--output", str(output), *switches],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run ended with status {process.returncode}: {err.decode()}")


def losses(run: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["kind"], r["step"], r["loss"]) for r in lines if r["kind"] != "checkpoint"]


def wait_until_it_trains(run: Path, process: subprocess.Popen[bytes]) -> None:
    while not (run / "metrics.jsonl").exists():
        if process.poll() is not None:
            finish(process)
            raise SystemExit("the run ended before it could be killed")
        time.sleep(0.005)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> float:
    """Wait until so many steps are recorded; give the seconds per step."""
    began, path = time.monotonic(), run / "metrics.jsonl"
    while (done := path.read_text().count('"kind": "train"')) < step and process.poll() is None:
        time.sleep(0.005)
    return (time.monotonic() - began) / max(1, done)


def one_kill(
    path: Path, run: Path, whole: Path, step: int, fraction: float
) -> dict[str, object] | None:
    """Kill and resume a run; None when it had ended before the kill."""
    process = start(path, run)
    wait_until_it_trains(run, process)
    pace = wait_for_step(run, step, process)
    time.sleep(2 * fraction * pace)
    if process.poll() is not None:
        finish(process)
        return None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    checkpoints = Checkpoints(run).finished()
    for folder in checkpoints:
        Checkpoints.progress_of(folder)
        for name in FILES:
            load_file(folder / name)
    # Now, since the resumed run deletes older checkpoints.
    resumed_from = Checkpoints.progress_of(checkpoints[-1]).step if checkpoints else 0
    partial = len(list((run / "checkpoints").glob(".partial-*")))
    finish(start(path, run, "--resume"))
    equal = all(
        (run / "last" / name).read_bytes() == (whole / "last" / name).read_bytes() for name in FILES
    )
    return {
        "killed_after_step": step,
        "resumed_from_step": resumed_from,
        "checkpoints": len(checkpoints),
        "half_written": partial,
        "weights_and_optimizer_equal": equal,
        "losses_equal": losses(run) == losses(whole),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the table here as well")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = recipe(folder, options.steps)
        whole = folder / "whole"
        process = start(path, whole)
        wait_until_it_trains(whole, process)
        finish(process)
        while len(rows) < options.runs:
            run = folder / "killed"
            row = one_kill(path, run, whole, draw.randrange(options.steps), draw.random())
            if row is not None:
                rows.append(row)
                texts = [f"{key} {value}" for key, value in row.items()]
                print(f"{len(rows):>3}  {'  '.join(texts)}", flush=True)
            shutil.rmtree(run)
    good = sum(bool(row["weights_and_optimizer_equal"] and row["losses_equal"]) for row in rows)
    print(f"{good} of {len(rows)} resumed runs equal the undisturbed one bit for bit")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if good == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

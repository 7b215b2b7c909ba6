r"""Train every system from fresh weights on one labeled table, with the same budget.

CNN, DNABERT, GPT, DeepSEA, BigBird, Mamba, three kinds of Caduceus, HyenaDNA, HyenaDNA over 6-mers
and two bidirectional HyenaDNA, all through the same call as ``megabase finetune``. Writes
``comparison.md`` and ``comparison.json`` into the output folder. Runs that are finished there are
not repeated, so an interrupted comparison goes on where it stopped::

    python benchmarks/compare_systems.py --resplit nontata/test.csv.gz --epochs 3 --output runs/cmp
    python benchmarks/compare_systems.py --train gue/tf_0 --seconds-per-system 60 --output runs/tf

    python benchmarks/compare_systems.py --resplit nontata/test.csv.gz --output runs/cmp \
      --full-steps 10 --throughput 3

``--full-steps`` also trains the three systems of 50 million parameters and more at their published
width, for so many steps only. ``--throughput`` times a few steps of every system in turns, so many
rounds, and puts the medians into the table: the runs themselves are too far apart in time for their
speeds to be compared on a machine that others use.

A file that is split here again (``--resplit``, 75 to 25, class by class) is no published test set:
its scores compare with each other and with nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from megabase.data.label_files import read_text
from megabase.data.labeled import label_splits, split_rows
from megabase.errors import MegabaseError
from megabase.genome import alphabet
from megabase.genome.files import without_nan, write_json
from megabase.settings import DeviceConfig, HeadConfig, OptimConfig
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.finetune import FinetuneResult, finetune, finetune_seeds
from megabase.tasks.run import spread
from megabase.training.run_folder import environment

_PROBE_STEPS = 8


@dataclass(frozen=True)
class System:
    """One row of the comparison."""

    name: str
    start: dict[str, Any]
    """Fields of the fine-tuning settings that say what the model is."""
    lr: float
    note: str = ""
    full: dict[str, Any] | None = None
    """Fields of the published width, for --full-steps."""
    head: HeadConfig = field(default_factory=HeadConfig)
    steps: int | None = None
    """Steps of this system alone."""


_BOTH_STRANDS = HeadConfig(reverse_complement=0.5, strand_average=True)
_NARROW = "narrow: published with"
SYSTEMS = (
    System("CNN", {"family": "cnn", "overrides": {"variant": "caduceus"}}, 1e-3, "Caduceus's form"),
    System(
        "DNABERT 6-mer", {"preset": "dnabert-6-narrow"}, 5e-4, f"{_NARROW} 89 M",
        full={"preset": "dnabert-6"},
    ),
    System("GPT", {"family": "gpt"}, 6e-4),
    System(
        "DeepSEA", {"preset": "deepsea-narrow"}, 1e-3, f"{_NARROW} 53 M; averages strands in tests",
        full={"preset": "deepsea"},
    ),
    System(
        "BigBird", {"preset": "bigbird-narrow"}, 5e-4,
        f"{_NARROW} 113 M; byte pairs of the training rows", full={"preset": "bigbird-4096"},
    ),
    System("Mamba", {"family": "mamba"}, 1e-3),
    System(
        "Caduceus w/o equivariance", {"family": "caduceus"}, 1e-3,
        "reverse complements in training", head=HeadConfig(reverse_complement=0.5),
    ),
    System(
        "Caduceus-PH", {"family": "caduceus"}, 1e-3,
        "reverse complements in training, strands averaged", head=_BOTH_STRANDS,
    ),
    System("Caduceus-PS", {"family": "caduceus", "overrides": {"rcps": True}}, 1e-3, "equivariant"),
    System("HyenaDNA", {"family": "hyenadna"}, 6e-4),
    System(
        "HyenaDNA 6-mer", {"family": "hyenadna", "tokenizer": "6mer"}, 6e-4,
        "6-mers side by side: a sixth of the tokens",
    ),
    System(
        "HyenaDNA bidirectional",
        {"family": "hyenadna", "overrides": {"bidirectional": "two_sided"}}, 6e-4, "corrected",
    ),
    System(
        "HyenaDNA bidirectional, published",
        {"family": "hyenadna", "overrides": {"bidirectional": "published"}}, 6e-4, "as published",
    ),
)  # fmt: skip


def resplit(file: str, seed: int, folder: Path) -> tuple[str, str]:
    """Split a file 75 to 25 into ``train.csv`` and ``test.csv``; give their paths."""
    rows = label_splits({"train": read_text(file)})["train"]
    kept, cut = split_rows(rows.labels, 0.25, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", kept), ("test", cut)):
        lines = [
            f"{alphabet.decode(rows.sequence(i))},{rows.text.labels[int(rows.rows[i])][0]}\n"
            for i in np.asarray(part).tolist()
        ]
        (folder / f"{name}.csv").write_text("sequence,label\n" + "".join(lines))
    return str(folder / "train.csv"), str(folder / "test.csv")


def full_size(system: System, steps: int) -> System:
    """Give the system at its published width, for so many steps."""
    assert system.full is not None
    return replace(
        system, name=f"{system.name}, published width", start=system.full, full=None,
        note=f"{steps} steps only", steps=steps,
    )  # fmt: skip


def settings(system: System, options: argparse.Namespace) -> FinetuneConfig:
    return FinetuneConfig(
        **system.start,
        train=options.train,
        valid=options.valid,
        test=options.test,
        output=str(Path(options.output) / folder_name(system)),
        epochs=options.epochs,
        steps=system.steps or options.steps,
        global_batch=options.batch,
        optim=OptimConfig(lr=options.lr or system.lr, warmup_fraction=0.1),
        head=system.head,
        devices=DeviceConfig(threads=options.threads),
        log_every=50,
        resume=True,
        overwrite=False,
    )


def folder_name(system: System) -> str:
    return system.name.lower().replace(" ", "-").replace("/", "").replace(",", "")


def probe(config: FinetuneConfig, steps: int = _PROBE_STEPS) -> FinetuneResult:
    """Train a few steps in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(replace(
            config, steps=steps, output=f"{folder}/run", valid=None, test=None, resume=False,
            table=replace(config.table, validation_fraction=0.0),
        ))  # fmt: skip
    if result is None or result.signal is not None:
        raise KeyboardInterrupt
    return result


def steps_for(config: FinetuneConfig, seconds: float) -> int:
    """Time a few steps, and give how many fit into so many seconds of training."""
    result = probe(config)
    return max(1, round(seconds / result.training_seconds * result.steps))


def throughput(systems: Sequence[System], options: argparse.Namespace) -> dict[str, list[float]]:
    """Time all systems in turns; give the median tokens and bases in a second of each."""
    found: dict[str, list[list[float]]] = {system.name: [] for system in systems}
    for _ in range(options.throughput):
        for system in systems:
            steps = 1 if system.steps else _PROBE_STEPS
            result = probe(settings(system, options), steps)
            found[system.name].append([result.tokens_per_second, result.bases_per_second])
    medians = {name: np.median(values, axis=0).tolist() for name, values in found.items()}
    return {name: list(map(float, pair)) for name, pair in medians.items()}


def run(system: System, options: argparse.Namespace, console: Console) -> list[FinetuneResult]:
    config = settings(system, options)
    saved = Path(config.output) / "steps.json"
    if options.seconds_per_system is not None:
        if not saved.is_file():
            steps = steps_for(config, options.seconds_per_system)
            saved.parent.mkdir(parents=True, exist_ok=True)
            write_json(saved, {"seconds": options.seconds_per_system, "steps": steps})
        config = replace(config, steps=json.loads(saved.read_text())["steps"])
    return finetune_seeds(config, options.seeds, console=console)


def markdown(rows: Sequence[dict[str, Any]], metrics: Sequence[str], head: str) -> str:
    """Write the table."""
    columns = ["system", "parameters", "training tokens/s", "bases/s", "steps", "seconds",
               *(f"test {name}" for name in metrics), "lr", "note"]  # fmt: skip
    lines = [head, "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        if "error" in row:
            cells = [row["name"], *[""] * (len(columns) - 2), f"not run: {row['error']}"]
        else:
            figures = []
            for name in metrics:
                mean, deviation = row["test"][name]
                both = f"{mean:.4f}" + ("" if deviation is None else f" ({deviation:.4f})")
                figures.append(both)
            cells = [
                row["name"], f"{row['parameters']:,}", f"{row['tokens_per_second']:,.0f}",
                f"{row['bases_per_second']:,.0f}", f"{row['steps']:,}",
                f"{row['training_seconds']:,.0f}", *figures, f"{row['lr']:g}", row["note"],
            ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summarize(
    system: System, results: Sequence[FinetuneResult], options: argparse.Namespace
) -> dict[str, Any]:
    first = results[0]
    return {
        "name": system.name,
        "note": system.note,
        "lr": options.lr or system.lr,
        "parameters": first.parameters,
        "steps": first.steps,
        "tokens_per_second": sum(r.tokens_per_second for r in results) / len(results),
        "bases_per_second": sum(r.bases_per_second for r in results) / len(results),
        "training_seconds": sum(r.training_seconds for r in results) / len(results),
        "test": {name: spread([r.test[name] for r in results]) for name in first.test},
        "runs": [vars(result) for result in results],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", help="file, or folder with all splits")
    parser.add_argument("--valid")
    parser.add_argument("--test")
    parser.add_argument("--resplit", help="one file, split 75 to 25 into train and test")
    parser.add_argument("--resplit-seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--steps", type=int, help="instead of epochs")
    parser.add_argument("--seconds-per-system", type=float, help="instead of epochs, by a probe")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, help="for every system; else the one of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", help="words of the names of the systems to run")
    parser.add_argument("--full-steps", type=int, help="steps of the published widths; none else")
    parser.add_argument("--throughput", type=int, help="rounds of timing all systems in turns")
    options = parser.parse_args()
    if (options.train is None) == (options.resplit is None):
        parser.error("give --train or --resplit")
    output = Path(options.output)
    source = options.train or options.resplit
    if options.resplit:
        options.train, options.test = resplit(
            options.resplit, options.resplit_seed, output / "data"
        )
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    wanted = [
        s
        for s in SYSTEMS
        if not options.only or any(word.lower() in s.name.lower() for word in options.only)
    ]
    if options.full_steps:
        wanted += [full_size(s, options.full_steps) for s in wanted if s.full is not None]
    speeds: dict[str, list[float]] = {}
    if (saved := output / "throughput.json").is_file():
        speeds = json.loads(saved.read_text())
    if options.throughput:
        speeds = {**speeds, **throughput(wanted, options)}
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "throughput.json", speeds)
    for system in wanted:
        console.rule(system.name)
        try:
            results = run(system, options, console)
        except (MegabaseError, ImportError, RuntimeError, TypeError, ValueError) as error:
            rows.append({"name": system.name, "error": " ".join(str(error).split())[:200]})
            console.print(f"not run: {error}", markup=False)
        else:
            if any(result.signal is not None for result in results):
                return 130
            names = names or [name for name in results[0].test if name != "loss"]
            rows.append(summarize(system, results, options))
            if system.name in speeds:
                both = zip(
                    ("tokens_per_second", "bases_per_second"), speeds[system.name], strict=True
                )
                rows[-1].update(both)
        head = (
            f"Data: `{Path(source).name}`"
            + (f", split 75 to 25 by seed {options.resplit_seed}" if options.resplit else "")
            + f". From fresh weights, seeds {options.seeds}, batch {options.batch}, "
            f"{torch.get_num_threads()} threads; mean (standard deviation)."
            + (" Speeds are medians of steps timed in turns." if speeds else "")
        )
        output.mkdir(parents=True, exist_ok=True)
        text = markdown(rows, names, head)
        (output / "comparison.md").write_text(text)
        record = {"head": head, "options": vars(options), "systems": rows}
        write_json(output / "comparison.json", without_nan({**record, **environment()}))
    print((output / "comparison.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

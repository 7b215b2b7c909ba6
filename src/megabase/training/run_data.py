"""Genome and split of a pretraining run, for models in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from megabase.data.regions import Regions, read_intervals, regions_of, split_genome
from megabase.errors import ConfigError, InputError
from megabase.genome.store import Genome
from megabase.training.run_folder import RunFolder
from megabase.untrusted import parsing

_LEVELS = 3
"""Folders to look in, from the model up: run/checkpoints/step-00000100."""


class RunData(RunFolder):
    """The folder of a run that was trained on a genome."""

    @cached_property
    def data(self) -> dict[str, Any]:
        """Contents of ``data.json``."""
        return self.record("data.json")

    @property
    def genome_path(self) -> Path:
        """Where the genome store was."""
        return Path(self.data["genome"]["path"])

    @property
    def genome_checksum(self) -> str:
        """sha256 of the genome."""
        return str(self.data["genome"]["sha256"])

    @property
    def longest(self) -> int | None:
        """Tokens of the longest training windows; None when the run does not say."""
        with parsing(self.path / "config.yaml", self.error):
            lengths = [stage.get("length") for stage in self.config().get("stages") or []]
            return max((int(length) for length in lengths if length), default=None)

    def regions(self, store: Genome, part: Literal["train", "validation", "test"]) -> Regions:
        """Give the regions of a part of the split; empty when the run had no such part.

        An InputError when `store` is not the genome of the run, or the split cannot be worked out
        again.
        """
        if store.checksum != self.genome_checksum:
            raise self.error(
                f"{store.path} is not the genome of the run {self.path}: its sha256 is "
                f"{store.checksum[:12]}, that of the run {self.genome_checksum[:12]}"
            )
        with parsing(self.path / "data.json", self.error):
            split = self.data["splits"][part]
            if len(split["regions"]) == split["number_of_regions"]:
                return regions_of(store, split["regions"])
            # The record lists only the beginning: the split is worked out again.
            settings: dict[str, Any] = self.config()["data"]
            if settings["windows"] == "intervals" and part == "train":
                found = Regions.of(*read_intervals(store, settings["intervals"], "train"))
            else:
                names = ("include", "exclude", "validation", "test")
                found = split_genome(store, **{key: settings[key] for key in names})[part]
            if found.total != split["bases"]:
                raise self.error(
                    f"the {part} regions of the run {self.path} cannot be worked out again from "
                    f"its config.yaml: found {found.total:,} bases, expected {split['bases']:,}; "
                    "name them yourself (a BED file)"
                )
            return found


def find_run(folder: str | Path) -> RunData | None:
    """Find the run of a model: from its run folder, or a checkpoint inside one.

    None when there is none, or when it was trained on labeled sequences, not on a genome.
    """
    start = Path(folder).expanduser().absolute()
    if not start.is_dir():
        return None
    for path in (start, start.resolve(), *start.resolve().parents[: _LEVELS - 1]):
        if all((path / name).is_file() for name in ("data.json", "config.yaml")):
            run = RunData(path, InputError)
            with parsing(path / "data.json", InputError):
                if isinstance(run.data, dict) and "kind" in run.data and "genome" not in run.data:
                    return None  # labels of a kind: a fine-tuning
                _ = run.data["genome"]["sha256"], run.data["splits"]["train"]
            return run
    return None


def evaluated_regions(
    run: RunData | None,
    genome: Genome | None,
    regions: Iterable[str] | None,
    train_regions: Iterable[str] | None,
) -> tuple[Genome, Regions, Regions | None]:
    """Settle the genome, the regions to evaluate on, and the training regions where known.

    Parameters
    ----------
    run
        Run of the model, whose genome and split are taken where others are not named.
    genome
        Another genome; of the run's split nothing is then taken, unless it holds the same bases.
    regions, train_regions
        Contigs, region strings or BED files.

    Raises
    ------
    ConfigError
        When there is no genome, or nothing says where to evaluate.
    """
    own = run
    if genome is None:
        if run is None:
            raise ConfigError("genome=... is missing: name a store made by `megabase genome build`")
        genome = Genome(run.genome_path)
    elif run is not None and genome.checksum != run.genome_checksum:
        own = None  # another genome on purpose: the split of the run says nothing about it
    if regions:
        found = regions_of(genome, regions)
    elif own is None:
        raise ConfigError("regions=... is missing: name contigs, regions or BED files")
    else:
        found = own.regions(genome, "test")
        if not len(found):
            raise ConfigError(f"the run {own.path} held nothing out for test; give regions=...")
    if train_regions:
        return genome, found, regions_of(genome, train_regions)
    return genome, found, None if own is None else own.regions(genome, "train")

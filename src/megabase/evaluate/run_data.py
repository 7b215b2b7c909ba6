"""What a training run knows about its data: genome and split, for models in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megabase.data.regions import Regions
from megabase.data.split import read_intervals, regions_of, split_genome
from megabase.errors import InputError
from megabase.genome.store import GenomeStore
from megabase.training.run_folder import RunFolder
from megabase.untrusted import parsing

__all__ = ["RunData", "find_run"]

Part = Literal["train", "validation", "test"]
_MARKS = ("data.json", "config.yaml")
_LEVELS = 3  # run/checkpoints/step-00000100


@dataclass(frozen=True)
class RunData:
    """Genome and split of a run.

    Parameters
    ----------
    folder
        The run folder.
    record
        Contents of ``data.json``.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def genome_path(self) -> Path:
        """Where the genome store was."""
        return Path(self.record["genome"]["path"])

    @property
    def genome_checksum(self) -> str:
        """sha256 of the genome."""
        return str(self.record["genome"]["sha256"])

    @property
    def longest(self) -> int | None:
        """Tokens of the longest training windows; None when the run does not say."""
        with parsing(self.folder / "config.yaml", InputError):
            lengths = [stage.get("length") for stage in self._settings.get("stages") or []]
            return max((int(length) for length in lengths if length), default=None)

    @property
    def _settings(self) -> dict[str, Any]:
        return RunFolder(self.folder, InputError).config()

    def regions(self, store: GenomeStore, part: Part) -> Regions:
        """Give the positions of a part of the split.

        Parameters
        ----------
        store
            The genome of the run.
        part
            Which part.

        Returns
        -------
        Regions
            Empty when the run had no such part.

        Raises
        ------
        InputError
            When `store` holds another genome than the run was trained on.
        """
        if store.checksum != self.genome_checksum:
            raise InputError(
                f"{store.path} is not the genome of the run {self.folder}: its sha256 is "
                f"{store.checksum[:12]}, that of the run {self.genome_checksum[:12]}"
            )
        with parsing(self.folder / "data.json", InputError):
            split = self.record["splits"][part]
            if len(split["regions"]) == split["number_of_regions"]:
                return regions_of(store, split["regions"])
            return self._from_settings(store, part)

    def _from_settings(self, store: GenomeStore, part: Part) -> Regions:
        """Work a split out again of which the record lists only the beginning."""
        data: dict[str, Any] = self._settings["data"]
        if data["windows"] == "intervals" and part == "train":
            found = Regions.of(*read_intervals(store, data["intervals"], "train"))
        else:
            places = {key: data[key] for key in ("include", "exclude", "validation", "test")}
            found: Regions = getattr(split_genome(store, **places), part)
        expected = self.record["splits"][part]["bases"]
        if found.total != expected:
            raise InputError(
                f"the {part} regions of the run {self.folder} cannot be worked out again from its "
                f"config.yaml: found {found.total:,} bases, expected {expected:,}; name them "
                "yourself (a BED file)"
            )
        return found


def find_run(folder: str | Path) -> RunData | None:
    """Find the run that a model belongs to.

    Parameters
    ----------
    folder
        A run folder, or a checkpoint inside one.

    Returns
    -------
    RunData or None
        None when there is none, or when it was trained on labelled sequences, not on a genome.

    Raises
    ------
    InputError
        When the run's ``data.json`` is broken.
    """
    start = Path(folder).expanduser().absolute()
    if not start.is_dir():
        return None
    for place in (start, start.resolve(), *start.resolve().parents[: _LEVELS - 1]):
        if all((place / name).is_file() for name in _MARKS):
            path = place / "data.json"
            record = RunFolder(place, InputError).record(path.name)
            with parsing(path, InputError):
                if isinstance(record, dict) and "kind" in record and "genome" not in record:
                    return None  # labels of a kind: a fine-tuning
                _ = record["genome"]["sha256"], record["splits"]["train"]
            return RunData(place, record)
    return None

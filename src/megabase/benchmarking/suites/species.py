"""Which species a segment of DNA comes from (HyenaDNA, section 4.5): accuracy at growing length.

Genomes are FASTA files by species. Samples are segments at random places of the parts of a split,
the same number for every species, and a task for each length. Training, validation and test come
from different chromosomes (the published ones), from different ends of every record, from different
records, or from different blocks of an alignment.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megabase.benchmarking.config import BenchmarkConfig, SpeciesConfig
from megabase.benchmarking.suites import Suite, Task, choose_tasks, published
from megabase.data.hashing import Draws
from megabase.data.labeled import LabelTable, label_splits
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.genome.fasta import Header, read_fasta

_INSTRUCTIONS = (
    "Name --data (a FASTA with one record for each species, or a folder of SPECIES.fa[.gz]) or "
    "--species.genomes '{human: FOLDER_OR_FASTA, ...}'. The published task takes T2T-CHM13v2.0, "
    "mLemCat1.pri, A_J_v3, USMARCv1.0 and ASM2306583v1 from NCBI, one FASTA for each chromosome"
)
"""Shown to users whose genomes are missing."""
_PARTS = ("train", "valid", "test")  # in this order: the number of a part seeds its samples
_FASTA = re.compile(r"\.(fa|fna|fasta)(\.gz)?$", re.IGNORECASE)
"""Endings that are cut off to name a species."""
_PUBLISHED_SPECIES = {"human", "lemur", "mouse", "pig", "hippo"}
"""Species of the HyenaDNA paper: with others its metrics say nothing."""
_PUBLISHED_LENGTHS = (1_024, 32_768, 250_000, 450_000, 1_000_000)  # bases of a sample in its tables

Codes = npt.NDArray[np.uint8]


def _species_split(last: int, *others: str, second: Sequence[str] = ("2",)) -> dict[str, list[str]]:
    valid, test = ["1", "3", "12", "13"], ["5", "7", "9", "10", "11"]
    middle = [str(number) for number in range(4, last + 1)]
    train = [*second, *(name for name in middle if name not in {*valid, *test}), *others]
    return {"train": train, "valid": valid, "test": test}


_GREAT_APE = _species_split(22, "X", "Y", second=("2A", "2B"))
"""Human chromosome 2 is two chromosomes in the other great apes."""
SPECIES_SPLITS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "human": _species_split(22, "X", "Y"), "lemur": _species_split(27, "X", "Y"),
    "goat": _species_split(29, "X", "Y"), "sheep": _species_split(26, "X", "Y"),
    "pig": _species_split(18, "X", "Y"), "mouse": _species_split(19, "X"),
    "gorilla": _GREAT_APE, "orangutan": _GREAT_APE, "chimpanzee": _GREAT_APE,
    "hippo": _species_split(17, "X"),
}  # fmt: skip
"""Chromosomes of each split of the species task, by species (HyenaDNA repository)."""


class _Record(NamedTuple):
    """A record of a genome: its name, what follows it, and its bases."""

    name: str
    description: str
    codes: Codes


def _records(path: Path) -> list[_Record]:
    """Read the records of a FASTA, or of all of them in a folder."""
    files = sorted(p for p in path.iterdir() if _FASTA.search(p.name)) if path.is_dir() else [path]
    found: list[tuple[str, str, list[bytes]]] = []
    for file in files:
        for item in read_fasta(file):
            if isinstance(item, Header):
                # In a folder of chromosomes the file says which one it is.
                name = _FASTA.sub("", file.name) if path.is_dir() else item.name
                found.append((name, item.description, []))
            else:
                found[-1][2].append(item.codes)
    if not found:
        raise InputError(f"{path} holds no FASTA (.fa, .fna, .fasta, .gz too)")
    codes = (np.frombuffer(b"".join(parts), np.uint8) for *_, parts in found)
    base = np.uint8(alphabet.BASE_BITS)
    return [_Record(*one[:2], own & base) for one, own in zip(found, codes, strict=True)]


def _read_genomes(config: BenchmarkConfig) -> dict[str, list[_Record]]:
    """Read the records of every species, sorted by name; an InputError with fewer than two."""
    given = config.species.genomes
    found: dict[str, list[_Record]] = {}
    if given:
        for species, path in given.items():
            if not Path(path).expanduser().exists():
                raise InputError(f"there is no {path} for the species {species}")
            found[species] = _records(Path(path).expanduser())
    else:
        root = config.folder(_INSTRUCTIONS)
        if root.is_dir():
            for path in sorted(root.iterdir()):
                if path.is_dir() or _FASTA.search(path.name):
                    found[_FASTA.sub("", path.name)] = _records(path)
        else:
            for record in _records(root):
                # "Genus species" of the description of an assembly's record, else its name.
                words = re.match(r"[A-Z][a-z]+ [a-z]+\b", record.description)
                found.setdefault(words[0] if words else record.name, []).append(record)
    if len(found) < 2:
        raise InputError(f"found {len(found)} species; two or more are needed. {_INSTRUCTIONS}")
    return dict(sorted(found.items()))


def _split_records(
    genomes: Mapping[str, list[_Record]], config: SpeciesConfig
) -> dict[str, dict[str, list[Codes]]]:
    """Deal the bases of every species out: species -> split -> segments of base codes."""
    found: dict[str, dict[str, list[Codes]]] = {}
    for species, records in genomes.items():
        parts: dict[str, list[Codes]] = {part: [] for part in _PARTS}
        if config.split == "segment":
            for record in records:
                low = 0
                for part, high in zip(_PARTS, (0.7, 0.8, 1.0), strict=True):
                    end = round(high * len(record.codes))
                    parts[part].append(record.codes[low:end])
                    low = end
        elif config.split == "chromosome":
            table = SPECIES_SPLITS.get(species.lower(), SPECIES_SPLITS["human"])
            for record in records:
                name = re.sub(r"^chr(omosome)?_?", "", record.name, flags=re.IGNORECASE)
                for part in (part for part in _PARTS if name in table[part]):
                    parts[part].append(record.codes)
        else:
            for record in sorted(records, key=lambda r: _number(r, config.split)):
                parts[_part_of(_number(record, config.split))].append(record.codes)
        if empty := [part for part in _PARTS if not parts[part]]:
            raise InputError(
                f"the species {species} has no record for {', '.join(empty)} with "
                f"species.split={config.split!r}; take segment to cut its records along their "
                "length"
            )
        found[species] = parts
    return found


def _number(record: _Record, split: str) -> int:
    """Give the number that decides the part of a record."""
    if split == "record":
        return int.from_bytes(record.name.encode()[-7:], "big")
    block = re.search(r"\bblock=(\d+)", record.description)
    if block is None:
        raise InputError(
            f"the record {record.name} has no block=N in its header, which species.split='block' "
            "goes by"
        )
    return int(block.group(1))


def _part_of(number: int) -> str:
    """Deal numbers out by hash, 70 to 10 to 20, the same in every species."""
    place = Draws(number).key / 2**64
    return "train" if place < 0.7 else "valid" if place < 0.8 else "test"


def _draw_samples(
    pieces: list[Codes], length: int, count: int, rng: np.random.Generator
) -> list[str]:
    """Draw segments of at most half N: every position where one fits is equally likely."""
    places = np.array([max(0, len(piece) - length + 1) for piece in pieces])
    ends = np.cumsum(places)
    if not len(ends) or ends[-1] == 0:
        longest = max((len(piece) for piece in pieces), default=0)
        raise InputError(f"no segment of {length:,} bases fits; the longest part has {longest:,}")
    found: list[str] = []
    for _ in range(100 * count):
        place = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[which] - places[which])
        codes = pieces[which][start : start + length]
        if np.count_nonzero(codes > alphabet.T) * 2 <= length:
            found.append(alphabet.decode(codes))
        if len(found) == count:
            return found
    raise InputError(f"segments of {length:,} bases are mostly N")


def _names(config: BenchmarkConfig) -> list[str]:
    """Name the tasks: one for each length."""
    lengths = sorted(set(config.species.lengths))
    return choose_tasks([f"species-{n}" for n in lengths], config.task_names, "species")


def _load(config: BenchmarkConfig, name: str) -> Task:
    length = int(name.rsplit("-", 1)[1])
    chosen = config.species
    genomes = _read_genomes(config)
    parts = _split_records(genomes, chosen)
    rows = dict.fromkeys(_PARTS, max(1, chosen.eval_samples // len(parts)))
    rows["train"] = max(1, round(chosen.train_bases / length / len(parts)))
    texts: dict[str, LabelTable] = {}
    for part in _PARTS:
        sequences: list[str] = []
        labels: list[tuple[str, ...]] = []
        for species, pieces in parts.items():
            pool = pieces[part]
            if chosen.pool_records:
                gap = np.full(1, alphabet.N, dtype=np.uint8)
                pool = [np.concatenate([codes for piece in pool for codes in (piece, gap)])]
            rng = np.random.default_rng([length, _PARTS.index(part), list(parts).index(species)])
            sequences += _draw_samples(pool, length, rows[part], rng)
            labels += [(species,)] * rows[part]
        texts[part] = LabelTable(f"{part} samples of species", sequences, labels, ("label",))
    split = {
        "chromosome": "published chromosomes: test 5, 7, 9, 10, 11; valid 1, 3, 12, 13",
        "segment": "every record cut along its length: 70 % train, 10 % valid, 20 % test",
        "block": "alignment blocks dealt out by number, 70 to 10 to 20, orthologous ones together",
        "record": "whole records dealt out by name, about 70 to 10 to 20",
    }[chosen.split]
    bases = ", ".join(
        f"{species} {sum(map(len, pieces['train'])) / 1e6:.1f} Mb"
        for species, pieces in parts.items()
    )
    known = set(parts) == _PUBLISHED_SPECIES
    near = min(_PUBLISHED_LENGTHS, key=lambda other: abs(np.log(other / length)))
    note = (
        f"split: {split}; training genomes: {bases}; {len(parts)} species, chance is "
        f"{1 / len(parts):.3f}; segments overlap within a split, never across"
    )
    return Task(
        "species", name, label_splits(texts, "classes"), "accuracy", ("f1", "mcc"),
        published("species", near) if known and abs(np.log(near / length)) <= 0.1 else (),
        official=known and chosen.split == "chromosome", notes=(note,),
        settings={"micro_batch": max(1, 65_536 // length)}, length=length,
    )  # fmt: skip


SUITE = Suite(_names, _load)  # what the runner calls

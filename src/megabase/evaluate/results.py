"""What an evaluation found: small frozen records that turn into JSON and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megabase.errors import InputError
from megabase.genome.files import write_json
from megabase.untrusted import build, parsing, read_json

__all__ = [
    "ContextPoint",
    "EvaluationResult",
    "Floor",
    "Measure",
    "measure",
    "paired_saving",
]

_RESAMPLES = 1_000
_UNITS = 1_000  # more resampling units change no digit of a standard error
FORMAT = 1


@dataclass(frozen=True)
class Measure:
    """Perplexity over a set of target bases.

    Parameters
    ----------
    targets
        Number of target bases (A, C, G or T).
    nats
        Mean of -ln p over all columns of the model's vocabulary; None for models over A, C, G, T.
    nats_acgt
        Mean of -ln p, renormalised over A, C, G, T.
    perplexity_se, perplexity_acgt_se
        Standard errors of the perplexities by block bootstrap; None with fewer than two blocks.
    """

    targets: int
    nats: float | None
    nats_acgt: float
    perplexity_se: float | None
    perplexity_acgt_se: float | None

    @property
    def perplexity(self) -> float | None:
        """exp(nats)."""
        return None if self.nats is None else math.exp(self.nats)

    @property
    def perplexity_acgt(self) -> float:
        """exp(nats_acgt)."""
        return math.exp(self.nats_acgt)


@dataclass(frozen=True)
class ContextPoint:
    """Perplexity of the fixed set of targets at one context length.

    Parameters
    ----------
    context
        Most bases of context that a target sees.
    context_min
        Fewest; the targets of a block see context_min, context_min + 1, ..., context bases.
    measure
        Perplexity.
    saved_nats, saved_nats_se
        How much lower the mean of -ln p over A, C, G, T is than at the shortest context, and the
        standard error of this paired difference by block bootstrap.
    """

    context: int
    context_min: int
    measure: Measure
    saved_nats: float
    saved_nats_se: float | None


@dataclass(frozen=True)
class Floor:
    """A model that knows little, scored on the same targets.

    Parameters
    ----------
    name
        Name for tables.
    order
        Bases of context; None for the uniform model.
    rates
        Weight of the next shorter context, in counts, for each order up to this one.
    fitted
        Whether the rates were fitted on the training regions.
    measure
        Perplexity on the targets of the evaluation.
    context_measure
        Perplexity on the targets of the context curve; None without a curve.
    margin_nats, margin_nats_se
        How much lower the model's mean of -ln p over A, C, G, T is on the same targets (negative
        when the floor is better), and the standard error of this paired difference.
    """

    name: str
    order: int | None
    rates: tuple[float, ...]
    fitted: bool
    measure: Measure
    context_measure: Measure | None
    margin_nats: float
    margin_nats_se: float | None


@dataclass(frozen=True)
class EvaluationResult:
    """All that :func:`megabase.evaluate.perplexity.evaluate` found.

    Parameters
    ----------
    model
        Name of the model.
    objective
        "causal", or "masked" (pseudo-perplexity).
    genome, genome_checksum
        Name and sha256 of the genome store.
    regions
        The regions as people write them (1-based, both ends included); the first 50.
    region_count, region_bases
        Number of regions, and their bases.
    window, stride
        Input positions of a forward pass, and how many of its last bases are its targets: a target
        sees between ``window - stride + 1`` and ``window`` bases of context.
    windows
        Number of windows scored.
    train_overlap
        Bases of the regions that lie in the training regions; None when those are not known.
    skipped
        Bases of these windows passed over because they are not A, C, G or T.
    overall
        Perplexity over all targets.
    by_contig
        By contig, in the order of the genome.
    by_soft_mask
        By case in the FASTA: "upper case" and "soft-masked".
    context
        Perplexity against context length, shortest first.
    floors
        Models to beat.
    floor_bases
        Bases that the Markov models counted.
    seconds
        Time of the whole evaluation.
    version
        Version of megabase.
    parameters
        Trainable numbers of the model, tied ones once; None in older files.
    """

    model: str
    objective: str
    genome: str
    genome_checksum: str
    regions: tuple[str, ...]
    region_count: int
    region_bases: int
    window: int
    stride: int
    windows: int
    train_overlap: int | None
    skipped: int
    overall: Measure
    by_contig: dict[str, Measure]
    by_soft_mask: dict[str, Measure]
    context: tuple[ContextPoint, ...]
    floors: tuple[Floor, ...]
    floor_bases: int
    seconds: float
    version: str
    parameters: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain values for JSON, with the perplexities spelled out."""
        record = {"format": FORMAT, "kind": "evaluation", **asdict(self)}
        _spell_out(record)
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Make the result that :meth:`to_dict` turned into this record.

        Raises
        ------
        InputError
            When the record is of another kind or format.
        """
        if record.get("kind") != "evaluation" or record.get("format") != FORMAT:
            raise InputError(
                f"expected an evaluation of format {FORMAT}, found kind {record.get('kind')!r}, "
                f"format {record.get('format')!r}; evaluate again with this version"
            )
        fields = {key: value for key, value in record.items() if key not in ("kind", "format")}
        fields["regions"] = tuple(fields["regions"])
        fields["overall"] = _read_measure(fields["overall"])
        for key in ("by_contig", "by_soft_mask"):
            fields[key] = {name: _read_measure(part) for name, part in fields[key].items()}
        fields["context"] = tuple(
            ContextPoint(**{**point, "measure": _read_measure(point["measure"])})
            for point in fields["context"]
        )
        fields["floors"] = tuple(_read_floor(floor) for floor in fields["floors"])
        return build(cls, fields)

    def save(self, path: str | Path) -> None:
        """Write as JSON; the file appears complete or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file cannot be read or is no evaluation.
        """
        record = read_json(path, InputError)
        with parsing(Path(path), InputError, "expected what megabase evaluate wrote"):
            return cls.from_dict(record)


def measure(
    nll_acgt: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
    nll: npt.NDArray[np.float64] | None = None,
) -> Measure:
    """Sum up rows of scores into one perplexity.

    Parameters
    ----------
    nll_acgt
        float64 (rows,): sum of -ln p over the targets of each row, renormalised over A, C, G, T.
        Neighbouring rows must be neighbours in the genome: they make the bootstrap's blocks.
    targets
        int64 (rows,): number of targets of each row.
    nll
        The same over the whole vocabulary.

    Raises
    ------
    InputError
        When there is no target.
    """
    total = int(targets.sum())
    if total == 0:
        raise InputError("there is no A, C, G or T to score in the regions")
    return Measure(
        targets=total,
        nats=None if nll is None else float(nll.sum() / total),
        nats_acgt=float(nll_acgt.sum() / total),
        perplexity_se=None if nll is None else _standard_error(nll, targets, exponential=True),
        perplexity_acgt_se=_standard_error(nll_acgt, targets, exponential=True),
    )


def _standard_error(
    sums: npt.NDArray[np.float64], targets: npt.NDArray[np.int64], *, exponential: bool
) -> float | None:
    """Spread of the (exponential of the) mean when blocks of rows are drawn with replacement."""
    used = targets > 0
    sums, weights = sums[used], targets[used].astype(np.float64)
    units = min(_UNITS, sums.size)
    if units < 2:
        return None
    # Neighbouring rows are alike; drawing them together keeps that in the error.
    starts = np.arange(units) * sums.size // units
    sums, weights = np.add.reduceat(sums, starts), np.add.reduceat(weights, starts)
    drawn = _draws(units)
    means = (drawn @ sums) / (drawn @ weights)
    return float(np.std(np.exp(means) if exponential else means, ddof=1))


@lru_cache(maxsize=4)
def _draws(units: int) -> npt.NDArray[np.float64]:
    """How often each of so many units is drawn in each resample, float64 (resamples, units)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(units, np.full(units, 1 / units), size=_RESAMPLES).astype(float)


def paired_saving(
    shortest: npt.NDArray[np.float64],
    longer: npt.NDArray[np.float64],
    targets: npt.NDArray[np.int64],
) -> tuple[float, float | None]:
    """Mean saving in nats per target of one scoring over another, with its standard error.

    Parameters
    ----------
    shortest, longer
        float64 (rows,): sums of -ln p over the same targets.
    targets
        int64 (rows,): number of targets of each row.
    """
    difference = shortest - longer
    saved = float(difference.sum() / targets.sum())
    return saved, _standard_error(difference, targets, exponential=False)


def _spell_out(value: Any) -> None:
    """Add the perplexities to every measure of a record."""
    if isinstance(value, dict):
        for part in list(value.values()):
            _spell_out(part)
        if "nats_acgt" in value:
            nats = value["nats"]
            value["perplexity"] = None if nats is None else math.exp(nats)
            value["perplexity_acgt"] = math.exp(value["nats_acgt"])
    elif isinstance(value, list | tuple):
        for part in value:
            _spell_out(part)


def _read_measure(record: dict[str, Any]) -> Measure:
    derived = ("perplexity", "perplexity_acgt")
    return Measure(**{key: value for key, value in record.items() if key not in derived})


def _read_floor(record: dict[str, Any]) -> Floor:
    other = record["context_measure"]
    return Floor(
        **{
            **record,
            "rates": tuple(record["rates"]),
            "measure": _read_measure(record["measure"]),
            "context_measure": None if other is None else _read_measure(other),
        }
    )

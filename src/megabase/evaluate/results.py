"""What an evaluation found, as small frozen records, and evaluations of several models compared."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megabase.errors import InputError
from megabase.genome.files import write_json
from megabase.untrusted import build, parsing, read_json, shown

_Floats, _Ints = npt.NDArray[np.float64], npt.NDArray[np.int64]
_RESAMPLES = 1_000
"""Resamples of the bootstrap: the second digit of a standard error no longer moves."""
_UNITS = 1_000  # most resampling units; more change no digit of a standard error
_FORMAT = 2  # format of the JSON; other formats are refused
_SEES = {"causal": "bases before it", "masked": "bases on both sides"}
"""Where the context of a base lies, by objective."""
_METRIC = {"causal": "perplexity", "masked": "pseudo-perplexity"}  # what is measured, by objective
_MIXED = (
    "A perplexity and a pseudo-perplexity cannot be ranked: a base is easier to predict from both "
    "sides, and the pseudo-perplexities of neighbors do not multiply to the probability of a "
    "sequence."
)
"""Note under a table with both: they look alike and readers would rank them."""


@dataclass(frozen=True)
class Measure:
    """Perplexity over a set of target bases."""

    targets: int
    """Number of target bases (A, C, G or T)."""
    nats: float | None
    """Mean of -ln p over all columns of the vocabulary; None for models over A, C, G, T."""
    nats_acgt: float
    """Mean of -ln p, renormalized over A, C, G, T."""
    perplexity_se: float | None
    perplexity_acgt_se: float | None
    """Standard errors by block bootstrap; None with fewer than two blocks."""
    perplexity: float | None
    """exp(nats)."""
    perplexity_acgt: float
    """exp(nats_acgt)."""

    @classmethod
    def of(cls, nll_acgt: _Floats, targets: _Ints, nll: _Floats | None = None) -> Self:
        """Sum up rows of scores, float64 (rows,) sums of -ln p, into one perplexity.

        Neighboring rows must be neighbors in the genome: they make the bootstrap's blocks.
        InputError when there is no target.
        """
        total = int(targets.sum())
        if total == 0:
            raise InputError("there is no A, C, G or T to score in the regions")
        nats = error = perplexity = None
        if nll is not None:
            nats, error = float(nll.sum() / total), _standard_error(nll, targets, exponential=True)
            perplexity = math.exp(nats)
        acgt = float(nll_acgt.sum() / total)
        error_acgt = _standard_error(nll_acgt, targets, exponential=True)
        return cls(total, nats, acgt, error, error_acgt, perplexity, math.exp(acgt))

    @staticmethod
    def saving(shortest: _Floats, longer: _Floats, targets: _Ints) -> tuple[float, float | None]:
        """Mean saving in nats per target of one scoring over another, with its standard error."""
        difference = shortest - longer
        saved = float(difference.sum() / targets.sum())
        return saved, _standard_error(difference, targets, exponential=False)

    @staticmethod
    def interval(values: _Floats) -> tuple[float, float]:
        """95 percent interval of a mean, by drawing the values again."""
        low, high = np.percentile(_draws(values.size) @ values, [2.5, 97.5]) / values.size
        return float(low), float(high)


@dataclass(frozen=True)
class ContextPoint:
    """Perplexity of the fixed set of targets at one context length."""

    context: int
    context_min: int  # the targets of a block see context_min, context_min + 1, ..., context bases
    measure: Measure
    saved_nats: float
    saved_nats_se: float | None
    """How much lower nats_acgt is than at the shortest context (paired), with its standard error by
    block bootstrap."""


@dataclass(frozen=True)
class Baseline:
    """A model without a network, scored on the same targets."""

    name: str
    order: int | None  # bases of context; None for the uniform model
    rates: tuple[float, ...]
    """Weight of the next shorter context, in counts, for each order up to this one."""
    fitted: bool  # whether the rates were fitted on the training regions
    measure: Measure
    context_measure: Measure | None
    """On the targets of the evaluation, and of the context curve; None without a curve."""
    margin_nats: float
    margin_nats_se: float | None
    """How much lower the model's nats_acgt is (negative when the baseline is better), paired, with
    its standard error by block bootstrap."""


@dataclass(frozen=True)
class EvaluationResult:
    """All that :func:`megabase.evaluate.perplexity.evaluate` found."""

    model: str
    objective: str
    """``"causal"``, or ``"masked"`` (pseudo-perplexity)."""
    genome: str
    genome_checksum: str
    regions: tuple[str, ...]
    """The first 50 regions, 1-based with both ends included."""
    region_count: int
    region_bases: int
    window: int
    """Input positions of a forward pass."""
    stride: int
    """Its last bases that are targets: they see ``window - stride + 1`` to ``window`` bases."""
    windows: int
    train_overlap: int | None
    """Bases of the regions inside the training regions; None when those are not known."""
    skipped: int
    """Bases of the windows skipped because they are not A, C, G or T."""
    overall: Measure
    by_contig: dict[str, Measure]
    """In the order of the genome."""
    by_soft_mask: dict[str, Measure]
    """By case in the FASTA: "upper case" and "soft-masked"."""
    context: tuple[ContextPoint, ...]
    """Perplexity against context length, shortest first."""
    baselines: tuple[Baseline, ...]
    baseline_bases: int
    """Bases that the Markov models counted."""
    seconds: float
    version: str
    parameters: int | None = None
    """Trainable numbers of the model, tied ones once; None in older files."""

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain values for JSON."""
        return {"format": _FORMAT, "kind": "evaluation", **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write as JSON; the file appears complete or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote; InputError for another file."""
        record = read_json(path, InputError)
        kind, version = record.pop("kind", None), record.pop("format", None)
        if kind != "evaluation" or version != _FORMAT:
            raise InputError(
                f"{path}: expected an evaluation of format {_FORMAT}, found kind {shown(kind)}, "
                f"format {shown(version)}; evaluate again with this version"
            )
        with parsing(Path(path), InputError, "expected what megabase evaluate wrote"):
            return build(cls, record)

    @staticmethod
    def compare(results: "Sequence[EvaluationResult]") -> str:
        """Put evaluations of the same bases side by side, with the best of their baselines.

        Gives a table in Markdown: models in the order given, then the best baseline, and notes.
        """
        if not results:
            raise InputError("there is no evaluation to compare")
        first = results[0]
        for other in results[1:]:
            for what, one, two in (
                ("genome (sha256)", first.genome_checksum[:12], other.genome_checksum[:12]),
                ("regions", ", ".join(first.regions), ", ".join(other.regions)),
                ("number of bases", first.overall.targets, other.overall.targets),
            ):
                if one != two:
                    raise InputError(
                        f"{first.model} and {other.model} were not measured on the same bases: "
                        f"their {what} differ, {one} and {two}; evaluate both on the same "
                        "regions, with the same stride and max_windows"
                    )
        head = ("model", "parameters", "metric", "predicted from", "bases of context",
                "over A, C, G, T", "bits per base")  # fmt: skip
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for one in results:
            context = f"up to {one.window - 1:,}"
            if one.objective == "causal":
                context = f"{one.window - one.stride + 1:,} to {one.window:,}"
            parameters = "" if one.parameters is None else f"{one.parameters:,}"
            lines.append(_row(one.model, parameters, one.objective, context, one.overall))
        baselines = [baseline for result in results for baseline in result.baselines]
        best = min(baselines, key=lambda baseline: baseline.measure.nats_acgt, default=None)
        if best is not None:
            context = f"up to {best.order:,}" if best.order is not None else "0"
            lines.append(_row(f"best baseline: {best.name}", "", "causal", context, best.measure))
        regions = ", ".join(first.regions[:3]) + (", ..." if len(first.regions) > 3 else "")
        lines += ["", f"{first.overall.targets:,} bases of {first.genome} (sha256 "
                  f"{first.genome_checksum[:12]}): {regions}"]  # fmt: skip
        if len({result.objective for result in results}) > 1:
            lines.append(_MIXED)
        lines += [
            f"NOT HELD OUT: {result.train_overlap:,} bases lie in the training regions of "
            f"{result.model}."
            for result in results
            if result.train_overlap
        ]
        return "\n".join(lines) + "\n"


def _standard_error(sums: _Floats, targets: _Ints, *, exponential: bool) -> float | None:
    """Spread of the (exponential of the) mean when blocks of rows are drawn with replacement."""
    used = targets > 0
    sums, weights = sums[used], targets[used].astype(np.float64)
    units = min(_UNITS, sums.size)
    if units < 2:
        return None
    # Neighboring rows are alike; drawing them together keeps that in the error.
    starts = np.arange(units) * sums.size // units
    sums, weights = np.add.reduceat(sums, starts), np.add.reduceat(weights, starts)
    drawn = _draws(units)
    means = (drawn @ sums) / (drawn @ weights)
    return float(np.std(np.exp(means) if exponential else means, ddof=1))


@lru_cache(maxsize=4)
def _draws(units: int) -> _Floats:
    """Count how often each unit is drawn in each resample, float64 (resamples, units)."""
    generator = np.random.default_rng(0)
    return generator.multinomial(units, np.full(units, 1 / units), size=_RESAMPLES).astype(float)


def _row(name: str, parameters: str, objective: str, context: str, found: Measure) -> str:
    error = found.perplexity_acgt_se
    cells = (
        name, parameters, _METRIC[objective], _SEES[objective], context,
        f"{found.perplexity_acgt:.3f}" + ("" if error is None else f" +- {error:.3f}"),
        f"{found.nats_acgt / math.log(2):.4f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"

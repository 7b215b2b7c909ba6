"""Evaluations of several models on the same bases, in one table.

A causal model gives a base its probability from the bases before it; a masked one from both sides.
The first figure is a perplexity, the second a pseudo-perplexity. They may stand side by side, for
the same bases, as long as the table says what each one saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megabase.errors import InputError
from megabase.evaluate.results import EvaluationResult, Measure

__all__ = ["Comparison", "Row", "compare"]

_SEES = {"causal": "bases before it", "masked": "bases on both sides"}
_FIGURE = {"causal": "perplexity", "masked": "pseudo-perplexity"}
_MIXED = (
    "A perplexity and a pseudo-perplexity are no ranking: with the bases on both sides a base is "
    "easier to tell, and the pseudo-perplexities of neighbours do not multiply to the probability "
    "of a sequence."
)


@dataclass(frozen=True)
class Row:
    """One model, or one floor."""

    name: str
    """The model as it was named when it was evaluated."""
    parameters: int | None
    """Its trainable numbers, where the evaluation knows them."""
    figure: str
    """perplexity or pseudo-perplexity."""
    sees: str
    """Where the context of a base lies."""
    context: str
    """Bases of context, fewest to most."""
    measure: Measure
    """Over A, C, G, T, with its standard error."""


@dataclass(frozen=True)
class Comparison:
    """Rows that were measured on the same bases."""

    genome: str
    """Name of the genome."""
    genome_checksum: str
    """Its sha256."""
    regions: tuple[str, ...]
    """The regions as people write them; the first 50."""
    targets: int
    """Bases that every row was measured on."""
    rows: tuple[Row, ...]
    """Models in the order given, then the best floor."""
    notes: tuple[str, ...]
    """What a reader of the table has to know."""

    def markdown(self) -> str:
        """Write the table for people."""
        head = ("model", "parameters", "figure", "a base is told from", "bases of context",
                "over A, C, G, T", "bits per base")  # fmt: skip
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for row in self.rows:
            error = row.measure.perplexity_acgt_se
            cells = (
                row.name,
                "" if row.parameters is None else f"{row.parameters:,}",
                row.figure,
                row.sees,
                row.context,
                f"{row.measure.perplexity_acgt:.3f}"
                + ("" if error is None else f" +- {error:.3f}"),
                f"{row.measure.nats_acgt / math.log(2):.4f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        shown = ", ".join(self.regions[:3]) + (", ..." if len(self.regions) > 3 else "")
        lines += ["", f"{self.targets:,} bases of {self.genome} (sha256 "
                  f"{self.genome_checksum[:12]}): {shown}"]  # fmt: skip
        return "\n".join([*lines, *self.notes]) + "\n"


def compare(results: Sequence[EvaluationResult]) -> Comparison:
    """Put evaluations side by side.

    Parameters
    ----------
    results
        At least one; all of the same regions of the same genome.

    Returns
    -------
    Comparison
        The models in the order given, and the best of their floors.

    Raises
    ------
    InputError
        When they were not measured on the same bases.
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
                    f"{first.model} and {other.model} were not measured on the same bases: their "
                    f"{what} differ, {one} and {two}; evaluate both on the same regions, with "
                    "the same stride and max_windows"
                )
    rows = [_row(result) for result in results]
    floors = [floor for result in results for floor in result.floors]
    best = min(floors, key=lambda floor: floor.measure.nats_acgt, default=None)
    if best is not None:
        order = f"up to {best.order:,}" if best.order is not None else "0"
        rows.append(
            Row(
                f"best floor: {best.name}", None, "perplexity", _SEES["causal"], order, best.measure
            )
        )
    notes: list[str] = []
    if len({result.objective for result in results}) > 1:
        notes.append(_MIXED)
    notes += [
        f"NOT HELD OUT: {result.train_overlap:,} bases lie in the training regions of "
        f"{result.model}."
        for result in results
        if result.train_overlap
    ]
    return Comparison(
        genome=first.genome,
        genome_checksum=first.genome_checksum,
        regions=first.regions,
        targets=first.overall.targets,
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _row(result: EvaluationResult) -> Row:
    if result.objective == "causal":
        context = f"{result.window - result.stride + 1:,} to {result.window:,}"
    else:
        context = f"up to {result.window - 1:,}"
    return Row(
        result.model,
        result.parameters,
        _FIGURE[result.objective],
        _SEES[result.objective],
        context,
        result.overall,
    )

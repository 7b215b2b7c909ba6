"""Scores of variants out of a table of every substitution, and by the model where it has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from megabase.errors import InputError
from megabase.genome.interval import shared_ends
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS
from megabase.inference.parts import Provenance
from megabase.inference.variants.prescored.table import ScoreTable
from megabase.inference.variants.scorer import AlleleScore, VariantOptions, VariantScorer
from megabase.models.loading import Loaded, ModelSpec, load

Missing = Literal["leave", "score"]
"""What is done with alleles that a table does not hold."""
_METHOD = "llr_site"
"""What a table holds."""


class TableScorer(VariantScorer):
    """Gives `llr_site` and its percentile of substitutions from a table of the same model."""

    def __init__(
        self, model: Loaded, store: Genome, options: VariantOptions, table: tuple[Path, Missing],
        batch_tokens: int = BATCH_TOKENS, genes: str | Path | None = None,
    ) -> None:  # fmt: skip
        path, self.missing = table
        order = {contig.name: number for number, contig in enumerate(store.contigs)}
        self.scores = ScoreTable(path, order)
        made = self.scores.provenance
        asked = {"window": options.window, "methods": options.methods and [*options.methods]}
        has = {"window": made.options.get("window"), "methods": [_METHOD]}
        wrong = [
            f"{name} {has[name]}, not {value}"
            for name, value in asked.items()
            if value not in (None, has[name])
        ]
        for name, theirs, ours, given in (
            ("model", made.model_sha256, model.digest, model.name),
            ("genome", made.genome_sha256, store.checksum, store.name),
        ):
            if theirs != ours:
                wrong.insert(0, f"{name} {getattr(made, name)} ({str(theirs)[:8]}), not {given} "
                    f"({ours[:8]})")  # fmt: skip
        strands = options.strands or "both"
        if made.options.get("strands") != strands:
            wrong.append(f"strands {made.options.get('strands')}, not {strands}")
        if wrong:
            raise InputError(
                f"{path} was made with {'; '.join(wrong)}; make another one with megabase variants "
                "MODEL --all GENOME and these options"
            )
        settings = replace(options, window=has["window"], methods=(_METHOD,))
        super().__init__(model, store, settings, batch_tokens, genes)
        self.columns = [_METHOD, f"{_METHOD}_percentile"]

    @classmethod
    def load(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, model: ModelSpec, genome: Path, options: VariantOptions, table: tuple[Path, Missing],
        batch_tokens: int = BATCH_TOKENS, device: str | None = None,
        genes: str | Path | None = None,
    ) -> TableScorer:  # fmt: skip
        """Load the model, and open the genome and the table."""
        loaded = load(model, head="language", device=device)
        return cls(loaded, Genome(genome), options, table, batch_tokens, genes)

    @property
    def placed(self) -> str:
        """Where windows lie, for headers of outputs."""
        context = self.scores.provenance.options.get("context")
        return (
            f"of the table by a window of {self.options.window} bases with {context} or more of "
            "context, of the model by one that is centered"
        )

    def provenance(self, verb: str, **more: Any) -> Provenance:
        """Describe where scores come from."""
        made = self.scores.provenance
        table = {"options": made.options, "version": made.version}
        return super().provenance(verb, scores=table, missing=self.missing, **more)

    def score(self, records: Sequence[VcfRecord]) -> list[tuple[AlleleScore, ...]]:
        """Look alleles up; see :meth:`VariantScorer.score`."""
        places: dict[str, set[int]] = {}
        plan: list[list[AlleleScore | tuple[str, int, str]]] = []  # a score, or what to look up
        none = math.nan, math.nan
        for record in records:
            contig = self.store.find_contig(record.contig)
            problem = record.check(self.store, contig)
            alleles: list[AlleleScore | tuple[str, int, str]] = []
            for alt in record.alts or (".",):
                reason = problem or record.check_allele(alt)
                if reason or contig is None:
                    alleles.append(AlleleScore(none, reason or "UNKNOWN_CONTIG"))
                    continue
                ref, alt = record.ref.upper(), alt.upper()
                front, back = (0, 0) if len(ref) == len(alt) == 1 else shared_ends(ref, alt)
                if len(ref) - front - back == len(alt) - front - back == 1:
                    name, at = self.store.contigs[contig].name, record.position + front
                    places.setdefault(name, set()).add(at)
                    alleles.append((name, at, alt[front]))
                else:
                    alleles.append(AlleleScore(none, "NOT_IN_TABLE"))
            plan.append(alleles)
        found = {name: self.scores.look_up(name, sorted(at)) for name, at in places.items()}
        scored = [tuple(self._allele(one, found) for one in alleles) for alleles in plan]
        if self.missing == "score":
            self._complete(records, scored)
        return scored

    @staticmethod
    def _allele(one: AlleleScore | tuple[str, int, str], found: Any) -> AlleleScore:
        """Give the score of an allele from what was found."""
        if isinstance(one, AlleleScore):
            return one
        name, at, alt = one
        values = found[name].get(at, {}).get(alt)
        if values is None:
            return AlleleScore((math.nan, math.nan), "NOT_IN_TABLE")
        return AlleleScore(values, None, "table")

    def _complete(
        self, records: Sequence[VcfRecord], scored: list[tuple[AlleleScore, ...]]
    ) -> None:
        """Score by the model what was not found."""
        rest: dict[int, list[int]] = {}
        for number, alleles in enumerate(scored):
            lacking = [n for n, one in enumerate(alleles) if one.reason == "NOT_IN_TABLE"]
            if lacking:
                rest[number] = lacking
        asked = [
            replace(records[number], alts=tuple(records[number].alts[n] for n in lacking))
            for number, lacking in rest.items()
        ]
        for (number, lacking), given in zip(rest.items(), super().score(asked), strict=True):
            alleles = list(scored[number])
            for n, one in zip(lacking, given, strict=True):
                values = *one.values[:1], math.nan
                alleles[n] = AlleleScore(values, one.reason, "" if one.reason else "model")
            scored[number] = tuple(alleles)

"""Scores of variants out of a table of every substitution, and by the model where it has none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from megabase.errors import InputError
from megabase.genome.interval import shared_ends
from megabase.genome.left_out import Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS
from megabase.inference.parts import Provenance
from megabase.inference.variants.prescored.table import ScoreTable
from megabase.inference.variants.scorer import AlleleScore, VariantOptions, VariantScorer
from megabase.models.loading import Loaded

Missing = Literal["leave", "score"]
"""What is done with alleles that a table does not hold."""
_METHOD = "llr_site"
"""What a table holds."""
_NONE = (math.nan, math.nan)  # neither a score nor a percentile


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
        wrong = [
            f"{name} {theirs} ({str(digest)[:8]}), not {ours} ({own[:8]})"
            for name, theirs, digest, ours, own in (
                ("genome", made.genome, made.genome_sha256, store.name, store.checksum),
                ("model", made.model, made.model_sha256, model.name, model.digest),
            )
            if digest != own
        ]
        window = made.options.get("window")
        for name, has, asked in (
            ("window", window, options.window),
            ("methods", [_METHOD], options.methods and [*options.methods]),
            ("strands", made.options.get("strands"), options.strands or "both"),
        ):
            if asked not in (None, has):
                wrong.append(f"{name} {has}, not {asked}")
        if wrong:
            raise InputError(
                f"{path} was made with {'; '.join(wrong)}; make another one with megabase variants "
                "MODEL --all GENOME and these options"
            )
        settings = replace(options, window=window, methods=(_METHOD,))
        super().__init__(model, store, settings, batch_tokens, genes)
        self.columns = [_METHOD, f"{_METHOD}_percentile"]

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
        places: dict[int, set[int]] = {}
        plan: list[list[Reason | tuple[int, int, str]]] = []  # why not, or what to look up
        for record in records:
            alleles: list[Reason | tuple[int, int, str]] = []
            for contig, alt, reason in self._alleles(record):
                ref, alt = record.ref.upper(), alt.upper()
                front, back = (0, 0) if len(ref) == len(alt) == 1 else shared_ends(ref, alt)
                if reason or not len(ref) == len(alt) == front + back + 1:
                    alleles.append(reason or "NOT_IN_TABLE")
                else:
                    places.setdefault(contig, set()).add(record.position + front)
                    alleles.append((contig, record.position + front, alt[front]))
            plan.append(alleles)
        names = self.store.contigs
        found = {c: self.scores.look_up(names[c].name, sorted(at)) for c, at in places.items()}

        def score_of(one: Reason | tuple[int, int, str]) -> AlleleScore:
            if isinstance(one, str):
                return AlleleScore(_NONE, one)
            contig, at, alt = one
            values = found[contig].get(at, {}).get(alt)
            if values is None:
                return AlleleScore(_NONE, "NOT_IN_TABLE")
            return AlleleScore(values, None, "table")

        scored = [tuple(map(score_of, alleles)) for alleles in plan]
        if self.missing == "score":
            self._complete(records, scored)
        return scored

    def _complete(self, records: Sequence[VcfRecord], scored: list[Any]) -> None:
        rest = {
            number: lacking
            for number, alleles in enumerate(scored)
            if (lacking := [n for n, one in enumerate(alleles) if one.reason == "NOT_IN_TABLE"])
        }
        asked = [
            replace(records[number], alts=tuple(records[number].alts[n] for n in lacking))
            for number, lacking in rest.items()
        ]
        for (number, lacking), given in zip(rest.items(), super().score(asked), strict=True):
            alleles = list(scored[number])
            for n, one in zip(lacking, given, strict=True):
                values = one.values[0], math.nan
                alleles[n] = AlleleScore(values, one.reason, "" if one.reason else "model")
            scored[number] = tuple(alleles)

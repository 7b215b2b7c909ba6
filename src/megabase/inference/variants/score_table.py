"""Scores of variants out of a table of every substitution, and by the model where it has none.

The table is what :mod:`megabase.inference.variants.every_snv` writes. A bgzip block begins with a
row and holds one contig, so a row is found without reading others.
"""

import gzip
import json
import math
import mmap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pysam.bcftools

from megabase.errors import InputError
from megabase.genome.files import BGZF_END
from megabase.genome.interval import one_based, shared_ends
from megabase.genome.left_out import Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS
from megabase.inference.parts import Provenance
from megabase.inference.variants.scorer import AlleleScore, VariantOptions, VariantScorer
from megabase.models.loading import Loaded
from megabase.untrusted import parsing

_TBI_LIMIT = 1 << 29  # longest contig of a tabix index, by its format; csi takes longer ones
BLOCK_HEAD = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
"""Beginning of a bgzip block: flags, no time, an extra field of 6 bytes with the size of it."""
_STEPS = 16  # blocks that a look-up passes one by one, before it halves the rest of the file
Missing = Literal["leave", "score"]  # what is done with alleles that a table does not hold
_METHOD = "llr_site"  # what a table holds
_NONE = (math.nan, math.nan)  # neither a score nor a percentile


def write_index(path: Path, longest: int, in_order: bool = True) -> Path | None:
    """Write the index of a table, bgzip VCF or BCF with a longest contig; an old one goes away.

    A file that is not in order has none.
    """
    for old in (".tbi", ".csi"):
        path.with_name(path.name + old).unlink(missing_ok=True)
    if not in_order:
        return None
    name = path.name.lower()
    kind = "csi" if name.endswith(".bcf") or longest > _TBI_LIMIT else "tbi"
    if ".vcf" in name or name.endswith(".bcf"):
        pysam.bcftools.index("--force", f"--{kind}", str(path), catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        pysam.tabix_index(
            str(path), force=True, seq_col=0, start_col=1, end_col=1, meta_char="#",
            csi=kind == "csi", keep_original=True,
        )  # fmt: skip
    return path.with_name(f"{path.name}.{kind}")


class _ScoreTable:
    """A table, opened for look-ups; `order` numbers the contigs of its genome."""

    def __init__(self, path: Path, order: Mapping[str, int]) -> None:
        self.path, self.order = path, {name.encode(): n for name, n in order.items()}
        with parsing(path, InputError, "expected a table of megabase variants --all"):
            with gzip.open(path) as text:
                first = text.readline()
            if not first.startswith(b"##megabase="):
                raise ValueError("no line ##megabase")
            self.provenance = Provenance(**json.loads(first[11:]))
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._map[-len(BGZF_END) :] != BGZF_END:
                raise ValueError("the block that ends a bgzip file is missing")
        self._end = len(self._map) - len(BGZF_END)
        self._text, self._first = lru_cache(4)(self._read), lru_cache(64)(self._peek)

    def look_up(
        self, contig: str, positions: Sequence[int]
    ) -> dict[int, dict[str, tuple[float, float]]]:
        """Find score and percentile (NaN without) by 0-based position and alternative base.

        Ascending positions are found fast.
        """
        found: dict[int, dict[str, tuple[float, float]]] = {}
        at, rank, room = 0, self.order[contig.encode()], 3 * (len(contig) + 48)
        for position in positions:
            key = rank, one_based(position)
            at = self._before(at, key)
            blocks = (block for block in (at, self._next(at)) if self._first(block) <= key)
            text = b"".join(self._text(b) for b in blocks if self._first(b)[0] == rank)
            start = text.find(b"\t%d\t" % key[1])
            if start < 0:
                continue
            rows: dict[str, tuple[float, float]] = {}
            for line in text[start : start + room].split(b"\n", 3)[:3]:
                fields = line.split(b"\t")[-5:]
                if int(fields[0]) == key[1]:
                    percentile = math.nan if fields[4] == b"." else float(fields[4])
                    rows[fields[2].decode()] = float(fields[3]), percentile
            found[position] = rows
        return found

    def _before(self, at: int, key: tuple[int, int]) -> int:
        """Find the last block whose first row is before `key`, from the block `at` on if it is."""
        at = at if self._first(at) < key else 0
        for _ in range(_STEPS):
            if self._first(behind := self._next(at)) >= key:
                return at
            at = behind
        low, high = at + 1, self._end
        while low < high:
            middle = (low + high) // 2
            block = self._map.find(BLOCK_HEAD, middle, self._end)
            if block < 0 or self._first(block) >= key:
                high = middle
            else:
                at, low = block, block + 1
        return at

    def _next(self, at: int) -> int:
        """Give where the block behind one begins; the end has none."""
        if at >= self._end:
            return at
        return at + 1 + int.from_bytes(self._map[at + 16 : at + 18], "little")

    def _peek(self, at: int) -> tuple[int, int]:
        """Give contig and position (1-based) of the first row; the header is before all."""
        if at >= self._end:
            return len(self.order), 0
        text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._map[at + 18 : at + 1024], 512)
        if text.startswith(b"#"):
            return -1, 0
        with parsing(self.path, InputError, "expected bgzip blocks as megabase wrote them"):
            contig, position = text.split(b"\t", 2)[:2]
            return self.order[contig], int(position)

    def _read(self, at: int) -> bytes:
        return zlib.decompress(self._map[at + 18 : self._next(at) - 8], -zlib.MAX_WBITS)


class TableScorer(VariantScorer):
    """Gives `llr_site` and its percentile of substitutions from a table of the same model."""

    def __init__(
        self, model: Loaded, store: Genome, options: VariantOptions, table: tuple[Path, Missing],
        batch_tokens: int = BATCH_TOKENS, genes: str | Path | None = None,
    ) -> None:  # fmt: skip
        path, self.missing = table
        order = {contig.name: number for number, contig in enumerate(store.contigs)}
        self.scores = _ScoreTable(path, order)
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

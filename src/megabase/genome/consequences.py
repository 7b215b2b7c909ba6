"""What a variant does to the transcripts where it lies, in terms of the Sequence Ontology.

Transcripts come from GFF3 or GTF (Ensembl, GENCODE, RefSeq). A variant is trimmed of what REF and
ALT share, at the front first, and put into the spliced transcript, which is translated on: so
codons over an intron, both strands, and stops restored by what follows come out right.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError, LeftOutWarning, warn
from megabase.genome.alphabet import BASE_BITS, decode, encode, reverse_complement
from megabase.genome.interval import MITOCHONDRIAL, shared_ends, union
from megabase.genome.store import Genome
from megabase.genome.tables import read_gff

_Codes = NDArray[np.uint8]
_Spans = tuple[tuple[int, int], ...]

SEVERITY = (
    "transcript_ablation", "splice_acceptor_variant", "splice_donor_variant", "stop_gained",
    "frameshift_variant", "stop_lost", "start_lost", "inframe_insertion", "inframe_deletion",
    "missense_variant", "splice_region_variant", "incomplete_terminal_codon_variant",
    "start_retained_variant", "stop_retained_variant", "synonymous_variant",
    "coding_sequence_variant", "5_prime_UTR_variant", "3_prime_UTR_variant",
    "non_coding_transcript_exon_variant", "intron_variant", "upstream_gene_variant",
    "intergenic_variant",
)  # fmt: skip
"""Terms from the most severe, in the order of Ensembl."""
UPSTREAM = 2_000
"""Bases before a transcription start that count as upstream: where most of a promoter lies."""
_RANK = {term: rank for rank, term in enumerate(SEVERITY)}  # to sort by
_SITE, _EXON, _INTRON = 2, 3, 8
"""Bases of a splice site in the intron; of its region in exon and intron: as in SO."""
_SHORTEST = 13  # bases of an intron, as in Ensembl: a shorter gap is a shift of the frame
_BIN = 1 << 14
"""Bases of a bin of the index: about a gene, so that a variant looks at few transcripts."""
_CACHED = 4_096  # spliced transcripts kept: variants come in order, and a message has kilobases
_STANDARD = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""Amino acids of the codons AAA, AAC, AAG, AAT, ACA, ... in genetic code 1."""
_OTHER_CODES = {
    1: {}, 11: {}, 2: {"AGA": "*", "AGG": "*", "ATA": "M", "TGA": "W"}, 4: {"TGA": "W"},
    3: {"ATA": "M", "TGA": "W", **dict.fromkeys(("CTA", "CTC", "CTG", "CTT"), "T")},
}  # fmt: skip
"""By number of NCBI's genetic codes what differs from the standard one."""
_STARTS = {2: ("ATA", "ATC", "ATG", "ATT", "GTG"), 3: ("ATA", "ATG", "GTG"),
           4: ("ATG", "GTG", "TTG"), 11: ("ATG", "GTG", "TTG", "CTG")}  # fmt: skip
"""Start codons by genetic code; of the standard one ATG alone."""
_NAMES = dict(zip(
    "ARNDCQEGHILKMFPSTWYVUX*",
    re.findall("...", "AlaArgAsnAspCysGlnGluGlyHisIleLeuLysMetPheProSerThrTrpTyrValSecXaaTer"),
    strict=True,
))  # fmt: skip
"""Amino acids as HGVS writes them; an internal TGA of an annotated protein is selenocysteine."""
_PARTS = ("exon", "CDS", "stop_codon")  # types of rows that make up a transcript
_KEYS = ("ID", "Parent", "Name", "gene_id", "gene_name", "gene", "transcript_id", "partial",
         "start_range", "end_range", "transl_table")  # fmt: skip
"""Attributes that say what a row belongs to, and whether it is whole."""


@dataclass(frozen=True, slots=True)
class _Transcript:
    """A transcript: exons and coding parts in order along the contig, 0-based half-open."""

    name: str
    gene: str
    contig: str
    strand: str
    exons: _Spans
    coding: _Spans = ()
    """Start and stop codon included; empty for a transcript that is not translated."""
    phase: int = 0
    """Bases before the first whole codon, of a coding sequence whose start is not known."""
    begins: bool = True  # whether the first codon is that of the start
    code: int = 1  # NCBI's number of the genetic code

    @property
    def start(self) -> int:
        return self.exons[0][0]

    @property
    def end(self) -> int:
        return self.exons[-1][1]


class Consequence(NamedTuple):
    """What an allele does to a transcript; of one that lies in none, all but the term is empty."""

    terms: tuple[str, ...]
    """Of Sequence Ontology, the most severe first."""
    gene: str = ""
    transcript: str = ""
    strand: str = ""
    protein: str = ""
    """The change of the protein, as HGVS writes it: ``p.Arg12Cys``."""

    def __str__(self) -> str:
        return "|".join(("&".join(self.terms), *map(vcf_text, self[1:])))


def vcf_text(text: str) -> str:
    """Write what INFO and its lists cannot hold as VCF 4.3 does: a comma as ``%2C``."""
    return re.sub(r"[\s,;=|&%]", lambda match: f"%{ord(match[0]):02X}", text)


class _Spliced(NamedTuple):
    """A transcript in reading direction: its parts on the contig, and codes of the whole."""

    parts: _Spans
    codes: _Codes
    first: int  # index of the first coding base
    end: int


class Annotation:
    """The transcripts of a genome, and what variants do to them."""

    def __init__(self, store: Genome, transcripts: Iterable[_Transcript]) -> None:
        self.store, self.transcripts = store, tuple(transcripts)
        self._bins: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number, one in enumerate(self.transcripts):
            before, after = (UPSTREAM, 1) if one.strand == "+" else (1, UPSTREAM)
            for place in range((one.start - before) // _BIN, (one.end + after) // _BIN + 1):
                self._bins[one.contig, place].append(number)
        self._spliced = lru_cache(_CACHED)(self._splice)

    @classmethod
    def read(cls, path: str | Path, store: Genome, *, strict: bool = False) -> Self:
        """Read GFF3 or GTF (plain or gzip), rows as :func:`megabase.genome.tables.read_gff`.

        An InputError when there is no transcript: no exon or CDS that belongs to anything.
        """
        found = cls(store, _read_transcripts(path, store, strict))
        if not found.transcripts:
            raise InputError(
                f"{path}: has no transcript; expected rows of type exon or CDS with Parent=... "
                'or transcript_id "..."'
            )
        return found

    def consequences(self, contig: str, position: int, ref: str, alt: str) -> list[Consequence]:
        """Give what an allele does to each transcript, the most severe consequence first.

        `contig` is as the store names it, `position` 0-based; REF and ALT are bases. Of equal
        ones the nearest is first, then as in the file.
        """
        front, back = shared_ends(ref.upper(), alt.upper())
        start, end = position + front, position + len(ref) - back
        codes = encode(alt[front : len(alt) - back].upper())
        numbers = {
            number
            for place in range((start - 1) // _BIN, end // _BIN + 1)
            for number in self._bins.get((contig, place), ())
        }
        found = []
        for number in sorted(numbers):
            one = self.transcripts[number]
            terms, protein = self._effect(number, start, end, codes)
            if terms:
                ordered = tuple(sorted(terms, key=_RANK.__getitem__))
                far = max(one.start - end, start - one.end, 0)
                effect = Consequence(ordered, one.gene, one.name, one.strand, protein)
                found.append((_RANK[ordered[0]], far, effect))
        found.sort(key=lambda each: each[:2])
        return [effect for _, _, effect in found] or [Consequence(("intergenic_variant",))]

    def _effect(self, number: int, start: int, end: int, alt: _Codes) -> tuple[set[str], str]:
        one = self.transcripts[number]
        terms = _touched(one, start, end)
        if "coding_sequence_variant" not in terms:
            return terms, ""
        spliced = self._spliced(number)
        offset = 0
        for low, high in spliced.parts:
            if low <= start and end <= high:
                break
            offset += high - low
        else:  # over the border of an exon
            left, right = start < one.coding[0][0] + 3, end > one.coding[-1][1] - 3
            first, last = (left, right) if one.strand == "+" else (right, left)
            coded = spliced.codes[spliced.first + one.phase : spliced.end]
            stops = one.code in _OTHER_CODES and _translate(coded, one.code).endswith("*")
            found = {"start_lost"} if first and one.begins and not one.phase else set[str]()
            found |= {"stop_lost"} if last and stops and len(coded) % 3 == 0 else set[str]()
            if found:
                terms = (terms - {"coding_sequence_variant"}) | found
            return terms, "p.Met1?" if "start_lost" in found else ""
        at = offset + start - low
        if one.strand == "-":
            at, alt = len(spliced.codes) - (at + end - start), reverse_complement(alt)
        found, protein = _translated(one, spliced, at, end - start, alt)
        return (terms - {"coding_sequence_variant"}) | found, protein

    def _splice(self, number: int) -> _Spliced:
        one = self.transcripts[number]
        low, high = one.coding[0][0], one.coding[-1][1]
        coding, parts = sum(e - s for s, e in one.coding), one.exons
        inside = [(max(s, low), min(e, high)) for s, e in parts if s < high and low < e]
        if sum(e - s for s, e in inside) != coding:  # a frame shifts in translation
            parts, inside = one.coding, [*one.coding]
        view = self.store.view(one.contig)
        codes = np.concatenate([view[s:e] for s, e in parts]) & np.uint8(BASE_BITS)
        first = sum(min(e, low) - s for s, e in parts if s < low)
        if one.strand == "-":
            codes, first = reverse_complement(codes), len(codes) - first - coding
        return _Spliced(parts, codes, first, first + coding)


def _touched(one: _Transcript, start: int, end: int) -> set[str]:
    """Give the terms of the parts of a transcript that a change of bases touches."""

    # An insertion, before the base `start`, touches what has bases on both sides of it; between
    # exon and intron it is part of the exon.
    def touches(low: int, high: int) -> bool:
        return start < high and low < end if start < end else low < start < high

    terms: set[str] = set()
    forward, insertion = one.strand == "+", start == end
    if not touches(one.start, one.end):
        tss = one.start if forward else one.end
        near = touches(tss - UPSTREAM, tss + 1) if forward else touches(tss - 1, tss + UPSTREAM)
        return {"upstream_gene_variant"} if near else terms
    if start <= one.start and one.end <= end:
        return {"transcript_ablation"}
    donor, acceptor = "splice_donor_variant", "splice_acceptor_variant"
    for (_, low), (high, _) in pairwise(one.exons):
        if high - low < _SHORTEST or not touches(low - _EXON, high + _EXON):
            continue
        if touches(low, low + _SITE):
            terms.add(donor if forward else acceptor)
        if touches(high - _SITE, high):
            terms.add(acceptor if forward else donor)
        if touches(low + _SITE, high - _SITE) or (insertion and low < start < high):
            terms.add("intron_variant")
        near = ((low - _EXON, low), (low + _SITE, min(low + _INTRON, high)),
                (max(high - _INTRON, low), high - _SITE), (high, high + _EXON))  # fmt: skip
        borders = (low, low + _SITE, high - _SITE, high)
        if any(touches(*part) for part in near) or (insertion and start in borders):
            terms.add("splice_region_variant")
    if not one.coding:
        if any(touches(low, high) for low, high in one.exons):
            terms.add("non_coding_transcript_exon_variant")
        return terms or {"intron_variant"}
    first, last = one.coding[0][0], one.coding[-1][1]
    for low, high in one.exons:
        if not touches(low, high):
            continue
        if (low < first and start < first) or (insertion and start == first):
            terms.add("5_prime_UTR_variant" if forward else "3_prime_UTR_variant")
        if (last < high and end > last) or (insertion and start == last):
            terms.add("3_prime_UTR_variant" if forward else "5_prime_UTR_variant")
    inner = {place for part in one.coding for place in part} - {first, last}
    if any(touches(low, high) for low, high in one.coding) or (insertion and start in inner):
        terms.add("coding_sequence_variant")
    return terms or {"intron_variant"}


def _translate(codes: _Codes, code: int) -> str:
    """Give the amino acids of whole codons, X for one with N."""
    codons = codes[: len(codes) // 3 * 3].reshape(-1, 3)
    known = (codons < 4).all(1)
    index = np.where(known, codons @ np.array([16, 4, 1]), 0)
    return np.where(known, _table(code)[index], ord("X")).astype(np.uint8).tobytes().decode()


@lru_cache
def _table(code: int) -> _Codes:
    acids = dict(zip(map("".join, product("ACGT", repeat=3)), _STANDARD, strict=True))
    return np.frombuffer("".join((acids | _OTHER_CODES[code]).values()).encode(), np.uint8)


def _translated(
    one: _Transcript, spliced: _Spliced, at: int, size: int, alt: _Codes
) -> tuple[set[str], str]:
    """Give what `alt` in place of `size` bases at `at` of the transcript does to its protein."""
    message, first, end = spliced.codes, spliced.first + one.phase, spliced.end
    if at + size <= first or one.code not in _OTHER_CODES:
        return {"coding_sequence_variant"}, ""  # of a codon that is not whole, or an unknown code
    starts = _STARTS.get(one.code, ("ATG",))
    changed = np.concatenate([message[:at], alt, message[at + size :]])
    more = len(alt) - size
    begins = one.begins and not one.phase
    if begins and at < first + 3:
        kept = decode(changed[max(first + more, 0) :][:3]) in starts
        if more and kept and at + size <= first + 3:  # the codon is there again, moved
            return {"start_retained_variant"}, ""
        if at < first:
            return {"start_lost"}, "p.Met1?"
    elif at < first:
        return {"coding_sequence_variant"}, ""
    old, new = message[first:end], changed[first:]
    count, place = len(old) // 3, at - first
    if place >= 3 * count:
        return {"incomplete_terminal_codon_variant"}, ""
    ref, found = _translate(old, one.code), _translate(new, one.code)
    stops = len(old) % 3 == 0 and ref.endswith("*")
    inner = len(ref) - stops
    ref = "".join(  # TGA inside an annotated protein
        "U" if acid == "*" and n < inner and decode(old[3 * n : 3 * n + 3]) == "TGA" else acid
        for n, acid in enumerate(ref)
    ) if "*" in ref[:inner] else ref  # fmt: skip

    def same(i: int, j: int) -> bool:
        return np.array_equal(old[3 * i : 3 * i + 3], new[3 * j : 3 * j + 3])

    head = place // 3
    while head < min(count, len(found)) and same(head, head):
        head += 1
    found = ref[:head] + found[head:]
    stop = stops and at + size > end - 3
    if stop and found.startswith(ref):  # what follows the coding sequence can give it back
        return {"stop_retained_variant"}, f"p.Ter{count}="
    terms: set[str] = set()
    if begins and head == 0:
        kept = decode(new[:3]) in starts
        terms.add("start_retained_variant" if kept else "start_lost")
    if more % 3 or at + size > end:
        return _shifted(terms, (ref, found), head, stop, at + size <= end)
    goal = count + more // 3
    tail = max(0, min((3 * count - place - size) // 3, count - head, goal - head))
    while tail < min(count, goal) - head and same(count - tail - 1, goal - tail - 1):
        tail += 1
    before, after = ref[head : count - tail], found[head : goal - tail]
    return _in_frame(terms, (ref, before, after), head, more // 3, stops and not tail)


def _shifted(
    terms: set[str], acids: tuple[str, str], head: int, stop: bool, shift: bool
) -> tuple[set[str], str]:
    """Name a shift of the frame, or a change over the end; acids are alike up to `head`."""
    ref, found = acids
    while head < min(len(ref), len(found)) and ref[head] == found[head]:
        head += 1
    if shift:
        terms.add("frameshift_variant")
    if stop:
        terms.add("stop_lost")
    if "start_lost" in terms:
        return terms, "p.Met1?"
    if not shift or head >= len(ref):
        return terms, f"p.Ter{len(ref)}extTer?" if stop else ""
    return terms, f"p.{_NAMES[ref[head]]}{head + 1}{'Ter' if found[head:][:1] == '*' else 'fs'}"


def _in_frame(
    terms: set[str], acids: tuple[str, str, str], head: int, longer: int, stop: bool
) -> tuple[set[str], str]:
    """Name a change of whole codons: acids are all, and those before and after the change."""
    ref, before, after = acids
    until, star, _ = after.partition("*")
    gained = bool(star) and not (stop and len(until) >= len(before) - 1 + min(longer, 0))
    if gained:
        terms.add("stop_gained")
    elif stop and not star:
        terms.add("stop_lost")
    if longer:
        terms.add("inframe_insertion" if longer > 0 else "inframe_deletion")
    elif not terms:
        terms.add("synonymous_variant" if before == after else "missense_variant")
    if stop and star and not gained:
        terms.add("stop_retained_variant")
    if "start_lost" in terms:
        return terms, "p.Met1?"
    return terms, _protein_change(ref, before, until + star, head)


def _protein_change(ref: str, before: str, after: str, head: int) -> str:
    """Write a change of amino acids from number `head` (0-based) on, as HGVS does."""

    def name(acids: str) -> str:
        return "".join(_NAMES[acid] for acid in acids)

    def place(first: int, last: int) -> str:
        ends = [f"{_NAMES[ref[n]]}{n + 1}" for n in (first, last) if 0 <= n < len(ref)]
        return "_".join(dict.fromkeys(ends))

    if before == after:
        return f"p.{place(head, head + len(before) - 1)}="
    while before and after and before[0] == after[0]:
        before, after, head = before[1:], after[1:], head + 1
    # At the last place where the same change can stand.
    while not after and before and ref[head + len(before) : head + len(before) + 1] == before[0]:
        before, head = before[1:] + before[0], head + 1
    while not before and after and ref[head : head + 1] == after[0]:
        after, head = after[1:] + after[0], head + 1
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    where = place(head, head + len(before) - 1)
    if before.startswith("*"):
        return f"p.{where}{name(after[:1])}extTer?"
    if after.startswith("*"):
        return f"p.{place(head, head)}Ter"
    if not before and ref[:head].endswith(after):
        return f"p.{place(head - len(after), head - 1)}dup"
    if not before:
        return f"p.{place(head - 1, head)}ins{name(after)}"
    several = len(before) > 1 or len(after) > 1
    return f"p.{where}{'delins' * several if after else 'del'}{name(after)}"


def _read_transcripts(path: str | Path, store: Genome, strict: bool) -> Iterator[_Transcript]:
    frame = read_gff(path, store, attributes=_KEYS, strict=strict)
    columns = ("contig", "start", "end", "type", "strand", "phase", "attributes", *_KEYS)
    owners: dict[str, dict[str, Any]] = {}
    parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in frame.select(columns).iter_rows(named=True):
        if row["type"] not in _PARTS:
            key = row["ID"] or (row["transcript_id"] if row["type"] == "transcript" else None)
            if key:
                owners[key] = row
            continue
        for owner in (row["Parent"] or row["transcript_id"] or row["gene_id"] or "").split(","):
            if owner:
                parts[row["contig"], owner].append(row)
    odd = 0
    for (contig, owner), rows in parts.items():
        row = owners.get(owner) or {**rows[0], "ID": owner, "Name": None, "Parent": None}
        strands = {one["strand"] for one in rows}
        if len(strands) > 1 or "." in strands:  # no order to read it in
            odd += 1
            continue
        strand = strands.pop()
        top, seen = row, {owner}
        while (above := owners.get(top["Parent"] or "")) is not None and top["Parent"] not in seen:
            seen.add(top["Parent"])
            top = above
        name = row["gene_name"] or top["Name"] or row["gene"] or row["gene_id"] or top["ID"]
        exons, coding, stop = (
            tuple(sorted({(one["start"], one["end"]) for one in rows if one["type"] == kind}))
            for kind in _PARTS
        )
        coding = union([*coding, *stop]) if coding and stop else coding  # apart in GTF
        if not (exons := exons or coding):
            continue
        known = {code for one in rows if (code := one["transl_table"] or "").isdecimal()}
        code = int(known.pop()) if known else 2 if contig in MITOCHONDRIAL else 1
        firsts = [one for one in rows if one["type"] == "CDS"]
        firsts.sort(key=lambda one: one["start"] if strand == "+" else -one["end"])
        edge = "start_range" if strand == "+" else "end_range"
        yield _Transcript(
            row["transcript_id"] or _plain(owner), _plain(name or owner), contig, strand, exons,
            coding, (firsts[0]["phase"] or 0) if firsts else 0,
            not any("cds_start_NF" in one["attributes"] or (one["partial"] == "true" and one[edge])
                    for one in (row, *rows)),
            code,
        )  # fmt: skip
    if odd:
        warn(f"{path}: {odd:,} transcripts on no strand, or on both, are left out", LeftOutWarning)


def _plain(name: str) -> str:  # without what Ensembl and RefSeq write before it
    return re.sub(r"^(transcript:|gene:|rna-|gene-)", "", name)

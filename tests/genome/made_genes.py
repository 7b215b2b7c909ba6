"""A made-up genome with genes on both strands, as FASTA, GFF3 and GTF, and random variants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

PAIRS = str.maketrans("ACGT", "TGCA")
STOPS = ("TAA", "TAG", "TGA")


def reverse(text: str) -> str:
    return text.translate(PAIRS)[::-1]


@dataclass
class Gene:
    """Exons and coding parts along the contig, 0-based half-open."""

    name: str
    strand: str
    exons: list[tuple[int, int]]
    coding: list[tuple[int, int]]
    phase: int = 0

    def gff(self, contig: str) -> list[str]:
        """Rows as Ensembl writes them."""
        kind = "protein_coding" if self.coding else "lincRNA"
        low, high = self.exons[0][0] + 1, self.exons[-1][1]
        top = f"{contig}\tmade\t{{}}\t{{}}\t{{}}\t.\t{self.strand}\t{{}}\t{{}}"
        mother = f"Parent=transcript:{self.name}T"
        rows = [
            top.format("gene" if self.coding else "ncRNA_gene", low, high, ".",
                f"ID=gene:{self.name}G;Name={self.name};biotype={kind};gene_id={self.name}G"),
            top.format("mRNA" if self.coding else "lnc_RNA", low, high, ".",
                f"ID=transcript:{self.name}T;Parent=gene:{self.name}G;biotype={kind};"
                f"transcript_id={self.name}T"),
        ]  # fmt: skip
        rows += [top.format("exon", s + 1, e, ".", mother) for s, e in self.exons]
        for (s, e), phase in zip(self.coding, self.phases(), strict=True):
            rows.append(top.format("CDS", s + 1, e, phase, f"ID=CDS:{self.name}P;{mother}"))
        if self.coding:
            first, last = self.coding[0][0], self.coding[-1][1]
            names = ["five_prime_UTR", "three_prime_UTR"][:: 1 if self.strand == "+" else -1]
            for s, e in self.exons:
                if s < first:
                    rows.append(top.format(names[0], s + 1, min(e, first), ".", mother))
                if e > last:
                    rows.append(top.format(names[1], max(s, last) + 1, e, ".", mother))
        return rows

    def gtf(self, contig: str) -> list[str]:
        """Rows as GENCODE writes them: the stop codon is not part of CDS."""
        top = f"{contig}\tmade\t{{}}\t{{}}\t{{}}\t.\t{self.strand}\t{{}}\t"
        top += f'gene_id "{self.name}G"; transcript_id "{self.name}T"; gene_name "{self.name}";'
        rows = [top.format("transcript", self.exons[0][0] + 1, self.exons[-1][1], ".")]
        rows += [top.format("exon", s + 1, e, ".") for s, e in self.exons]
        left = 3 if self.coding and not self.phase else 0
        parts = list(zip(self.coding, self.phases(), strict=True))
        for (s, e), phase in parts if self.strand == "-" else parts[::-1]:
            cut = min(left, e - s)
            left -= cut
            inner = (s + cut, e) if self.strand == "-" else (s, e - cut)
            stop = (s, s + cut) if self.strand == "-" else (e - cut, e)
            if cut:
                rows.append(top.format("stop_codon", stop[0] + 1, stop[1], 0))
            if inner[0] < inner[1]:
                rows.append(top.format("CDS", inner[0] + 1, inner[1], phase))
        return rows

    def phases(self) -> list[int]:
        """Bases of each coding part that belong to the codon before it."""
        out, before = [], -self.phase
        for s, e in self.coding if self.strand == "+" else self.coding[::-1]:
            out.append(-before % 3)
            before += e - s
        return out if self.strand == "+" else out[::-1]


def make_genes(rng: np.random.Generator, count: int = 12) -> tuple[str, list[Gene]]:
    """Give a contig and its genes: complete ones, some without start codon, some not coding."""
    letters = [*rng.choice(list("ACGT"), 1_500 * count + 500)]
    genes = []
    for number in range(count):
        place, exons = 300 + 1_500 * number, []
        for _ in range(int(rng.integers(2, 6))):
            size = int(rng.integers(40, 130))
            exons.append((place, place + size))
            place += size + int(rng.integers(40, 120))
        strand = "+-"[number % 2]
        phase = int(rng.integers(1, 3)) if number % 6 in (4, 5) else 0
        gene = Gene(f"G{number}", strand, exons, [], phase)
        genes.append(gene)
        if number % 6 in (2, 3) and number < 4:
            continue
        total = sum(e - s for s, e in exons)
        first = 0 if phase else int(rng.integers(3, 30))
        bases = (total - first - 15 - phase) // 3 * 3
        low = first if strand == "+" else total - first - phase - bases
        high = low + phase + bases
        at = 0
        for s, e in exons:
            a, b = max(at, low), min(at + e - s, high)
            if a < b:
                gene.coding.append((s + a - at, s + b - at))
            at += e - s
        codons = [
            codon
            for codon in ("".join(rng.choice(list("ACGT"), 3)) for _ in range(bases))
            if codon not in STOPS
        ][: bases // 3]
        if not phase:
            codons[0] = "ATG"
        codons[-1] = STOPS[number % 3]
        text = "ACG"[:phase] + "".join(codons)
        text = text if strand == "+" else reverse(text)
        for s, e in gene.coding:
            letters[s:e], text = text[: e - s], text[e - s :]
    return "".join(letters), genes


def write_genome(folder: Path, contig: str, letters: str, genes: list[Gene]) -> tuple[Path, Path]:
    """Write FASTA and GFF3."""
    fasta, gff = folder / "made.fa", folder / "made.gff3"
    fasta.write_text(f">{contig}\n{letters}\n")
    rows = [row for gene in genes for row in gene.gff(contig)]
    gff.write_text("\n".join(["##gff-version 3", *rows]) + "\n")
    return fasta, gff


def random_variants(
    rng: np.random.Generator, letters: str, genes: list[Gene], count: int
) -> list[tuple[int, str, str]]:
    """Give (0-based position, REF, ALT) in genes: all kinds, half of them at borders of parts."""
    borders = [place for gene in genes for part in gene.exons + gene.coding for place in part]
    found: set[tuple[int, str, str]] = set()
    while len(found) < count:
        gene = genes[int(rng.integers(len(genes)))]
        place = int(rng.integers(gene.exons[0][0] - 20, gene.exons[-1][1] + 20))
        if rng.random() < 0.5:
            place = int(rng.choice(borders)) + int(rng.integers(-12, 13))
        kind, size = rng.integers(4), int(rng.integers(1, 8))
        other = "".join(rng.choice(list("ACGT"), size))
        ref = letters[place : place + 1]
        if kind == 0:
            alt = str(rng.choice([base for base in "ACGT" if base != ref]))
        elif kind == 1:
            size = min(size, 4)
            ref, alt = letters[place : place + size], other[:size]
        elif kind == 2:
            alt = ref + other
        else:
            ref, alt = letters[place : place + size + 1], ref
        if ref != alt:
            found.add((place, ref, alt))
    return sorted(found)

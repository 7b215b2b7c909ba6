"""Write the small made-up files that the examples of the documentation read.

    python examples/inputs.py [FOLDER]        (where megabase is installed; takes half a minute)

Everything follows from one seed, so the output shown in the documentation is the output you get.
"""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np

LENGTHS = {"chr1": 20_000, "chr2": 8_000, "chr3": 8_000}
GENE, SPACING = 300, 1000
"""Coding bases of a gene, and bases from the start of one gene to that of the next."""

RECIPE = """\
output: runs/mine
data: {genome: genome.mb, validation: [chr2], test: [chr3]}
model: {d_model: 32, n_layer: 2}
stages: [{length: 256}]
global_batch: 16
steps: 40
eval_every: 40
optim: {lr: 3.0e-3}
devices: {accelerator: cpu}
"""
"""A run of a few seconds, which still gets below the perplexity of knowing nothing."""


MOTIFS = """\
TBP TATAAAA  FOS::JUN TGACTCA  MYC CACGTG  GATA1 AGATAAG  CTCF CCACCAGGGGGCGC  SP1 GGGGCGGGG
NFYA CCAATCA  FOXA1 TGTTTAC  ETS1 ACCGGAAGT  CREB1 TGACGTCA  NFKB1 GGGACTTTCC  STAT3 TTCCCGGAA
RUNX1 TGTGGTT  YY1 AAGATGGCG  POU5F1 ATGCAAAT  SOX2 CATTGTT  KLF4 GGGTGTGG  E2F1 TTTGGCGC
SRF CCATATTAGG  MEF2A CTAAAAATAG  TP53 GGGCATGTCC  HNF4A CAAAGTCCA  CEBPA ATTGCGCAAT
REST TTCAGCACC  TEAD1 ACATTCCA  NRF1 GCGCATGCGC
"""
"""What these factors bind, as consensus."""


def write_inputs(folder: Path) -> None:
    """Write genome, annotation, variants, peaks, motifs, labeled sequences and two small runs."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    genome = _write_genome(folder, rng)
    _write_variants(folder, genome["chr1"])
    _write_promoters(folder, np.random.default_rng(1))
    _write_families(folder, np.random.default_rng(2))
    _write_motifs(folder)
    _train(folder)


def _random(rng: np.random.Generator, length: int, weights: tuple[int, ...] = (1, 1, 1, 1)) -> str:
    share = np.array(weights) / sum(weights)
    return "".join(rng.choice(list("ACGT"), length, p=share).tolist())


def _write_genome(folder: Path, rng: np.random.Generator) -> dict[str, str]:
    """Write AT-rich contigs with a GC-rich gene in every 1,000 bases, and where the genes are."""
    genome = dict.fromkeys(LENGTHS, "")
    lines = ["##gff-version 3"]
    for name, length in LENGTHS.items():
        for start in range(0, length, SPACING):
            gene = _random(rng, GENE, (1, 3, 3, 1))
            before, after = _random(rng, 350, (3, 2, 2, 3)), _random(rng, 350, (3, 2, 2, 3))
            genome[name] += before + gene + after
            first, number = start + 351, start // SPACING + 1
            for kind in ("gene", "CDS"):
                phase = "0" if kind == "CDS" else "."
                lines.append(
                    f"{name}\tmade_up\t{kind}\t{first}\t{first + GENE - 1}\t.\t+\t{phase}"
                    f"\t{'ID' if kind == 'gene' else 'Parent'}={name}g{number};Name=g{number}"
                )
    fasta = "".join(f">{name}\n{bases}\n" for name, bases in genome.items())
    (folder / "genome.fa").write_text(fasta)
    (folder / "genome.fa.gz").write_bytes(gzip.compress(fasta.encode(), mtime=0))
    (folder / "genes.gff").write_text("\n".join(lines) + "\n")
    peaks = [
        f"chr1\t{start + 330}\t{start + 530}\tpeak{start // SPACING}\t0\t{'+-'[start % 2000 > 0]}"
        for start in range(0, 8000, SPACING)
    ]
    (folder / "peaks.bed").write_text("\n".join(peaks) + "\n")
    return genome


def _write_variants(folder: Path, contig: str) -> None:
    """Write 20 substitutions, a deletion, and a record whose REF is not that of the genome."""
    lines = ["##fileformat=VCFv4.2", f"##contig=<ID=chr1,length={len(contig)}>"]
    lines.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    records = [(position, "") for position in range(1400, 11400, 500)]
    for number, (position, _) in enumerate(records, start=1):
        ref = contig[position - 1]
        alt = "ACGT"["ACGT".index(ref) - 1]
        lines.append(f"chr1\t{position}\tv{number}\t{ref}\t{alt}\t.\t.\t.")
    lines.append(f"chr1\t12000\tv21\t{contig[11999:12003]}\t{contig[11999]}\t.\t.\t.")
    other = "ACGT"["ACGT".index(contig[12499]) - 2]
    lines.append(f"chr1\t12500\tv22\t{other}\t{contig[12499]}\t.\t.\t.")
    (folder / "variants.vcf").write_text("\n".join(lines) + "\n")


def _write_promoters(folder: Path, rng: np.random.Generator) -> None:
    """Write labeled sequences: a promoter has a TATA box at bases 31 to 37."""
    rows: list[tuple[str, str]] = []
    for _ in range(300):
        rows.append((_random(rng, 80), "background"))
        rows.append((_random(rng, 30) + "TATAAAA" + _random(rng, 43), "promoter"))
    for name, part in (("train", rows[:400]), ("valid", rows[400:500]), ("test", rows[500:])):
        text = "".join(f"{sequence},{label}\n" for sequence, label in part)
        (folder / f"{name}.csv").write_text("sequence,label\n" + text)
    fasta = "".join(
        f">{label}{number}\n{sequence}\n"
        for number, (sequence, label) in enumerate(rows[500:508], start=1)
    )
    (folder / "promoters.fa").write_text(fasta)


def _write_motifs(folder: Path) -> None:
    """Write a MEME file in which a position has its base with probability 0.91."""
    words = MOTIFS.split()
    text = "MEME version 4\n\nALPHABET= ACGT\n\n"
    for name, consensus in zip(words[::2], words[1::2], strict=True):
        text += f"MOTIF {name}\nletter-probability matrix: alength= 4 w= {len(consensus)}\n"
        for base in consensus:
            text += " ".join("0.91" if base == one else "0.03" for one in "ACGT") + "\n"
    (folder / "motifs.meme").write_text(text)


def _write_families(folder: Path, rng: np.random.Generator) -> None:
    """Write genes of three families that differ in composition and length, and their labels."""
    families = {"AT-rich": (4, 1, 1, 4), "GC-rich": (1, 4, 4, 1), "purine-rich": (4, 1, 4, 1)}
    genes, labels = "", ""
    for name, weights in families.items():
        for number in range(15):
            genes += f">{name}-{number}\n{_random(rng, int(rng.integers(200, 900)), weights)}\n"
            labels += f"{name}-{number}\t{name}\n"
    (folder / "genes.fa").write_text(genes)
    (folder / "families.tsv").write_text(labels)


def _train(folder: Path) -> None:
    """Train a small language model of the genome, and a classifier of the promoters."""
    import megabase as mb

    cpu = mb.DeviceConfig(accelerator="cpu")
    before = Path.cwd()
    os.chdir(folder)  # run folders name their inputs as they were given
    try:
        mb.Genome.build(["genome.fa"], "genome.mb", name="example")
        Path("recipe.yaml").write_text(RECIPE)
        mb.pretrain("recipe.yaml")
        mb.finetune(mb.FinetuneConfig(
            output="runs/promoters", family="cnn", train="train.csv", valid="valid.csv",
            test="test.csv", epochs=8, devices=cpu,
        ))  # fmt: skip
    finally:
        os.chdir(before)


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1] if len(sys.argv) > 1 else "example-inputs"))

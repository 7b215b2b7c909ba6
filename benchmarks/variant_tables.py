"""Tables for ``megabase benchmark variants``: common SNVs with matches, and windows of ClinVar.

1. Common SNVs of a stretch of genome (``--genome``, ``--snps``: a CSV with 0-based position, ref,
   alt as its second to fourth column) against simulated ones on the same stretch, one for
   each, matched by the bases before and after and by the change.
2. Pathogenic against benign variants given as pairs of windows (``--pairs``: a CSV with columns
   ref, alt, variant_type, CLNSIG; the variant in the middle): each window becomes a contig of a
   FASTA file, and windows that share DNA one match group, the unit of the bootstrap.

    python benchmarks/variant_tables.py FOLDER --genome g.fa.gz --snps common.csv --pairs w.csv.gz
    megabase benchmark variants --data FOLDER/common.tsv --variants.genome g.fa.gz ...
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from megabase.data.sources import genome_store
from megabase.genome.alphabet import decode

WORD, SHARE = 32, 16
"""Windows share DNA when they share a word of so many bases, out of one in so many of all words."""
HEAD = "chrom\tpos\tref\talt\tlabel\tmatch_group\tsubset\n"
"""Columns of both tables; positions are 1-based."""


def common_snvs(genome: Path, snps: Path, table: Path) -> None:
    """Write common SNVs (label 0) with a simulated match of each (label 1)."""
    with genome_store(genome) as store:
        name = store.contigs[0].name
        text = decode(store.view(name))
    with snps.open() as file:
        rows = [(int(row[1]), row[2], row[3]) for row in list(csv.reader(file))[1:]]
    rows = [row for row in rows if text[row[0]] == row[1] and len(row[1]) == len(row[2]) == 1]
    taken = {row[0] for row in rows}
    places = defaultdict(list)
    for i in range(1, len(text) - 1):
        if i not in taken:
            places[text[i - 1 : i + 2]].append(i)
    rng = np.random.default_rng(0)
    lines = []
    for number, (position, ref, alt) in enumerate(rows):
        other = int(rng.choice(places[text[position - 1 : position + 2]]))
        for label, at in ((0, position), (1, other)):
            lines.append(f"{name}\t{at + 1}\t{ref}\t{alt}\t{label}\t{number}\tsnv\n")
    table.write_text(HEAD + "".join(lines))


def clusters(windows: list[str]) -> NDArray[np.int64]:
    """Give the number of the group of each window; groups share DNA."""
    words: dict[str, int] = {}
    pairs = [
        (number, words.setdefault(window[i : i + WORD], len(words)))
        for number, window in enumerate(windows)
        for i in range(len(window) - WORD + 1)
        if sum(map(ord, window[i : i + 8])) % SHARE == 0  # the same choice wherever a word stands
    ]
    row, column = np.array(pairs).T
    size = len(windows) + len(words)
    graph = coo_array((np.ones(len(row)), (row, column + len(windows))), (size, size))
    return connected_components(graph, directed=False)[1][: len(windows)]


def pairs(windows: Path, table: Path) -> None:
    """Write the variants of pairs of windows, and the windows with REF as FASTA beside them."""
    with gzip.open(windows, "rt") as file:
        rows = list(csv.DictReader(file))
    kept, lines = [], []
    for row in rows:
        ref, alt, middle = row["ref"], row["alt"], len(row["ref"]) // 2
        kind = row["variant_type"].lower()
        one = alleles(ref, alt, middle, kind.startswith(("snv", "single")))
        if one is None or one[0] == one[1] or set("".join(one)) - set("ACGT"):
            continue
        label = int("athogenic" in row["CLNSIG"])
        subset = "snv" if len(one[0]) == len(one[1]) == 1 else "indel"
        lines.append((f"w{len(kept)}\t{middle + 1}\t{one[0]}\t{one[1]}\t{label}", subset))
        kept.append(ref)
    groups = clusters(kept)
    table.with_suffix(".fa").write_text("".join(f">w{i}\n{ref}\n" for i, ref in enumerate(kept)))
    ends = zip(lines, groups, strict=True)
    table.write_text(
        HEAD + "".join(f"{line}\t{group}\t{subset}\n" for (line, subset), group in ends)
    )


def alleles(ref: str, alt: str, middle: int, single: bool) -> tuple[str, str] | None:
    """Give the shortest alleles at `middle` that turn one window into the other."""
    if single:
        differ = sum(a != b for a, b in zip(ref, alt, strict=True))
        return (ref[middle], alt[middle]) if differ == 1 else None
    for size in range(1, 65):
        for old, new in ((1, size), (size, 1), (size, size)):
            changed = ref[:middle] + alt[middle : middle + new] + ref[middle + old :]
            length = min(len(changed), len(alt))
            if changed[:length] == alt[:length]:
                return ref[middle : middle + old], alt[middle : middle + new]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genome", type=Path)
    parser.add_argument("--snps", type=Path)
    parser.add_argument("--pairs", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.genome and args.snps:
        common_snvs(args.genome, args.snps, args.folder / "common.tsv")
    if args.pairs:
        pairs(args.pairs, args.folder / "clinvar.tsv")


if __name__ == "__main__":
    main()

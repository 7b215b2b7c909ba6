"""How well scores of variants tell classes apart: AUROC of each method, with a bootstrap interval.

Two questions, asked of one model without any training on the answers:

1. Common SNVs of a stretch of genome against simulated ones on the same stretch, one for each,
   matched by the bases before and after and by the change (``--genome``, ``--snps``: a CSV with
   columns 0-based position, ref, alt, as its second to fourth column).
2. Pathogenic against benign variants given as pairs of windows (``--pairs``: a CSV with columns
   ref, alt, variant_type, CLNSIG; the variant in the middle). Windows that share DNA are one
   cluster, and the bootstrap draws clusters.

    python benchmarks/variant_auroc.py --genome piece.fa.gz --snps common.csv --pairs windows.csv.gz
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import mannwhitneyu

from megabase.genome.alphabet import decode
from megabase.genome.interval import Variant
from megabase.genome.store import Genome
from megabase.inference.variants.scorer import score_variants

METHODS = ("llr_window", "llr_after", "llr_site", "cosine", "l2")
"""Scores of the likelihood are turned so that higher means more likely to be harmful."""
WORD, SHARE = 32, 16
"""Windows share DNA when they share a word of so many bases, out of one in so many of all words."""


def auroc(values: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    positive, negative = values[label], values[~label]
    above = mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(above / (len(positive) * len(negative)))


def measure(
    table: pl.DataFrame, label: NDArray[np.bool_], cluster: NDArray[np.int64], draws: int
) -> dict:
    """Give the AUROC of every method, its 95 % interval by drawing clusters, and rows scored."""
    results = {}
    for method in METHODS:
        values = table[method].cast(pl.Float64).to_numpy()
        score = -values if method.startswith("llr") else values
        good = np.flatnonzero(~np.isnan(score))
        rng = np.random.default_rng(0)
        names = np.unique(cluster[good])
        members = [good[cluster[good] == name] for name in names]
        found = []
        for _ in range(draws):
            rows = np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))])
            found.append(auroc(score[rows], label[rows]))
        low, high = np.quantile(found, [0.025, 0.975]).tolist()
        results[method] = {"auroc": auroc(score[good], label[good]), "low": low, "high": high,
                           "scored": len(good)}  # fmt: skip
    return results


def common_snvs(args: argparse.Namespace, folder: Path) -> dict:
    store = Genome.build(args.genome, folder / "piece.mb")
    name = store.contigs[0].name
    text = decode(store.view(name))
    with args.snps.open() as file:
        rows = [(int(row[1]), row[2], row[3]) for row in list(csv.reader(file))[1:]]
    rows = [row for row in rows if text[row[0]] == row[1] and len(row[1]) == len(row[2]) == 1]
    rows = rows[:: max(1, len(rows) // args.limit)] if args.limit else rows
    taken = {row[0] for row in rows}
    places = defaultdict(list)
    for i in range(1, len(text) - 1):
        if i not in taken:
            places[text[i - 1 : i + 2]].append(i)
    rng = np.random.default_rng(0)
    matched = [
        (int(rng.choice(places[text[position - 1 : position + 2]])), ref, alt)
        for position, ref, alt in rows
    ]
    variants = [Variant(name, at, ref, alt) for at, ref, alt in (*rows, *matched)]
    table = score_variants(args.model, variants, store, window=args.window, methods=METHODS).table
    simulated = np.arange(len(variants)) >= len(rows)
    # Neighbors share their windows: stretches of a window are drawn together.
    cluster = np.array([variant.position // args.window for variant in variants])
    return {"each": len(rows), "methods": measure(table, simulated, cluster, args.draws)}


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


def pairs(args: argparse.Namespace, folder: Path) -> dict:
    with gzip.open(args.pairs, "rt") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // args.limit)] if args.limit else rows
    kept, variants, labels = [], [], []
    for row in rows:
        ref, alt, middle = row["ref"], row["alt"], len(row["ref"]) // 2
        one = alleles(ref, alt, middle, row["variant_type"].lower().startswith(("snv", "single")))
        if one is None or one[0] == one[1] or set("".join(one)) - set("ACGT"):
            continue
        variants.append(Variant(f"w{len(kept)}", middle, *one))
        kept.append(ref)
        labels.append("athogenic" in row["CLNSIG"])
    fasta = folder / "windows.fa"
    fasta.write_text("".join(f">w{i}\n{ref}\n" for i, ref in enumerate(kept)))
    cluster, label = clusters(kept), np.array(labels)
    # A window is all there is of its contig: deletions need bases behind it and stay out.
    window = args.window - args.spare
    table = score_variants(args.model, variants, fasta, window=window, methods=METHODS).table
    return {
        "pairs": len(kept),
        "left_out": len(rows) - len(kept),
        "pathogenic": int(label.sum()),
        "clusters": len(np.unique(cluster)),
        "methods": measure(table, label, cluster, args.draws),
    }


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
    parser.add_argument("--genome", type=Path)
    parser.add_argument("--snps", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--spare", type=int, default=64, help="bases of a pair kept for deletions")
    parser.add_argument("--limit", type=int, default=0, help="use about so many, evenly spread")
    parser.add_argument("--draws", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if args.genome and args.snps:
            found = {"common SNVs": common_snvs(args, Path(name))}
            print(json.dumps(found, indent=1), flush=True)
        if args.pairs:
            print(json.dumps({"pairs": pairs(args, Path(name))}, indent=1))


if __name__ == "__main__":
    main()

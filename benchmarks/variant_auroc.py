"""How well scores of variants tell classes apart: AUROC of each method, with a bootstrap interval.

Two questions, asked of one model without any training on the answers:

1. Common SNVs of a stretch of genome against simulated ones on the same stretch, one for each,
   matched by the bases before and after and by the change (``--genome``, ``--snps``: a CSV with
   columns 0-based position, ref, alt, as its second to fourth column).
2. Pathogenic against benign variants given as pairs of windows (``--pairs``: a CSV with columns
   ref, alt, variant_type, CLNSIG; the variant in the middle). Windows that share DNA are one
   cluster, and
   the bootstrap draws clusters.

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
from numpy.typing import NDArray

from megabase.genome.alphabet import decode
from megabase.genome.interval import Variant
from megabase.genome.store import Genome
from megabase.inference import score_variants

METHODS = ("llr_window", "llr_after", "llr_site", "cosine", "l2")
WORD, SHARE = 32, 16


def auroc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    values = np.concatenate((positive, negative))
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


def interval(
    score: NDArray[np.float64], label: NDArray[np.bool_], cluster: NDArray[np.int64], draws: int
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(cluster == name) for name in np.unique(cluster)]
    found = []
    for _ in range(draws):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        found.append(auroc(score[rows][label[rows]], score[rows][~label[rows]]))
    low, high = np.quantile(found, [0.025, 0.975])
    return {"auroc": auroc(score[label], score[~label]), "low": float(low), "high": float(high)}


def oriented(values: NDArray[np.float64], method: str) -> NDArray[np.float64]:
    """Turn scores so that higher means more likely to be harmful (rare, pathogenic)."""
    return -values if method.startswith("llr") else values


def common_snvs(genome: Path, snps: Path, args: argparse.Namespace, folder: Path) -> dict:
    store = Genome.build(genome, folder / "piece.mb")
    name = store.contigs[0].name
    text = decode(store.view(name))
    with snps.open() as file:
        rows = [(int(row[1]), row[2], row[3]) for row in list(csv.reader(file))[1:]]
    rows = [row for row in rows if text[row[0]] == row[1] and len(row[1]) == len(row[2]) == 1]
    rows = rows[:: max(1, len(rows) // args.limit)] if args.limit else rows
    taken = {row[0] for row in rows}
    places = defaultdict(list)
    for i in range(1, len(text) - 1):
        if i not in taken:
            places[text[i - 1 : i + 2]].append(i)
    rng = np.random.default_rng(0)
    matched = []
    for position, ref, alt in rows:
        context = text[position - 1 : position + 2]
        choice = int(rng.choice(places[context]))
        matched.append((choice, ref, alt))
    variants = [Variant(name, at, ref, alt) for at, ref, alt in (*rows, *matched)]
    table = score_variants(args.model, variants, store, window=args.window, methods=METHODS).table
    simulated = np.arange(len(variants)) >= len(rows)
    # Neighbors share their windows: stretches of a window are drawn together.
    cluster = np.array([variant.position // args.window for variant in variants])
    return {
        "common": len(rows),
        "simulated": len(matched),
        **_measure(table, simulated, cluster, args.draws),
    }


def _measure(
    table: object, label: NDArray[np.bool_], cluster: NDArray[np.int64], draws: int
) -> dict:
    results = {}
    for method in METHODS:
        values = table[method].cast(float).to_numpy()  # pyright: ignore[reportIndexIssue]
        good = ~np.isnan(values)
        results[method] = interval(
            oriented(values[good], method), label[good], cluster[good], draws
        ) | {"scored": int(good.sum())}
    return {"methods": results}


def _clusters(windows: list[str]) -> NDArray[np.int64]:
    parent = list(range(len(windows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for number, window in enumerate(windows):
        for i in range(len(window) - WORD + 1):
            word = window[i : i + WORD]
            if sum(map(ord, word[:8])) % SHARE == 0:  # the same choice wherever the word stands
                other = seen.setdefault(word, number)
                parent[root(number)] = root(other)
    return np.array([root(i) for i in range(len(windows))])


def pairs(path: Path, args: argparse.Namespace, folder: Path) -> dict:
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(1, len(rows) // args.limit)] if args.limit else rows
    kept, variants, labels, odd = [], [], [], 0
    for row in rows:
        ref, alt, middle = row["ref"], row["alt"], len(row["ref"]) // 2
        if row["variant_type"].lower().startswith(("snv", "single")):
            if sum(a != b for a, b in zip(ref, alt, strict=True)) != 1:
                odd += 1
                continue
            one = (ref[middle], alt[middle])
        else:
            one = _difference(ref, alt, middle)
            if one is None:
                odd += 1
                continue
        if one[0] == one[1] or set("".join(one)) - set("ACGT"):
            odd += 1
            continue
        variants.append(Variant(f"w{len(kept)}", middle, *one))
        kept.append(ref)
        labels.append("athogenic" in row["CLNSIG"])
    fasta = folder / "windows.fa"
    fasta.write_text("".join(f">w{i}\n{ref}\n" for i, ref in enumerate(kept)))
    cluster = _clusters(kept)
    label = np.array(labels)
    # A window is all there is of its contig: deletions need bases behind it and stay out.
    table = score_variants(
        args.model, variants, fasta, window=args.window - args.spare, methods=METHODS
    ).table
    return {
        "pairs": len(kept),
        "left_out": odd,
        "pathogenic": int(label.sum()),
        "clusters": len(np.unique(cluster)),
        **_measure(table, label, cluster, args.draws),
    }


def _difference(ref: str, alt: str, middle: int) -> tuple[str, str] | None:
    """Give the shortest alleles at `middle` that turn one window into the other."""
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
    results = {}
    with tempfile.TemporaryDirectory() as name:
        if args.genome and args.snps:
            results["common SNVs"] = common_snvs(args.genome, args.snps, args, Path(name))
            print(json.dumps(results, indent=1), flush=True)
        if args.pairs:
            results["pairs"] = pairs(args.pairs, args, Path(name))
            print(json.dumps(results["pairs"], indent=1))


if __name__ == "__main__":
    main()

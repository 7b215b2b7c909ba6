"""Variants per second, against one plain forward pass for each allele and strand.

    python benchmarks/variant_speed.py --genome human_chr22_20-21Mb_GRCh38.fa.gz \
        --snps common_snps.csv --windows 1024 16384

A HyenaDNA of two layers of 128 channels with drawn weights scores SNVs, in the order of the file
(columns: a name, 0-based position on the only contig, REF, ALT; sorted by position), with the three
default methods on both strands. Plain: ``model(input_ids)`` of one window at a time, four for a
variant, torch's threads on all cores; its log-probabilities are added up for ``llr_window``. Ours:
what ``megabase variants`` does, one process with one thread for each core, each scoring records of
its own, in chunks. The two are measured in turns; medians count, and ours is compared with the
fastest plain round too, since other work on the machine slows passes with several threads most.
Values of the plain passes and ours are compared before anything is printed, and a difference above
1e-4 is an error: both sum up a window of float32 log-probabilities.

``--processor-time`` compares the seconds of one core, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import polars as pl
import torch

from megabase.data.augment import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import VcfRecord
from megabase.inference.alleles import Placed, place
from megabase.inference.model import LanguageModel
from megabase.inference.variants import VariantOptions, VariantScorer
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is scored."""

    store: Path
    snps: Path
    window: int
    placement: str
    variants: int  # of each process
    plain: int
    rounds: int


def build(window: int) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=128, n_layer=2, max_seq_len=window + 2)
    return HyenaDNAForCausalLM(config).eval()


def records(case: Case, process: int) -> list[VcfRecord]:
    """Give the records of a process: stretches of the file, as the chunks of a job are."""
    contig = GenomeStore.open(case.store).contigs[0].name
    rows = pl.read_csv(case.snps).slice(process * case.variants, case.variants).rows()
    if len(rows) < case.variants:
        raise SystemExit(f"{case.snps} holds too few SNVs for {case.variants} a process")
    return [
        VcfRecord(n, (contig, str(at + 1), name, ref, alt), contig, at, ref, (alt,))
        for n, (name, at, ref, alt) in enumerate(rows)
    ]


def scorer(case: Case) -> VariantScorer:
    model = LanguageModel(build(case.window), "", "", False, case.window + 2)
    options = VariantOptions(case.window, placement=case.placement)  # pyright: ignore[reportArgumentType]
    return VariantScorer(model, GenomeStore.open(case.store), options)


def windows(case: Case, few: list[VcfRecord]) -> list[list[Placed]]:
    """Cut the windows of variants on both strands."""
    view, found = GenomeStore.open(case.store).view(0), []
    for one in few:
        both = [
            place(view, one.position, one.ref, one.alts[0], case.window, reverse, case.placement)  # pyright: ignore[reportArgumentType]
            for reverse in (False, True)
        ]
        found.append([strand for strand in both if isinstance(strand, Placed)])
    return found


def plain(model: HyenaDNAForCausalLM, placed: list[list[Placed]]) -> list[float]:
    values = []
    first, last = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]
    with torch.inference_mode():
        for strands in placed:
            total = 0.0
            for one in strands:
                for codes, sign in ((one.ref, -1), (one.alt, 1)):
                    ids = codes_to_ids(torch.from_numpy(codes))[None]
                    logits = model(input_ids=ids).logits[0, :-1, first : last + 1]
                    known = (ids[0, 1:] >= first) & (ids[0, 1:] <= last)
                    target = (ids[0, 1:] - first).where(known, torch.zeros(()).long())
                    scores = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
                    total += sign * scores.double()[known].sum().item()
            values.append(total / len(strands))
    return values


def worker(pipe: Connection, case: Case, process: int) -> None:
    torch.set_num_threads(1)
    own, rows = scorer(case), records(case, process)
    own.score(rows[:2])
    pipe.send("ready")
    while pipe.recv():
        pipe.send([alleles[0].values[0] for alleles in own.score(rows)])


def checked(expected: list[float], values: list[float]) -> float:
    gap = float(np.abs(np.array(expected) - np.array(values[: len(expected)])).max())
    if not gap <= TOLERANCE:
        raise SystemExit(f"scores differ by {gap:.2e}; expected at most {TOLERANCE:.0e}")
    return gap


def measure(case: Case) -> dict:
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for process in range(cores):
        here, there = context.Pipe()
        child = context.Process(target=worker, args=(there, case, process), daemon=True)
        child.start()
        pipes.append(here)
        children.append(child)
    for pipe in pipes:
        pipe.recv()
    torch.set_num_threads(cores)
    model, placed = build(case.window), windows(case, records(case, 0)[: case.plain])
    plain(model, placed[:1])
    slow, fast, gaps = [], [], []
    for _ in range(case.rounds):
        begin = time.perf_counter()
        expected = plain(model, placed)
        middle = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
        values = [pipe.recv() for pipe in pipes]
        end = time.perf_counter()
        slow.append(case.plain / (middle - begin))
        fast.append(cores * case.variants / (end - middle))
        gaps.append(checked(expected, values[0]))
    for pipe in pipes:
        pipe.send(False)
    for child in children:
        child.join()
    ratios = [b / a for a, b in zip(slow, fast, strict=True)]
    plain_rate, rate = statistics.median(slow), statistics.median(fast)
    return {
        "window": case.window,
        "placement": case.placement,
        "cores": cores,
        "plain_variants_per_second": round(plain_rate, 2),
        "variants_per_second": round(rate, 2),
        "plain_window_bases_per_second": round(plain_rate * 4 * case.window),
        "window_bases_per_second": round(rate * 4 * case.window),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_to_fastest_plain_round": round(rate / max(slow), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "largest_difference": max(gaps),
    }


def processor_time(case: Case) -> dict:
    """Compare seconds of one core, which other work on the machine cannot take away."""
    torch.set_num_threads(1)
    own, rows = scorer(case), records(case, 0)
    model, placed = build(case.window), windows(case, rows[: case.plain])
    plain(model, placed[:1])
    own.score(rows[:2])
    slow, fast, gaps = [], [], []
    for _ in range(case.rounds):
        begin = time.process_time()
        expected = plain(model, placed)
        middle = time.process_time()
        found = own.score(rows)
        end = time.process_time()
        slow.append((middle - begin) / case.plain)
        fast.append((end - middle) / case.variants)
        gaps.append(checked(expected, [alleles[0].values[0] for alleles in found]))
    return {
        "window": case.window,
        "placement": case.placement,
        "plain_seconds_per_variant": round(statistics.median(slow), 4),
        "seconds_per_variant": round(statistics.median(fast), 4),
        "ratio": round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2),
        "largest_difference": max(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--genome", type=Path, required=True, help="FASTA file of one contig")
    parser.add_argument(
        "--snps", type=Path, required=True, help="CSV file: name, position, REF, ALT"
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[1_024, 16_384])
    parser.add_argument("--placements", nargs="+", default=["grid"], choices=["centred", "grid"])
    parser.add_argument("--variants", type=int, default=512, help="of each process")
    parser.add_argument("--plain", type=int, default=24, help="variants of the plain passes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of one core instead of the clock"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "genome.mb"
        GenomeStore.build(args.genome, store)
        for window in args.windows:
            for placement in args.placements:
                case = Case(
                    store, args.snps, window, placement, args.variants, args.plain, args.rounds
                )
                run = processor_time if args.processor_time else measure
                print(json.dumps(run(case)), flush=True)


if __name__ == "__main__":
    main()

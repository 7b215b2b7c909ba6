"""Variants per second, against forward passes of one window at a time.

    python -m benchmarks.variant_speed --genome human_chr22_20-21Mb_GRCh38.fa.gz \
        --snps common_snps.csv --windows 1024 16384

A HyenaDNA of two layers of 128 channels with drawn weights scores SNVs, in the order of the file
(columns: a name, 0-based position on the only contig, REF, ALT; sorted by position), with the three
default methods on both strands, three ways:

plain
    ``model(input_ids)`` of one window at a time, four for a variant, of the published way of
    computing (``benchmarks.speed.plain``: linear layers, a transposed copy, a grouped convolution,
    FFTs of twice the length) with the same weights, and torch's threads on all cores; its
    log-probabilities are added up for ``llr_window``.
forward
    The same passes through the model of megabase, with the C++ kernels where they are installed.
variants
    What ``megabase variants`` does, one process with one thread for each core, each scoring records
    of its own, in chunks.

The three are measured in turns; medians count, and so do the fastest rounds of the passes, since
other work on the machine slows several threads most. ``llr_window`` of both kinds of passes is
compared with ours before anything is printed, and a difference above 1e-4 is an error: all sum up a
window of float32 log-probabilities.

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
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.speed.plain import PlainHyenaDNA
from megabase.data.augment import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.forward import AlleleWindows, Placement, cut_windows
from megabase.inference.variants.scorer import VariantOptions, VariantScorer
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.loading import Loaded
from megabase.ops import backend

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What is scored."""

    store: Path
    snps: Path
    window: int
    placement: Placement
    variants: int  # of each process
    plain: int
    rounds: int


def build(window: int) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=128, n_layer=2, max_seq_len=window + 2)
    return HyenaDNAForCausalLM(config).eval()


def records(case: Case, process: int) -> list[VcfRecord]:
    """Give the records of a process: stretches of the file, as the chunks of a job are."""
    contig = Genome(case.store).contigs[0].name
    rows = pl.read_csv(case.snps).slice(process * case.variants, case.variants).rows()
    if len(rows) < case.variants:
        raise SystemExit(f"{case.snps} holds too few SNVs for {case.variants} a process")
    return [
        VcfRecord(n, (contig, str(at + 1), name, ref, alt), contig, at, ref, (alt,))
        for n, (name, at, ref, alt) in enumerate(rows)
    ]


def scorer(case: Case) -> VariantScorer:
    model = Loaded(build(case.window), "causal-lm", "")
    options = VariantOptions(case.window, placement=case.placement)
    return VariantScorer(model, Genome(case.store), options)


def windows(case: Case, few: list[VcfRecord]) -> list[list[AlleleWindows]]:
    """Cut the windows of variants on both strands."""
    view, found = Genome(case.store).view(0), []
    for one in few:
        both = [
            cut_windows(
                view, one.position, one.ref, one.alts[0], case.window, reverse, case.placement
            )  # pyright: ignore[reportArgumentType]
            for reverse in (False, True)
        ]  # fmt: skip
        found.append([strand for strand in both if isinstance(strand, AlleleWindows)])
    return found


Logits = Callable[[torch.Tensor], torch.Tensor]


def passes(window: int) -> dict[str, Logits]:
    """Give the two kinds of passes, with the same weights."""
    ours = build(window)
    plain = PlainHyenaDNA(ours.config).eval()
    plain.load_state_dict(ours.state_dict())
    return {"plain": plain, "forward": lambda ids: ours(input_ids=ids).logits}


def one_by_one(logits_of: Logits, placed: list[list[AlleleWindows]]) -> list[float]:
    values = []
    first, last = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]
    with torch.inference_mode():
        for strands in placed:
            total = 0.0
            for one in strands:
                for codes, sign in ((one.ref, -1), (one.alt, 1)):
                    ids = codes_to_ids(torch.from_numpy(codes))[None]
                    logits = logits_of(ids)[0, :-1, first : last + 1]
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


def rounds(
    case: Case, ours: Callable[[], list[float]], seconds: Callable[[], float]
) -> dict[str, list[float]]:
    """Measure the three ways in turns; give the seconds of every round, and the differences."""
    ways, placed = passes(case.window), windows(case, records(case, 0)[: case.plain])
    for logits_of in ways.values():
        one_by_one(logits_of, placed[:1])
    found: dict[str, list[float]] = {"plain": [], "forward": [], "variants": [], "gaps": []}
    for _ in range(case.rounds):
        expected = []
        for name, logits_of in ways.items():
            begin = seconds()
            expected.append(one_by_one(logits_of, placed))
            found[name].append((seconds() - begin) / case.plain)
        begin = seconds()
        values = ours()
        found["variants"].append((seconds() - begin) / case.variants)
        found["gaps"] += [checked(one, values) for one in expected]
    return found


def ratios(found: dict[str, list[float]]) -> dict:
    """Compare both kinds of passes with `megabase variants`: rounds, median, and fastest round."""
    result = {}
    for name in ("plain", "forward"):
        each = [a / b for a, b in zip(found[name], found["variants"], strict=True)]
        result[f"{name}/variants"] = {
            "median": round(statistics.median(each), 2),
            "rounds": [round(ratio, 2) for ratio in each],
            "fastest": round(min(found[name]) / statistics.median(found["variants"]), 2),
        }
    return result


def measure(case: Case) -> dict:
    """Compare by the clock."""
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

    def ours() -> list[float]:
        for pipe in pipes:
            pipe.send(True)
        return next(iter([pipe.recv() for pipe in pipes]))

    found = rounds(case, ours, time.perf_counter)
    for pipe in pipes:
        pipe.send(False)
    for child in children:
        child.join()
    found["variants"] = [seconds / cores for seconds in found["variants"]]
    rates = {name: 1 / statistics.median(found[name]) for name in ("plain", "forward", "variants")}
    return {
        "window": case.window,
        "placement": case.placement,
        "cores": cores,
        "backend": backend.active(),
        "variants_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "window_bases_per_second": {
            name: round(rate * 4 * case.window) for name, rate in rates.items()
        },
        **ratios(found),
        "largest_difference": max(found["gaps"]),
    }


def processor_time(case: Case) -> dict:
    """Compare seconds of one core, which other work on the machine cannot take away."""
    torch.set_num_threads(1)
    own, rows = scorer(case), records(case, 0)
    own.score(rows[:2])
    found = rounds(
        case, lambda: [alleles[0].values[0] for alleles in own.score(rows)], time.process_time
    )
    return {
        "window": case.window,
        "placement": case.placement,
        "backend": backend.active(),
        "seconds_per_variant": {
            name: round(statistics.median(found[name]), 4)
            for name in ("plain", "forward", "variants")
        },
        **ratios(found),
        "largest_difference": max(found["gaps"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--genome", type=Path, required=True, help="FASTA file of one contig")
    parser.add_argument(
        "--snps", type=Path, required=True, help="CSV file: name, position, REF, ALT"
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[1_024, 16_384])
    parser.add_argument("--placements", nargs="+", default=["grid"], choices=["centered", "grid"])
    parser.add_argument("--variants", type=int, default=512, help="of each process")
    parser.add_argument("--plain", type=int, default=24, help="variants of the passes one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of one core instead of the clock"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "genome.mb"
        Genome.build(args.genome, store)
        for window in args.windows:
            for placement in args.placements:
                case = Case(
                    store, args.snps, window, placement, args.variants, args.plain, args.rounds
                )
                run = processor_time if args.processor_time else measure
                print(json.dumps(run(case)), flush=True)


if __name__ == "__main__":
    main()

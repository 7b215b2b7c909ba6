"""Variants per second, against one plain forward pass for each allele and strand.

    python benchmarks/variant_speed.py --windows 1024 16384

A HyenaDNA of two layers of 128 channels with drawn weights scores made-up SNVs with ``llr_window``
on both strands: by plain passes of one window each, four for a variant, with all cores; and the way
``megabase variants`` does it, one process with one thread for each core. The two are measured in
turns, and the median ratio counts. ``--alts`` puts so many alternative alleles at a site.
``--processor-time`` compares the seconds of one core, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np
import torch

from megabase.inference.alleles import Placed
from megabase.inference.methods import METHODS
from megabase.inference.model import LanguageModel
from megabase.inference.readers import choose_reader
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM


def build(window: int) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=128, n_layer=2, max_seq_len=window + 2)
    return HyenaDNAForCausalLM(config).eval()


def made_up(sites: int, alts: int, window: int, seed: int) -> list[Placed]:
    rng, places = np.random.default_rng(seed), []
    for _ in range(sites):
        for _strand in range(2):
            ref = rng.integers(0, 4, window, dtype=np.uint8)
            for step in range(alts):
                alt = ref.copy()
                alt[window // 2] = (alt[window // 2] + 1 + step) % 4
                places.append(Placed(ref, alt, window // 2, 1, 1))
    return places


def plain(model: HyenaDNAForCausalLM, places: list[Placed]) -> list[float]:
    values = []
    with torch.inference_mode():
        for one in places:
            sums = []
            for codes in (one.ref, one.alt):
                ids = torch.from_numpy(codes.astype(np.int64) + 7)[None]
                scores = model(input_ids=ids).logits[0, :-1, 7:11].log_softmax(-1)
                sums.append(scores.gather(1, ids[0, 1:, None] - 7).double().sum().item())
            values.append(sums[1] - sums[0])
    return values


def worker(pipe: Connection, window: int, sites: int, alts: int, seed: int) -> None:
    torch.set_num_threads(1)
    model = build(window)
    reader = choose_reader(LanguageModel(model, "", "", False, window + 2), 1 << 16)
    places, method = made_up(sites, alts, window, seed), METHODS["llr_window"]
    reader.read(places[: 2 * alts], {"log_probs"})
    pipe.send("ready")
    while pipe.recv():
        found = reader.read(places, {"log_probs"})
        values = [method.value(*pair, one) for one, pair in zip(places, found, strict=True)]
        pipe.send(values)


def measure(window: int, sites: int, alts: int, plain_sites: int, rounds: int) -> dict:
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for seed in range(cores):
        here, there = context.Pipe()
        child = context.Process(target=worker, args=(there, window, sites, alts, seed), daemon=True)
        child.start()
        pipes.append(here)
        children.append(child)
    for pipe in pipes:
        pipe.recv()
    torch.set_num_threads(cores)
    model, few = build(window), made_up(sites, alts, window, 0)[: 2 * alts * plain_sites]
    plain(model, few[:1])
    slow, fast, difference = [], [], 0.0
    for _ in range(rounds):
        begin = time.perf_counter()
        expected = plain(model, few)
        middle = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
        values = [pipe.recv() for pipe in pipes]
        end = time.perf_counter()
        slow.append(plain_sites * alts / (middle - begin))
        fast.append(cores * sites * alts / (end - middle))
        gap = np.abs(np.array(values[0][: len(few)]) - np.array(expected)).max()
        difference = max(difference, float(gap))
    for pipe in pipes:
        pipe.send(False)
    for child in children:
        child.join()
    ratios = [b / a for a, b in zip(slow, fast, strict=True)]
    rate = statistics.median(fast)
    return {
        "window": window,
        "alts": alts,
        "cores": cores,
        "plain_variants_per_second": round(statistics.median(slow), 2),
        "variants_per_second": round(rate, 2),
        "window_bases_per_second": round(rate * 4 * window),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "largest_difference": difference,
    }


def processor_time(window: int, sites: int, alts: int, plain_sites: int, rounds: int) -> dict:
    """Compare seconds of one core, which other work on the machine cannot take away."""
    torch.set_num_threads(1)
    model, method = build(window), METHODS["llr_window"]
    reader = choose_reader(LanguageModel(model, "", "", False, window + 2), 1 << 16)
    places = made_up(sites, alts, window, 0)
    few = places[: 2 * alts * plain_sites]
    plain(model, few[:1])
    reader.read(few, {"log_probs"})
    slow, fast = [], []
    for _ in range(rounds):
        begin = time.process_time()
        plain(model, few)
        middle = time.process_time()
        found = reader.read(places, {"log_probs"})
        _ = [method.value(*pair, one) for one, pair in zip(places, found, strict=True)]
        end = time.process_time()
        slow.append((middle - begin) / (plain_sites * alts))
        fast.append((end - middle) / (sites * alts))
    return {
        "window": window,
        "alts": alts,
        "plain_seconds_per_variant": round(statistics.median(slow), 4),
        "seconds_per_variant": round(statistics.median(fast), 4),
        "ratio": round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, nargs="+", default=[1_024, 16_384])
    parser.add_argument("--alts", type=int, default=1, choices=[1, 2, 3])
    parser.add_argument("--sites", type=int, default=64, help="of each process, at window 1,024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of one core instead of the clock"
    )
    args = parser.parse_args()
    for window in args.windows:
        sites = max(2, args.sites * 1_024 // window)
        run = processor_time if args.processor_time else measure
        found = run(window, sites, args.alts, max(1, sites // 8), args.rounds)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

"""Variants per second, against forward passes of one window at a time.

A HyenaDNA of two layers of 128 channels with drawn weights scores SNVs, in the order of the file,
with the three default methods on both strands, three ways:

plain
    One window at a time, four for a variant, of the published way of computing
    (``benchmarks.plain``) with the same weights, and torch's threads on all cores; its
    log-probabilities are added up for ``llr_window``.
forward
    The same passes through the model of megabase, with the C++ kernels where they are installed.
variants
    What ``megabase variants`` does, one process with one thread for each core, each scoring records
    of its own, in chunks.

The three are measured in turns; medians count, and so do the fastest rounds of the passes, since
other work on the machine slows several threads most.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch

from benchmarks.harness import OtherWork, Say, build_model, record, refuse_difference
from benchmarks.plain import PlainHyenaDNA
from megabase.data.vocabulary import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.methods import AlleleWindows, Placement
from megabase.inference.variants.scorer import VariantOptions, VariantScorer
from megabase.models.loading import Loaded
from megabase.ops import backend
from megabase.settings import Settings

TOLERANCE = 1e-4
"""Largest difference of ``llr_window``: all sum up a window of float32 log-probabilities."""
_PLACEMENTS = ("centered", "grid")
"""A window for each variant, or windows that neighbors share."""


@dataclass(frozen=True, kw_only=True)
class VariantsConfig(Settings):
    """Scoring variants against one published pass for each allele and strand.

    ``llr_window`` of both, over the bases that ours reads, is compared before anything is reported.
    """

    genome: str
    """FASTA file of one contig."""
    snps: str
    """CSV file, sorted by position: a name, 0-based position on the contig, REF, ALT."""
    windows: Sequence[int] = (1_024, 16_384)
    """Bases of a window."""
    placements: Sequence[str] = ("grid",)
    """centered, grid."""
    variants: int = 512
    """Variants of each process."""
    plain: int = 24
    """Variants of the passes one by one."""
    repeats: int = 3
    """Rounds."""
    horizon: int | None = None
    """Bases that ours reads behind a variant, beside passes over whole windows; all when None."""

    _limits: ClassVar[Mapping[str, str]] = {"be at least 1": "variants plain repeats"}

    def _problems(self) -> Iterator[str]:
        if not set(self.placements) <= set(_PLACEMENTS):
            yield f"placements are out of {', '.join(_PLACEMENTS)}, found {self.placements}"


def _model(window: int) -> Any:
    torch.manual_seed(0)
    return build_model("hyenadna", 128, 2, window + 2).eval()


def _records(store: Path, config: VariantsConfig, process: int) -> list[VcfRecord]:
    """Give the records of a process: stretches of the file, as the chunks of a job are."""
    contig = Genome(store).contigs[0].name
    rows = pl.read_csv(config.snps).slice(process * config.variants, config.variants).rows()
    if len(rows) < config.variants:
        raise SystemExit(f"{config.snps} holds too few SNVs for {config.variants} a process")
    return [
        VcfRecord(n, (contig, str(at + 1), name, ref, alt), contig, at, ref, (alt,))
        for n, (name, at, ref, alt) in enumerate(rows)
    ]


def _start(store: Path, config: VariantsConfig, window: int, placement: Placement) -> None:
    """Make the scorer of a process."""
    global _score
    torch.set_num_threads(1)
    model = Loaded(_model(window), "causal-lm", "")
    scorers = {
        horizon: VariantScorer(
            model, Genome(store), VariantOptions(window, placement=placement, horizon=horizon)
        )
        for horizon in {config.horizon, None}
    }
    scorers[config.horizon].score(_records(store, config, 0)[:2])

    def score(process: int, horizon: int | None) -> list[float]:
        found = scorers[horizon].score(_records(store, config, process))
        return [alleles[0].values[0] for alleles in found]

    _score = score


def _run(process: int, horizon: int | None) -> list[float]:
    return _score(process, horizon)


_score: Callable[[int, int | None], list[float]]


def _one_by_one(
    logits_of: Callable[[torch.Tensor], torch.Tensor], placed: list[list[AlleleWindows]]
) -> list[float]:
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
                    read = known & (torch.arange(1, len(codes)) < one.stop)
                    total += sign * scores.double()[read].sum().item()
            values.append(total / len(strands))
    return values


def run_variants(config: VariantsConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`VariantsConfig`.

    Returns
    -------
    dict
        Ready for JSON; ``cases``: for each window and placement variants and window bases per
        second of each way, the ratios to ours (median, rounds, fastest), and the largest difference
        of ``llr_window``.
    """
    others, cases = OtherWork(), []
    with tempfile.TemporaryDirectory(prefix="megabase-bench-") as folder:
        store = Path(folder) / "genome.mb"
        Genome.build(config.genome, store)
        for window in config.windows:
            for placement in config.placements:
                cases.append(_case(store, config, window, cast("Placement", placement)))
                say(str(cases[-1]))
    return record("variants", config, others, backend=backend.active(), cases=cases)


def _case(store: Path, config: VariantsConfig, window: int, placement: Placement) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    model = _model(window)
    ways = {
        "plain": PlainHyenaDNA(model).eval(),
        "forward": lambda ids: model(input_ids=ids).logits,
    }
    view = Genome(store).view(0)
    placed = []
    for one in _records(store, config, 0)[: config.plain]:
        both = [
            AlleleWindows.cut(view, one.position, one.ref, one.alts[0], window, reverse, placement)
            for reverse in (False, True)
        ]
        placed.append(
            [one.named("", config.horizon) for one in both if isinstance(one, AlleleWindows)]
        )
    seconds: dict[str, list[float]] = {"plain": [], "forward": [], "variants": []}
    worst, found = 0.0, []
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores, _start, (store, config, window, placement)) as pool:
        tasks = [(process, config.horizon) for process in range(cores)]
        pool.starmap(_run, tasks, chunksize=1)  # once that does not count
        for logits_of in ways.values():
            _one_by_one(logits_of, placed[:1])
        for _ in range(config.repeats):
            expected = []
            for name, logits_of in ways.items():
                began = time.perf_counter()
                expected.append(_one_by_one(logits_of, placed))
                seconds[name].append((time.perf_counter() - began) / config.plain)
            began = time.perf_counter()
            found = pool.starmap(_run, tasks, chunksize=1)[0]
            took = time.perf_counter() - began
            seconds["variants"].append(took / (cores * config.variants))
            gap = float(np.abs(np.array(expected) - np.array(found[: config.plain])).max())
            # Each round, since a maximum would hide what is no number (REF of another genome).
            refuse_difference(gap, TOLERANCE, "scores differ from those of single passes")
            worst = max(worst, gap)
        whole = pool.apply(_run, (0, None)) if config.horizon else found
    rates = {name: 1 / statistics.median(found) for name, found in seconds.items()}
    result: dict[str, Any] = {
        "window": window, "placement": placement, "cores": cores,
        "variants_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "window_bases_per_second": {name: round(rate * 4 * window) for name, rate in rates.items()},
        "largest_difference": worst, "horizon": config.horizon,
        "correlation_with_whole_window": round(float(np.corrcoef(found, whole)[0, 1]), 4),
    }  # fmt: skip
    for name in ways:
        each = [a / b for a, b in zip(seconds[name], seconds["variants"], strict=True)]
        result[f"{name}/variants"] = {
            "median": round(statistics.median(each), 2),
            "rounds": [round(ratio, 2) for ratio in each],
            "fastest": round(min(seconds[name]) * rates["variants"], 2),
        }
    return result

"""Speed of writing tokens one by one: average, growth with the position, ratio to full passes.

Scores of a written sequence are compared with those of one full pass over it before anything is
reported. Random weights, except that the Hyena filter is drawn stronger than for training: at its
initial size it would hardly look back, and the comparison would prove little. How much the far past
matters is reported: the change of the scores when a full pass reads only the end of the sequence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import (
    OtherWork,
    Say,
    build_model,
    in_turns,
    record,
    refuse_difference,
    strengthen_filters,
    use_threads,
)
from megabase.inference.generation.decoding import Decoder
from megabase.inference.generation.generate import GenerateOptions, _Sampler
from megabase.models.loading import threads
from megabase.settings import Settings
from megabase.training.process import keep_freed_memory

GENERATORS = ("hyenadna", "gpt", "mamba")
"""Families that write from left to right."""
TOLERANCE = 1e-4
"""Largest difference of scores allowed; nothing is reported above it."""
_SLICE = 1_000
"""Tokens of the first and the last stretch that are compared."""
_SHORT = 1_024
"""Tokens of the unmeasured first sequence, and of the end that a short-sighted pass reads."""
_FULL_PASSES = 7
"""Full passes of which the median counts."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Generating one token at a time, its growth with the position, against full passes.

    Scores are compared with those of a full pass first; nothing is reported when they differ.
    """

    model: str = "hyenadna"
    """Family: hyenadna, gpt or mamba; with random weights."""
    tokens: int = 65_536
    """Tokens to write."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    batch: int = 1
    """Sequences written side by side."""
    repeats: int = 3
    """Sequences written one after the other, of which the median counts, after a short one that
    does not."""
    compare_at: int = 4_096
    """Length at which a step is compared with a full pass."""
    positions: int = 100
    """Random positions at which scores are compared with those of a full pass."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of the weights and the draws."""

    _limits: ClassVar[Mapping[str, str]] = {
        "be at least 1": "width layers batch repeats positions",
        "be at least 0": "threads seed",
    }

    def _problems(self) -> Iterator[str]:
        if self.model not in GENERATORS:
            yield f"model is one of {', '.join(GENERATORS)}, found {self.model!r}"
        if self.tokens < 32:
            yield f"tokens is {self.tokens}; it must be at least 32"
        if not 16 <= self.compare_at <= self.tokens:
            yield (
                f"compare_at must lie between 16 and tokens ({self.tokens}), found "
                f"{self.compare_at}"
            )


@dataclass(frozen=True)
class _Written:
    ids: Tensor
    """(batch, tokens)."""
    cost: np.ndarray
    """Seconds of each token, (tokens,)."""
    cpu_seconds: float
    """Processor time of the whole, of all threads."""
    kept: dict[int, Tensor]
    """Scores after reading so many tokens, each (batch, columns)."""


def run_generation(config: GenerateConfig, say: Say) -> dict[str, Any]:
    """Measure; see :class:`GenerateConfig`.

    Returns
    -------
    dict
        Ready for JSON: settings, environment, ``equality``, medians, and every run.

    Raises
    ------
    BenchError
        When scores differ from those of a full pass by more than the tolerance.
    """
    keep_freed_memory()  # as training does
    use_threads(config.threads)
    others = OtherWork()
    torch.manual_seed(config.seed)
    length = config.tokens + 2  # as the published models: two more than the training length
    model = build_model(config.model, config.width, config.layers, length)
    strengthen_filters(model, 8.0)
    model = model.to(config.device).eval()
    ids = torch.randint(7, 11, (config.batch, config.compare_at), device=config.device)
    runs, forgetful = [], 0.0
    with torch.inference_mode():
        reader = Decoder(model, config.batch, config.tokens)
        worst = _difference(model, _write(reader, config, min(_SHORT, config.tokens)))
        say(f"scores of a short sequence are within {worst:.1e} of a full pass")
        for number in range(config.repeats):
            reader.reset()
            with threads(reader.threads):  # as generate() does
                written = _write(reader, config, config.tokens)
            worst = max(worst, _difference(model, written))
            if number == 0:
                end = model(input_ids=written.ids[:, -_SHORT:]).logits[:, -1]
                forgetful = float((end - written.kept[config.tokens]).abs().max())
            runs.append(_facts(written, config))
            say(
                f"run {number + 1}: {runs[-1]['tokens_per_second']:,.0f} tokens/s, last thousand / "
                f"first {runs[-1]['growth']:.2f}, scores within {worst:.1e} of a full pass"
            )
        passes = {"full": lambda: model(input_ids=ids).logits[:, -1].cpu()}
        full = statistics.median(in_turns(passes, _FULL_PASSES)["full"])
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    ratio = full / median["step_at_compared"]
    say(
        f"{config.model} {config.layers} x {config.width}: {median['tokens_per_second']:,.0f} "
        f"tokens/s over {config.tokens:,} tokens (batch {config.batch}; medians of "
        f"{config.repeats}); processor time {1e3 * median['cpu_seconds_per_token']:.3f} ms a token"
    )
    say(
        f"cost of the last thousand tokens over the first: {median['growth']:.2f}; median token "
        f"{1e3 * median['median_token_seconds']:.3f} ms, slowest {1e3 * median['slowest']:.1f} ms"
    )
    say(
        f"at {config.compare_at:,} tokens a full pass takes {1e3 * full:.2f} ms, a step "
        f"{1e3 * median['step_at_compared']:.3f} ms: {ratio:,.0f} times"
    )
    say(
        f"scores at {config.positions} positions within {worst:.1e} of a full pass (reading only "
        f"the last 1,024 tokens would change them by {forgetful:.1e})"
    )
    return record(
        "generation", config, others, **median, runs=runs,
        step_threads=reader.threads or torch.get_num_threads(),
        equality={
            "positions": config.positions, "largest_difference": worst, "tolerance": TOLERANCE,
            "difference_when_only_the_last_1024_tokens_are_read": forgetful,
        },
        full_pass_seconds=full, full_pass_to_step=ratio,
    )  # fmt: skip


def _write(reader: Decoder, config: GenerateConfig, tokens: int) -> _Written:
    """Write as ``generate`` of the library does, and read the last token too."""
    count = min(config.positions, tokens)  # the last is always compared
    drawn = np.random.default_rng(config.seed).choice(tokens - 1, count - 1, replace=False) + 1
    places = {*drawn.tolist(), tokens}
    device = torch.device(config.device)
    sampler = _Sampler(GenerateOptions(seed=config.seed), range(config.batch))
    ids = np.empty((tokens, config.batch), np.int64)
    stamps = np.empty(tokens)
    kept: dict[int, Tensor] = {}
    scores = np.zeros((config.batch, reader.model.lm_head.out_features), np.float32)
    begin, cpu = time.perf_counter(), time.process_time()
    for step in range(tokens):
        chosen, _ = sampler.draw(scores)
        ids[step] = sampler.ids[chosen]
        found = reader.step(torch.from_numpy(ids[step]).to(device))
        scores = found.cpu().numpy()
        if step + 1 in places:
            kept[step + 1] = found.clone()
        stamps[step] = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    cost = np.diff(stamps, prepend=0.0)
    return _Written(torch.from_numpy(ids.T.copy()).to(device), cost, cpu, kept)


def _difference(model: nn.Module, written: _Written) -> float:
    """Compare with one full pass; refuse what is too far from it."""
    logits = model(input_ids=written.ids).logits
    worst = max(
        float((logits[:, read - 1] - scores).abs().max()) for read, scores in written.kept.items()
    )
    refuse_difference(worst, TOLERANCE, "scores of single steps differ from those of a full pass")
    return worst


def _facts(written: _Written, config: GenerateConfig) -> dict[str, float]:
    cost = written.cost
    count = min(_SLICE, len(cost) // 2)
    at, around = config.compare_at, max(8, config.compare_at // 8)
    return {
        "tokens_per_second": config.batch * len(cost) / float(cost.sum()),
        "growth": float(cost[-count:].mean() / cost[:count].mean()),
        "median_token_seconds": float(np.median(cost)),
        "cpu_seconds_per_token": written.cpu_seconds / len(cost),
        "slowest": float(cost.max()),
        "step_at_compared": float(cost[max(0, at - around) : at + around].mean()),
    }

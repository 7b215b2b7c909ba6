"""Speed of writing tokens one by one: average, growth with the position, ratio to full passes.

Scores of a written sequence are compared with those of one full pass over it before anything is
reported. Random weights, except that the Hyena filter is drawn stronger than for training: at its
initial size it would hardly look back, and the comparison would prove little. How much the far past
matters is reported: the change of the scores when a full pass reads only the end of the sequence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.config import BenchError, GenerateConfig
from benchmarks.speed.others import OtherWork
from benchmarks.speed.point import build_model
from megabase.inference.generation.decoding import Decoder
from megabase.inference.generation.generate import GenerateOptions, Sampler
from megabase.models.loading import threads

__all__ = ["run_generation"]

_SLICE = 1_000
"""Tokens of the first and the last stretch that are compared."""
_SHORT = 1_024
"""Tokens of the unmeasured first sequence, and of the end that a short-sighted pass reads."""
_FILTER_GAIN = 8.0
_FULL_PASSES = 7


@dataclass(frozen=True)
class _Written:
    ids: Tensor
    """(batch, tokens)."""
    stamps: np.ndarray
    """Seconds at which each token was there, from the start; (tokens,)."""
    cpu_seconds: float
    """Processor time of the whole, of all threads."""
    kept: dict[int, Tensor]
    """Scores after reading so many tokens, each (batch, columns)."""


def run_generation(
    config: GenerateConfig, say: Callable[[str], object] = lambda text: None
) -> dict[str, Any]:
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
    from megabase.training.process import keep_freed_memory
    from megabase.training.run_folder import environment

    keep_freed_memory()  # as training does
    if config.threads:
        torch.set_num_threads(config.threads)
    others = OtherWork()
    torch.manual_seed(config.seed)
    length = config.tokens + 2  # as the published models: two more than the training length
    model = build_model(config.model, config.width, config.layers, length)
    _strengthen(model)
    model = model.to(config.device).eval()
    short = min(_SHORT, config.tokens)
    with torch.inference_mode():
        begin = time.perf_counter()
        reader = Decoder(model, config.batch, config.tokens)
        built = time.perf_counter() - begin
        first = _write(reader, config, short, _places(config, short))
        say(f"equality over {short:,} tokens: {_difference(model, first, config):.2e}")
        runs = []
        worst = 0.0
        forgetful = 0.0
        for number in range(config.repeats):
            reader.reset()
            with threads(reader.threads):  # as generate() does
                written = _write(reader, config, config.tokens, _places(config, config.tokens))
            worst = max(worst, _difference(model, written, config))
            if number == 0:
                forgetful = _forgetful(model, written, config)
            runs.append(_facts(written, config))
            say(
                f"run {number + 1}: {runs[-1]['tokens_per_second']:,.0f} tokens/s, last thousand / "
                f"first {runs[-1]['growth']:.2f}, scores within {worst:.1e} of a full pass"
            )
        full = _full_pass(model, config)
    step = statistics.median(run["step_at_compared"] for run in runs)
    return {
        "kind": "generation",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "environment": environment(),
        "other_cores": others.cores(),
        "equality": {
            "positions": config.positions,
            "largest_difference": worst,
            "tolerance": config.tolerance,
            "difference_when_only_the_last_1024_tokens_are_read": forgetful,
        },
        "tokens_per_second": statistics.median(run["tokens_per_second"] for run in runs),
        "growth_last_to_first_thousand": statistics.median(run["growth"] for run in runs),
        "median_token_seconds": statistics.median(run["median_token_seconds"] for run in runs),
        "cpu_seconds_per_token": statistics.median(run["cpu_seconds_per_token"] for run in runs),
        "slowest_token_seconds": statistics.median(run["slowest"] for run in runs),
        "decoder_seconds": built,
        "step_threads": reader.threads or torch.get_num_threads(),
        "compared_at": {
            "length": config.compare_at,
            "full_pass_seconds": full,
            "step_seconds": step,
            "ratio": full / step,
        },
        "runs": runs,
    }


def _strengthen(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".implicit_filter." in name and name.endswith("weight"):
                parameter.mul_(_FILTER_GAIN)


def _places(config: GenerateConfig, tokens: int) -> set[int]:
    """Draw how many tokens are read at each comparison; the last is always one of them."""
    count = min(config.positions, tokens)
    drawn = np.random.default_rng(config.seed).choice(tokens - 1, count - 1, replace=False)
    return {*(drawn + 1).tolist(), tokens}


def _write(reader: Decoder, config: GenerateConfig, tokens: int, places: set[int]) -> _Written:
    """Write as ``generate`` of the library does, and read the last token too."""
    device = torch.device(config.device)
    sampler = Sampler(GenerateOptions(seed=config.seed), range(config.batch))
    ids = np.empty((tokens, config.batch), np.int64)
    stamps = np.empty(tokens)
    kept: dict[int, Tensor] = {}
    scores = np.zeros((config.batch, reader.model.lm_head.out_features), np.float32)
    begin, cpu = time.perf_counter(), time.process_time()
    for step in range(tokens):
        places_drawn, _ = sampler.draw(scores)
        ids[step] = sampler.ids[places_drawn]
        found = reader.step(torch.from_numpy(ids[step]).to(device))
        scores = found.cpu().numpy()
        if step + 1 in places:
            kept[step + 1] = found.clone()
        stamps[step] = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    return _Written(torch.from_numpy(ids.T.copy()).to(device), stamps, cpu, kept)


def _difference(model: nn.Module, written: _Written, config: GenerateConfig) -> float:
    """Compare with one full pass; refuse what is too far from it."""
    logits = model(input_ids=written.ids).logits
    worst = max(
        float((logits[:, read - 1] - scores).abs().max()) for read, scores in written.kept.items()
    )
    if not worst <= config.tolerance:
        raise BenchError(
            f"scores of single steps differ from those of a full pass by {worst:.2e}, over "
            f"{config.tolerance:.0e}: nothing is reported"
        )
    return worst


def _forgetful(model: nn.Module, written: _Written, config: GenerateConfig) -> float:
    """Give the change of the last scores when only the last tokens are read."""
    tokens = written.ids.shape[1]
    logits = model(input_ids=written.ids[:, max(0, tokens - _SHORT) :]).logits[:, -1]
    return float((logits - written.kept[tokens]).abs().max())


def _facts(written: _Written, config: GenerateConfig) -> dict[str, float]:
    stamps = written.stamps
    count = min(_SLICE, len(stamps) // 2)
    cost = np.diff(stamps, prepend=0.0)
    at, around = config.compare_at, max(8, config.compare_at // 8)
    return {
        "seconds": float(stamps[-1]),
        "tokens_per_second": config.batch * len(stamps) / float(stamps[-1]),
        "first_thousand_seconds": float(cost[:count].mean() * 1_000),
        "last_thousand_seconds": float(cost[-count:].mean() * 1_000),
        "growth": float(cost[-count:].mean() / cost[:count].mean()),
        "median_token_seconds": float(np.median(cost)),
        "cpu_seconds_per_token": written.cpu_seconds / len(stamps),
        "slowest": float(cost.max()),
        "step_at_compared": float(cost[max(0, at - around) : at + around].mean()),
    }


def _full_pass(model: nn.Module, config: GenerateConfig) -> float:
    ids = torch.randint(7, 11, (config.batch, config.compare_at), device=config.device)
    seconds = []
    for _ in range(_FULL_PASSES + 1):
        begin = time.perf_counter()
        model(input_ids=ids).logits[:, -1].cpu()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def prepare_output(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists, or a place where none can be written, before measuring."""
    if path.exists() and not overwrite:
        raise BenchError(
            f"{path} exists already; name another file, or replace it with --overwrite"
        )
    if not path.parent.is_dir():
        raise BenchError(f"{path}: there is no folder {path.parent}; make it first")

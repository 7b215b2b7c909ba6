"""Perplexity of a language model on held-out DNA, against baselines without a network.

Perplexity is exp(mean of -ln p(x)) over all target bases x, the A, C, G, T of the regions: over all
columns of the vocabulary, and renormalized over A, C, G, T. Context may lie before the region.

A forward pass reads ``window`` positions and its last ``stride`` bases are targets: they see
``window - stride + 1, ..., window`` bases of context. The context curve scores one fixed set of
target blocks again with longer and longer windows; the targets of a block of t bases see ``c - t +
1, ..., c`` bases at context length c.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from megabase import __version__
from megabase.data.regions import Intervals, Regions
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import look_up, predict_tokens
from megabase.evaluate.markov import score_baselines
from megabase.evaluate.results import ContextPoint, EvaluationResult, Measure
from megabase.evaluate.sequences import read_rows
from megabase.genome.alphabet import BASE_BITS, SOFT_MASK, T
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import inference_mode, language_model_kind
from megabase.options import EvaluateOptions

_SHOWN_REGIONS = 50
"""Regions that a result lists: enough to see what they are, few enough for a JSON file."""
_CURVE_POSITIONS = 1 << 22
"""Positions of the curve at the longest context: a minute for a small model on two cores."""
_FEWEST_BLOCKS, _MOST_BLOCKS = 32, 2_048
"""Blocks of the curve: fewer give no standard error, more do not move the first three digits."""
_CASES = ("upper case", "soft-masked")  # what the last axis of :class:`_Scores` tells apart

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Scores:
    """Sums over the targets of each block, by case.

    ``nll`` float64 (blocks, 2): -ln p over all columns of the logits; ``nll_acgt`` the same over
    A, C, G, T; ``targets`` int64 (blocks, 2).
    """

    nll: npt.NDArray[np.float64]
    nll_acgt: npt.NDArray[np.float64]
    targets: npt.NDArray[np.int64]

    def measure(self, blocks: Any = slice(None), cases: Any = slice(None)) -> Measure:
        parts = (self.nll_acgt, self.targets, self.nll)
        return Measure.of(*(part[blocks][:, cases].sum(1) for part in parts))


@dataclass(frozen=True)
class _Evaluation:
    """What all forward passes of an evaluation share."""

    model: nn.Module
    store: Genome
    regions: Regions
    causal: bool
    batch_tokens: int
    name: str
    progress: Progress | None

    def margins(self, window: int, targets: int) -> tuple[int, int]:
        """Give the bases to read before and after the targets of a window."""
        if self.causal:  # the last target sees `window` bases
            return window - targets + 1, 0
        before = (window - targets) // 2  # the targets lie in the middle
        return before, window - targets - before

    def score(self, what: str, blocks: Intervals, window: int, targets: int) -> _Scores:
        """Sum the scores of the targets of each block, in windows of `window` positions."""
        total = len(blocks.start)
        sums, count = np.zeros((2, total, 2)), np.zeros((total, 2), np.int64)
        before, after = self.margins(window, targets)
        device = next((one.device for one in self.model.parameters()), torch.device("cpu"))
        # Rows reach a million bases: they are summed in float64 where the device has it.
        wide = torch.float32 if device.type == "mps" else torch.float64
        done = 0
        with inference_mode(self.model):
            for rows in read_rows(
                self.store, blocks, targets=targets, before=before, after=after,
                bases=self.batch_tokens,
            ):  # fmt: skip
                codes = torch.from_numpy(rows.codes).to(device)
                part = slice(rows.lead, rows.lead + targets)
                found = predict_tokens(
                    self.model, codes_to_ids(codes), "causal" if self.causal else "seventh",
                    _both, columns=part,
                )[:, part]  # fmt: skip
                known = (codes[:, part] & BASE_BITS) <= T
                wanted = torch.from_numpy(rows.wanted).to(device) & known
                soft = (codes[:, part] & SOFT_MASK) != 0
                kinds = torch.stack((wanted & ~soft, wanted & soft), dim=-1)
                for out, values in zip(sums, (-found.to(wide)).unbind(-1), strict=True):
                    kept = torch.where(kinds, values[..., None], 0.0)
                    out[rows.number] = kept.sum(1).cpu().numpy()
                count[rows.number] = kinds.sum(1).cpu().numpy()
                done += len(rows.number)
                if self.progress is not None:
                    self.progress(what, done, total)

        def locus(block: int) -> str:
            return _texts(self.store, blocks, slice(block, block + 1))[0]

        require_finite(np.concatenate(sums, axis=1), self.name, "log-probabilities", locus)
        return _Scores(sums[0], sums[1], count)

    def curve_blocks(self, context: int, targets: int, limit: int) -> Intervals:
        """Spread target blocks over the regions where a window of this context fits."""
        before, after = self.margins(context, targets)
        all_of = self.regions
        end = np.minimum(all_of.end, self.store.lengths[all_of.contig] - after)
        inner = Regions.of(all_of.contig, all_of.start, end)
        return inner.tile(targets, before=before, whole=True, limit=limit)

    def curve(
        self, lengths: Sequence[int], targets: int, limit: int | None
    ) -> tuple[Intervals | None, tuple[ContextPoint, ...]]:
        if not lengths:
            return None, ()
        longest = lengths[-1]
        if limit is None:
            limit = min(_MOST_BLOCKS, max(_FEWEST_BLOCKS, _CURVE_POSITIONS // longest))
        blocks = self.curve_blocks(longest, targets, limit)
        if not len(blocks.start):
            where = f"{longest:,} bases of its contig in front of it"
            raise InputError(f"no base of the regions has {where}; choose shorter contexts")
        points: list[ContextPoint] = []
        shortest: _Scores | None = None
        for length in lengths:
            scores = self.score(f"context {length:,}", blocks, length, targets)
            shortest = shortest or scores
            sums = shortest.nll_acgt.sum(1), scores.nll_acgt.sum(1), scores.targets.sum(1)
            least, saving = length - targets + 1, Measure.saving(*sums)
            points.append(ContextPoint(length, least, scores.measure(), *saving))
        return blocks, tuple(points)


def evaluate(
    model: nn.Module, store: Genome, regions: Regions, options: EvaluateOptions | None = None, *,
    name: str = "model", train_regions: Regions | None = None, progress: Progress | None = None,
) -> EvaluationResult:  # fmt: skip
    """Measure the perplexity of a language model on regions of a genome.

    A causal model predicts each target from the bases before it in its window. A masked model has
    every seventh target of a block hidden at a time, the block in the middle of its window
    (:mod:`megabase.evaluate.log_probs`); its number is a pseudo-perplexity. The `model` gives
    ``model(input_ids=ids).logits`` (rows, length, vocabulary); its device is used and its training
    mode restored. Markov models are trained where the model was (`train_regions`); without these
    the uniform model is the only baseline. `progress` is called with what is being done, windows
    done and windows in all.

    InputError when a length does not fit the model or the genome, there is no base to score, or the
    model gives no probability to single bases or sees the base that it predicts; NotFiniteError for
    a probability that is zero or not a number.
    """
    begin = time.perf_counter()
    options = options or EvaluateOptions()
    # Also refuses a next-token head that sees the next base, and tokens of several bases.
    causal = language_model_kind(model) == "causal"
    job = _Evaluation(model, store, regions, causal, options.batch_tokens, name, progress)
    longest: int | None = getattr(getattr(model, "config", None), "max_length", None)
    window = _window(options.window, longest, regions)
    stride = window if options.stride is None else options.stride
    if not 1 <= stride <= window:
        raise InputError(f"stride must lie between 1 and the window, {window}; found {stride}")
    width = options.context_targets
    if options.context_lengths is None:  # as far as the targets have DNA in front of them
        fitting = (one for one in _default_context_lengths(longest or window) if one >= width)
        lengths = [one for one in fitting if len(job.curve_blocks(one, width, 1).start)]
    else:
        lengths = _checked(options.context_lengths, longest, width)
    # Nothing stands before the first base of a contig.
    blocks = regions.tile(stride, before=int(causal), limit=options.max_windows)
    scores = job.score("perplexity", blocks, window, stride)
    curve_blocks, curve = job.curve(lengths, width, options.context_blocks)
    if progress is not None:
        progress("baselines", 0, 1)
    baselines, baseline_bases = score_baselines(
        store, blocks, scores.nll_acgt.sum(1), curve_blocks,
        train_regions if options.baselines else None, options.max_order,
    )  # fmt: skip
    covered = int((blocks.end - blocks.start).sum())
    return EvaluationResult(
        model=name,
        objective="causal" if causal else "masked",
        genome=store.name,
        genome_checksum=store.checksum,
        regions=_texts(store, regions, slice(_SHOWN_REGIONS)),
        region_count=len(regions),
        region_bases=regions.total,
        window=window,
        stride=stride,
        windows=len(blocks.start),
        train_overlap=None if train_regions is None else train_regions.intersect(regions).total,
        skipped=covered - int(scores.targets.sum()),
        overall=scores.measure(),
        by_contig={
            store.contigs[i].name: scores.measure(blocks.contig == i)
            for i in np.unique(blocks.contig[scores.targets.any(1)]).tolist()
        },
        by_soft_mask={
            name: scores.measure(cases=[case])
            for case, name in enumerate(_CASES)
            if scores.targets[:, case].any()
        },
        context=curve,
        baselines=baselines,
        baseline_bases=baseline_bases,
        seconds=round(time.perf_counter() - begin, 3),
        version=__version__,
        parameters=sum(parameter.numel() for parameter in model.parameters()) or None,
    )


def _default_context_lengths(longest: int) -> tuple[int, ...]:
    """Give 64, 128, ... up to the longest input in positions.

    It ends the list unless a power of two comes within 5 percent of it (1,024 of 1,026).
    """
    lengths = [64 << step for step in range(32) if 64 << step <= longest]
    return (*lengths, longest) if not lengths or longest > 1.05 * lengths[-1] else tuple(lengths)


def _window(window: int | None, longest: int | None, regions: Regions) -> int:
    if len(regions) == 0:
        raise InputError("there are no regions to evaluate")
    if window is None:
        if longest is None:
            raise InputError("the model reads any length; say how long a window is (window=...)")
        return min(_default_context_lengths(longest)[-1], regions.longest)
    if window < 1:
        raise InputError(f"a window needs 1 position or more, found {window:,}")
    _require_fit(f"a window of {window:,} positions", window, longest)
    return window


def _require_fit(what: str, length: int, longest: int | None) -> None:
    if longest is not None and length > longest:
        limit = f"whose longest input is {longest:,} positions"
        raise InputError(f"{what} does not fit the model, {limit}")


def _checked(lengths: Sequence[int], longest: int | None, targets: int) -> list[int]:
    """Give the context lengths in order, checked against the model and the target blocks."""
    chosen = sorted(set(lengths))
    if not chosen:
        return []
    if targets < 1:
        raise InputError(f"a block of the context curve needs 1 base or more, found {targets}")
    if chosen[0] < targets:
        raise InputError(
            f"a context of {chosen[0]:,} is shorter than a target block of {targets:,} bases; "
            "choose longer contexts or smaller blocks"
        )
    _require_fit(f"a context of {chosen[-1]:,} bases", chosen[-1], longest)
    return chosen


def _both(logits: Tensor, ids: Tensor) -> Tensor:
    """Give the log-probabilities over all columns and over A, C, G, T, (..., 2) in float32."""
    logits = logits.float()  # of float64 models too: millions of targets are held at a time
    return torch.stack((look_up(logits, ids, "all"), look_up(logits, ids)), dim=-1)


def _texts(store: Genome, regions: Regions | Intervals, first: slice) -> tuple[str, ...]:
    """Write some regions, 1-based with both ends."""
    rows = zip(regions.contig[first], regions.start[first], regions.end[first], strict=True)
    return tuple(str(Interval(store.contigs[i].name, start, end)) for i, start, end in rows)

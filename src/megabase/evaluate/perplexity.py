"""Perplexity of a language model on held-out DNA, beside models that know little.

With p(x) the probability of a target base x, perplexity is exp(mean of -ln p(x)) over all target
bases: sums over the data set, never a mean of batch means. Two are given, over all columns of the
model's vocabulary and renormalised over A, C, G, T. Targets are the A, C, G, T of the regions;
anything else is passed over and counted. Context comes from the contig, so it may lie before the
region: only what is predicted is held out.

A forward pass reads ``window`` positions and its last ``stride`` bases are targets: they see
``window - stride + 1, ..., window`` bases of context. The headline number has ``stride = window``
(windows side by side, each base a target once, as in training). The context curve scores one fixed
set of target blocks again and again, each time with a longer window; the targets of a block of t
bases then see ``c - t + 1, ..., c`` bases at context length c, and exactly c when t is 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from megabase import __version__
from megabase.data.regions import Regions
from megabase.errors import InputError
from megabase.evaluate.block_scores import CASES, BlockScores, score_blocks
from megabase.evaluate.blocks import Blocks, tile_blocks
from megabase.evaluate.floors import score_floors
from megabase.evaluate.results import ContextPoint, EvaluationResult, Measure, paired_saving
from megabase.evaluate.scorers import CausalScorer, MaskedScorer, Scorer
from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.models.scored_model import language_model_kind

__all__ = ["default_context_lengths", "evaluate"]

_SHOWN_REGIONS = 50
_CURVE_POSITIONS = 1 << 22  # at the longest context: a minute for a small model on two cores
_FEWEST_BLOCKS, _MOST_BLOCKS = 32, 2_048

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Job:
    """What all forward passes of an evaluation share."""

    model: nn.Module
    store: GenomeStore
    regions: Regions
    scorer: Scorer
    batch_tokens: int
    name: str
    progress: Progress | None

    def score(self, what: str, blocks: Blocks, window: int, targets: int) -> BlockScores:
        def report(done: int) -> None:
            if self.progress is not None:
                self.progress(what, done, len(blocks))

        return score_blocks(
            self.model,
            self.store,
            blocks,
            self.scorer,
            window=window,
            targets=targets,
            batch_tokens=self.batch_tokens,
            name=self.name,
            progress=report,
        )

    def curve_blocks(self, context: int, targets: int, limit: int) -> Blocks:
        """Spread target blocks over the regions where a window of this context fits."""
        before, after = self.scorer.margins(context, targets)
        room = self.store.lengths[self.regions.contig] - after
        inner = Regions.of(
            self.regions.contig, self.regions.start, np.minimum(self.regions.end, room)
        )
        return tile_blocks(inner, targets, before=before, whole=True, limit=limit)


def evaluate(
    model: nn.Module,
    store: GenomeStore,
    regions: Regions,
    *,
    name: str = "model",
    scorer: Scorer | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    context_lengths: Sequence[int] | None = None,
    context_targets: int = 16,
    context_blocks: int | None = None,
    train_regions: Regions | None = None,
    floors: bool = True,
    max_order: int = 12,
    batch_tokens: int = 1 << 16,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure the perplexity of a language model on regions of a genome.

    Parameters
    ----------
    model
        Gives ``model(input_ids=ids).logits`` of shape (rows, length, vocabulary). Its device is
        used and its training mode restored.
    store
        The genome.
    regions
        Where the target bases lie.
    name
        Name of the model, for the result.
    scorer
        How the model is asked; as its head was trained when None.
    window
        Input positions of a forward pass; when None the last of :func:`default_context_lengths`,
        but no more than the longest region has.
    stride
        Targets of a window, its last ones; the window when None.
    max_windows
        Score at most so many windows, evenly spread; all when None.
    context_lengths
        Context lengths of the curve, in bases. When None :func:`default_context_lengths`, as far
        as the contigs reach; no curve when empty.
    context_targets
        Bases of a target block of the curve; 1 gives every target exactly the stated context.
    context_blocks
        Number of these blocks; when None 2,048, or fewer for contexts above 2,048 bases (about
        4 million positions at the longest context, and at least 32 blocks).
    train_regions
        Where the model was trained, and so the Markov models are; without them the uniform model
        is the only floor.
    floors
        Whether Markov models are trained.
    max_order
        Highest order of the Markov models.
    batch_tokens
        Positions of a batch; it changes time and memory, not the result.
    progress
        Called with what is being done, windows done and windows in all.

    Returns
    -------
    EvaluationResult

    Raises
    ------
    InputError
        When a length does not fit the model or the genome, or there is no base to score.
    NotFiniteError
        When the model gives a probability that is zero or not a number.
    InputError
        When the model gives no probability to single bases, or sees the base that it predicts.
    """
    begin = time.perf_counter()
    # Also refuses a next-token head that sees the next base, and tokens of several bases.
    kind = language_model_kind(model)
    if scorer is None:
        scorer = MaskedScorer() if kind == "masked" else CausalScorer()
    job = _Job(model, store, regions, scorer, batch_tokens, name, progress)
    longest: int | None = getattr(getattr(model, "config", None), "max_length", None)
    window = _window(window, longest, regions)
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise InputError(f"stride must lie between 1 and the window, {window}; found {stride}")
    if context_lengths is None:
        lengths = _reachable(job, default_context_lengths(longest or window), context_targets)
    else:
        lengths = _checked(context_lengths, longest, context_targets)

    blocks = tile_blocks(regions, stride, before=scorer.first, limit=max_windows)
    scores = job.score("perplexity", blocks, window, stride)
    curve_blocks, curve = _curve(job, lengths, context_targets, context_blocks)
    if progress is not None:
        progress("floors", 0, 1)
    found, floor_bases = score_floors(
        store,
        blocks,
        scores.nll_acgt.sum(1),
        curve_blocks,
        train_regions if floors else None,
        max_order,
    )
    covered = int((blocks.end - blocks.start).sum())
    return EvaluationResult(
        model=name,
        objective=scorer.objective,
        genome=store.name,
        genome_checksum=store.checksum,
        regions=_texts(store, regions),
        region_count=len(regions),
        region_bases=regions.total,
        window=window,
        stride=stride,
        windows=len(blocks),
        train_overlap=None if train_regions is None else train_regions.intersect(regions).total,
        skipped=covered - int(scores.targets.sum()),
        overall=scores.measure(),
        by_contig=_by_contig(store, blocks, scores),
        by_soft_mask={
            name: scores.measure_case(case)
            for case, name in enumerate(CASES)
            if scores.targets[:, case].any()
        },
        context=curve,
        floors=found,
        floor_bases=floor_bases,
        seconds=round(time.perf_counter() - begin, 3),
        version=__version__,
        parameters=sum(parameter.numel() for parameter in model.parameters()) or None,
    )


def default_context_lengths(longest: int) -> tuple[int, ...]:
    """Give 64, 128, ... up to the longest input.

    Parameters
    ----------
    longest
        Longest input in positions. It ends the list unless a power of two comes within 5 percent
        of it (1,024 for a model of 1,026 positions).

    Examples
    --------
    >>> default_context_lengths(514), default_context_lengths(400)
    ((64, 128, 256, 512), (64, 128, 256, 400))
    """
    lengths = [64 << step for step in range(32) if 64 << step <= longest]
    if not lengths or longest > 1.05 * lengths[-1]:
        lengths.append(longest)
    return tuple(lengths)


def _window(window: int | None, longest: int | None, regions: Regions) -> int:
    if len(regions) == 0:
        raise InputError("there are no regions to evaluate")
    if window is None:
        if longest is None:
            raise InputError(
                "the model reads inputs of any length; say how many positions a window has "
                "(window=...)"
            )
        return min(default_context_lengths(longest)[-1], regions.longest)
    if window < 1:
        raise InputError(f"a window needs 1 position or more, found {window:,}")
    if longest is not None and window > longest:
        raise InputError(
            f"a window of {window:,} positions does not fit the model, whose longest input is "
            f"{longest:,} positions"
        )
    return window


def _checked(lengths: Sequence[int], longest: int | None, targets: int) -> list[int]:
    chosen = sorted(set(lengths))
    if chosen and targets < 1:
        raise InputError(f"a block of the context curve needs 1 base or more, found {targets}")
    if chosen and chosen[0] < targets:
        raise InputError(
            f"a context of {chosen[0]:,} is shorter than a target block of {targets:,} bases; "
            "ask for longer contexts or smaller blocks"
        )
    if chosen and longest is not None and chosen[-1] > longest:
        raise InputError(
            f"a context of {chosen[-1]:,} bases does not fit the model, whose longest input is "
            f"{longest:,} positions"
        )
    return chosen


def _reachable(job: _Job, lengths: Sequence[int], targets: int) -> list[int]:
    """Keep the lengths for which some target of the regions has that much DNA in front."""
    return [
        length
        for length in lengths
        if length >= targets and len(job.curve_blocks(length, targets, 1))
    ]


def _curve(
    job: _Job, lengths: Sequence[int], targets: int, limit: int | None
) -> tuple[Blocks | None, tuple[ContextPoint, ...]]:
    """Score the same blocks with every context length."""
    if not lengths:
        return None, ()
    longest = lengths[-1]
    if limit is None:
        limit = min(_MOST_BLOCKS, max(_FEWEST_BLOCKS, _CURVE_POSITIONS // longest))
    blocks = job.curve_blocks(longest, targets, limit)
    if len(blocks) == 0:
        raise InputError(
            f"no base of the regions has {longest:,} bases of its contig in front of it; ask for "
            "shorter contexts"
        )
    points: list[ContextPoint] = []
    shortest: BlockScores | None = None
    for length in lengths:
        scores = job.score(f"context {length:,}", blocks, length, targets)
        shortest = shortest or scores
        saved, error = paired_saving(
            shortest.nll_acgt.sum(1), scores.nll_acgt.sum(1), scores.targets.sum(1)
        )
        points.append(ContextPoint(length, length - targets + 1, scores.measure(), saved, error))
    return blocks, tuple(points)


def _by_contig(store: GenomeStore, blocks: Blocks, scores: BlockScores) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for contig in np.unique(blocks.contig).tolist():
        chosen = blocks.contig == contig
        if scores.targets[chosen].any():
            found[store.contigs[contig].name] = scores.measure(chosen)
    return found


def _texts(store: GenomeStore, regions: Regions) -> tuple[str, ...]:
    shown = slice(_SHOWN_REGIONS)
    rows = zip(
        regions.contig[shown].tolist(),
        regions.start[shown].tolist(),
        regions.end[shown].tolist(),
        strict=True,
    )
    return tuple(
        str(Interval(store.contigs[contig].name, start, end)) for contig, start, end in rows
    )

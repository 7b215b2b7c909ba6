"""Interpolated Markov models over A, C, G, T: the baseline that a language model has to beat.

The probability of base b after the context c of k bases mixes what was counted after that context
with the prediction of the next shorter one:

    p_k(b | c) = (n(c b) + r_k p_{k-1}(b | c')) / (n(c) + r_k),    p_{-1}(b) = 1/4

n counts occurrences in the training regions on the forward strand, c' is c without its oldest base,
and the rate r_k is the weight of the shorter context in counts. Contexts broken by an N or by the
start of a region are not counted; prediction falls back on the longest whole one. Rates are either
one fixed number (:data:`DEFAULT_RATE`), or fitted on a part of the training regions that is held
back; the second trusts long contexts too much on DNA without the repeats that training has.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.data.regions import Intervals, Regions
from megabase.errors import InputError
from megabase.evaluate.results import Baseline, Measure
from megabase.evaluate.sequences import read_rows
from megabase.genome.alphabet import BASE_BITS, N, T, pack_kmers
from megabase.genome.store import Genome

DEFAULT_RATE = 8.0
"""Weight of the next shorter context, in counts, where no rate is fitted: one number for all
orders and genomes, so that this baseline depends on the counts alone."""

_Codes, _Kmers, _Floats = npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float64]
_MAX_ORDER = 14  # 4**15 counts of 4 bytes are 4 GiB; order 12 takes 256 MiB
_CHUNK = 1 << 18  # bases looked at in one go: the arrays of a chunk stay small
_TUNING_BASES = 1 << 20  # enough to choose a dozen rates; more changes nothing
_RATES = 2.0 ** np.arange(-1.0, 11.5, 0.5)  # finer steps move no digit of a perplexity shown


class _MarkovModel:
    """Interpolated Markov models of every order from 0 to ``max_order``, over one set of counts.

    Memory is about 1.4 * 4 ** (max_order + 2) bytes (360 MB at order 12).
    """

    def __init__(self, max_order: int = 12) -> None:
        if not 0 <= max_order <= _MAX_ORDER:
            raise InputError(f"the order must lie between 0 and {_MAX_ORDER}, found {max_order}")
        self.max_order = max_order
        self.fitted_rates: tuple[float, ...] | None = None
        # Windows ending in whole contexts are counted at the highest order only and summed down;
        # shorter runs at the start of a piece go straight to the order they can serve.
        self._counts = [
            np.zeros(4 ** (order + 1), np.uint32 if order >= 9 else np.int64)
            for order in range(max_order + 1)
        ]
        self._summed: list[npt.NDArray[Any]] = []

    def add(self, codes: npt.NDArray[np.uint8], first: int = 0) -> None:
        """Count the bases of DNA, uint8 (length,) or (rows, length), from index `first` on."""
        kmer, run = _kmers(codes, self.max_order)
        kmer, run = kmer[..., first:].ravel(), run[..., first:].ravel()
        self._summed = []
        for order, counts in enumerate(self._counts):
            chosen = run > order if order == self.max_order else run == order + 1
            np.add.at(counts, kmer[chosen] & (counts.size - 1), 1)

    @property
    def bases(self) -> int:
        return int(self.counts(0).sum())

    def counts(self, order: int) -> npt.NDArray[np.integer]:
        """Occurrences of each k-mer of order + 1 bases, (4 ** order, 4).

        The row is the context read as a number in base 4, oldest base first; the column the base
        after it.
        """
        if not self._summed:
            summed: list[npt.NDArray[Any]] = [self._counts[-1]]
            for own in reversed(self._counts[:-1]):
                summed.append(own + summed[-1].reshape(4, -1).sum(0, dtype=own.dtype))
            self._summed = summed[::-1]
        return self._summed[order].reshape(-1, 4)

    def log_probabilities(
        self, codes: _Codes, first: int = 0, rates: float | Sequence[float] = DEFAULT_RATE
    ) -> _Floats:
        """Natural log-probability of each base from index `first` on, after the bases before it.

        Codes are uint8 (length,) or (rows, length). Gives float64 (max_order + 1, ..., length -
        first), NaN where the base is not A, C, G or T. `rates` is one for all orders or one for
        each.
        """
        orders = self.max_order + 1
        steps = [rates] * orders if isinstance(rates, int | float) else list(rates)
        if len(steps) != orders or not all(rate > 0 for rate in steps):
            expected = f"one rate above 0, or {orders} of them (orders 0 to {self.max_order})"
            raise InputError(f"expected {expected}; found {rates!r}")
        kmer, run = _kmers(codes, self.max_order)
        kmer, run = kmer[..., first:], run[..., first:]
        out = np.empty((orders, *kmer.shape))
        probability = np.full(kmer.shape, 0.25)
        for order, rate in enumerate(steps):
            seen, total = self._seen(order, kmer)
            mixed = (seen + rate * probability) / (total + rate)
            probability = np.where(run > order, mixed, probability)
            np.log(probability, out=out[order])
        out[:, run == 0] = np.nan
        return out

    def fit_rates(self, codes: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Choose the rate of each order, from 0 up, by the likelihood of DNA not yet counted."""
        pairs = [_kmers(piece, self.max_order) for piece in codes]
        kmer = np.concatenate([kmer[run > 0] for kmer, run in pairs])
        run = np.concatenate([run[run > 0] for _, run in pairs])
        probability = np.full(kmer.shape, 0.25)
        chosen: list[float] = []
        for order in range(self.max_order + 1):
            whole = run > order
            seen, total = self._seen(order, kmer[whole])
            shorter = probability[whole]
            fits = [np.log((seen + r * shorter) / (total + r)).sum() for r in _RATES]
            rate = float(_RATES[int(np.argmax(fits))])
            chosen.append(rate)
            probability[whole] = (seen + rate * shorter) / (total + rate)
        self.fitted_rates = tuple(chosen)

    def _seen(self, order: int, kmer: _Kmers) -> tuple[_Floats, _Floats]:
        part = kmer & (4 ** (order + 1) - 1)
        after = self.counts(order)[part >> 2]
        seen = np.take_along_axis(after, (part & 3)[..., None], axis=-1)[..., 0]
        return seen.astype(np.float64), after.sum(-1, dtype=np.float64)


def train_markov(store: Genome, regions: Regions, max_order: int = 12) -> _MarkovModel:
    """Count k-mers in regions of a genome, streaming over them, and fit the rates.

    One part in twenty, spread evenly and at most 1 Mb, is held back; the rates are chosen by its
    likelihood under the counts of the rest, and then it is counted as well.
    """
    model = _MarkovModel(max_order)
    held_back: list[tuple[npt.NDArray[np.uint8], int]] = []
    room = _TUNING_BASES
    for number, (contig, start, end, first) in enumerate(_pieces(regions, max_order)):
        codes = store.view(contig)[start:end]
        if number % 20 == 10 and room > 0:
            held_back.append((codes, first))
            room -= codes.size
        else:
            model.add(codes, first)
    if held_back and model.bases:
        model.fit_rates([codes for codes, _ in held_back])
    for codes, first in held_back:
        model.add(codes, first)
    if not model.bases:
        raise InputError(
            f"the training regions of genome {store.name!r} hold no A, C, G or T "
            f"({regions.total:,} bases in {len(regions):,} regions); the baselines need some"
        )
    return model


def _pieces(regions: Regions, max_order: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut regions into (contig, start, end, first): context from start, counting from first."""
    # Small genomes are cut finer, so that there are pieces to hold back.
    step = min(_CHUNK, max(64, regions.total // 60))
    rows = zip(regions.contig.tolist(), regions.start.tolist(), regions.end.tolist(), strict=True)
    for contig, start, end in rows:
        for begin in range(start, end, step):
            first = min(max_order, begin - start)
            yield contig, begin - first, min(begin + step, end), first


def _kmers(codes: _Codes, max_order: int) -> tuple[_Kmers, _Kmers]:
    """Pack the k-mer of max_order + 1 bases that ends at each position, the newest base lowest.

    Also gives the number of unbroken bases (A, C, G, T) that end there; digits beyond mean nothing.
    """
    # Rows are packed as one sequence, apart by as many N as a k-mer reaches back.
    gaps = [(0, 0)] * (codes.ndim - 1) + [(max_order, 0)]
    apart = np.pad(codes, gaps, constant_values=N)
    packed, _ = pack_kmers(np.append(apart.ravel(), np.full(max_order, N, np.uint8)), max_order + 1)
    kmer = packed.astype(np.int64).reshape(apart.shape)[..., : codes.shape[-1]]
    known = (codes & np.uint8(BASE_BITS)) <= T
    index = np.arange(codes.shape[-1], dtype=np.int64)
    broken = np.maximum.accumulate(np.where(known, -1, index), axis=-1)
    return kmer, index - broken


def score_baselines(
    store: Genome, blocks: Intervals, model_nll: _Floats, curve_blocks: Intervals | None = None,
    train_regions: Regions | None = None, max_order: int = 12,
) -> tuple[tuple[Baseline, ...], int]:  # fmt: skip
    """Score the uniform model and Markov models on the targets of an evaluation.

    `model_nll` are the model's sums of -ln p over A, C, G, T for each block. Gives the uniform
    model, orders 0 to `max_order` with one fixed rate and the same with fitted rates (left out
    where the training regions are too short to hold a part back), and the bases that were counted.
    """
    markov = None if train_regions is None else train_markov(store, train_regions, max_order)
    names: list[tuple[str, int | None, tuple[float, ...], bool]] = [("uniform", None, (), False)]
    for fitted, rates in enumerate(_rates(markov)):
        names += [
            (f"Markov order {order}{', fitted' * fitted}", order, rates[: order + 1], fitted == 1)
            for order in range(len(rates))
        ]
    sums, targets = _score(store, blocks, markov)
    curve: list[Measure | None] = [None] * len(names)
    if curve_blocks is not None:
        curve_sums, curve_targets = _score(store, curve_blocks, markov)
        curve = [Measure.of(line, curve_targets) for line in curve_sums]
    baselines = []
    for facts, line, of_curve in zip(names, sums, curve, strict=True):
        own = (Measure.of(line, targets), of_curve, *Measure.saving(line, model_nll, targets))
        baselines.append(Baseline(*facts, *own))
    return tuple(baselines), 0 if markov is None else markov.bases


def _rates(markov: _MarkovModel | None) -> list[tuple[float, ...]]:
    if markov is None:
        return []
    fixed = (DEFAULT_RATE,) * (markov.max_order + 1)
    return [fixed] if markov.fitted_rates is None else [fixed, markov.fitted_rates]


def _score(store: Genome, blocks: Intervals, markov: _MarkovModel | None) -> tuple[_Floats, _Kmers]:
    """Sum -ln p over the targets of each block: (baselines, blocks), and the number of targets."""
    choices = _rates(markov)
    sums = np.zeros((1 + sum(map(len, choices)), len(blocks.start)))
    targets = np.zeros(len(blocks.start), np.int64)
    widest = int((blocks.end - blocks.start).max(initial=1))
    before = 0 if markov is None else markov.max_order
    for rows in read_rows(store, blocks, targets=widest, before=before, bases=1 << 18):
        known = rows.wanted & ((rows.codes[:, rows.lead :] & BASE_BITS) <= T)
        targets[rows.number] = known.sum(1)
        sums[0, rows.number] = math.log(4) * known.sum(1)
        found = [markov.log_probabilities(rows.codes, rows.lead, r) for r in choices if markov]
        if found:
            sums[1:, rows.number] = -np.where(known, np.concatenate(found), 0.0).sum(-1)
    return sums, targets

"""Floors: what models that know little make of the same target bases."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from megabase.data.regions import Regions
from megabase.evaluate.blocks import Blocks, read_rows
from megabase.evaluate.markov import DEFAULT_RATE, MarkovModel, train_markov
from megabase.evaluate.results import Floor, Measure, measure, paired_saving
from megabase.genome.alphabet import BASE_BITS, T
from megabase.genome.store import GenomeStore

__all__ = ["score_floors"]


def score_floors(
    store: GenomeStore,
    blocks: Blocks,
    model_nll: npt.NDArray[np.float64],
    curve_blocks: Blocks | None = None,
    train_regions: Regions | None = None,
    max_order: int = 12,
) -> tuple[tuple[Floor, ...], int]:
    """Score the uniform model and Markov models on the targets of an evaluation.

    Parameters
    ----------
    store
        The genome.
    blocks
        Targets of the evaluation.
    model_nll
        float64 (blocks,): the model's sums of -ln p over A, C, G, T on these targets.
    curve_blocks
        Targets of the context curve; None without one.
    train_regions
        Where the Markov models count; None leaves them out.
    max_order
        Highest order.

    Returns
    -------
    floors : tuple of Floor
        Uniform; orders 0 to `max_order` with one fixed rate; the same with fitted rates (left out
        where the training regions are too short to hold a part back).
    bases : int
        Bases that the Markov models counted.

    Raises
    ------
    InputError
        When the training regions hold no base.
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
        curve = [measure(line, curve_targets) for line in curve_sums]
    floors: list[Floor] = []
    for line, facts in enumerate(names):
        here = measure(sums[line], targets)
        floors.append(
            Floor(*facts, here, curve[line], *paired_saving(sums[line], model_nll, targets))
        )
    return tuple(floors), 0 if markov is None else markov.bases


def _rates(markov: MarkovModel | None) -> list[tuple[float, ...]]:
    """Give the rates of all orders: the fixed ones, and the fitted ones if there are."""
    if markov is None:
        return []
    fixed = (DEFAULT_RATE,) * (markov.max_order + 1)
    return [fixed] if markov.fitted_rates is None else [fixed, markov.fitted_rates]


def _score(
    store: GenomeStore, blocks: Blocks, markov: MarkovModel | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Sum -ln p over the targets of each block: (floors, blocks), and the number of targets."""
    choices = _rates(markov)
    sums = np.zeros((1 + sum(map(len, choices)), len(blocks)))
    targets = np.zeros(len(blocks), np.int64)
    widest = int((blocks.end - blocks.start).max(initial=1))
    before = 0 if markov is None else markov.max_order
    for rows in read_rows(store, blocks, targets=widest, before=before, bases=1 << 18):
        known = rows.wanted & ((rows.codes[:, rows.lead :] & BASE_BITS) <= T)
        targets[rows.number] = known.sum(1)
        sums[0, rows.number] = math.log(4) * known.sum(1)
        line = 1
        if markov is None:
            continue
        for rates in choices:
            found = markov.log_probabilities(rows.codes, rows.lead, rates)
            part = slice(line, line + len(rates))
            sums[part, rows.number] = -np.where(known, found, 0.0).sum(-1)
            line += len(rates)
    return sums, targets

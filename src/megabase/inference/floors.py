"""Floors: what models that know little make of the same target bases."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from megabase.data.regions import Regions
from megabase.genome.alphabet import BASE_BITS, T
from megabase.genome.store import GenomeStore
from megabase.inference.blocks import Blocks, read_rows
from megabase.inference.markov import DEFAULT_RATE, MarkovModel, train_markov
from megabase.inference.results import Floor, Measure, measure

__all__ = ["score_floors"]


def score_floors(
    store: GenomeStore,
    blocks: Blocks,
    curve_blocks: Blocks | None,
    train_regions: Regions | None,
    max_order: int = 12,
) -> tuple[tuple[Floor, ...], int]:
    """Score the uniform model and Markov models on the targets of an evaluation.

    Parameters
    ----------
    store
        The genome.
    blocks
        Targets of the evaluation.
    curve_blocks
        Targets of the context curve; None without one.
    train_regions
        Where the Markov models count; None leaves them out.
    max_order
        Highest order.

    Returns
    -------
    floors : tuple of Floor
        Uniform; orders 0 to `max_order` with one fixed rate; the highest order with fitted rates.
    bases : int
        Bases that the Markov models counted.

    Raises
    ------
    MarkovError
        When the training regions hold no base.
    """
    markov = None if train_regions is None else train_markov(store, train_regions, max_order)
    here = _score(store, blocks, markov)
    curve = [None] * len(here) if curve_blocks is None else _score(store, curve_blocks, markov)
    names = [("uniform", None, (), False)]
    if markov is not None:
        names += [
            (f"Markov order {order}", order, (DEFAULT_RATE,) * (order + 1), False)
            for order in range(max_order + 1)
        ]
        if markov.fitted_rates is not None:
            names.append(
                (f"Markov order {max_order}, fitted", max_order, markov.fitted_rates, True)
            )
    floors = tuple(
        Floor(*facts, measure=here[row], context_measure=curve[row])
        for row, facts in enumerate(names)
    )
    return floors, 0 if markov is None else markov.bases


def _score(store: GenomeStore, blocks: Blocks, markov: MarkovModel | None) -> list[Measure]:
    """Measure the uniform model, every order, and the fitted rates, in this order."""
    order = 0 if markov is None else markov.max_order
    fitted = markov is not None and markov.fitted_rates is not None
    lines = 1 if markov is None else 1 + (order + 1) + fitted
    sums = np.zeros((lines, len(blocks)))
    targets = np.zeros(len(blocks), np.int64)
    widest = int((blocks.end - blocks.start).max(initial=1))
    for rows in read_rows(store, blocks, targets=widest, before=order, bases=1 << 18):
        known = rows.wanted & ((rows.codes[:, rows.lead :] & BASE_BITS) <= T)
        targets[rows.number] = known.sum(1)
        sums[0, rows.number] = math.log(4) * known.sum(1)
        if markov is not None:
            found = [markov.log_probabilities(rows.codes, rows.lead)]
            if markov.fitted_rates is not None:
                found.append(
                    markov.log_probabilities(rows.codes, rows.lead, markov.fitted_rates)[-1:]
                )
            sums[1:, rows.number] = _row_sums(np.concatenate(found), known)
    return [measure(line, targets) for line in sums]


def _row_sums(
    log_probability: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    return -np.where(known, log_probability, 0.0).sum(-1)

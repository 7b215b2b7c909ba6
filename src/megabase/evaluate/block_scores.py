"""Scores of target blocks: a model run over windows of DNA, summed up block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from megabase.data.augment import is_base, is_soft_masked
from megabase.evaluate.blocks import Blocks, read_rows
from megabase.evaluate.results import Measure, measure
from megabase.evaluate.scorers import Scorer
from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.models.checkpoints.finite import require_finite
from megabase.models.scored_model import inference_mode

__all__ = ["CASES", "BlockScores", "score_blocks"]

CASES = ("upper case", "soft-masked")
"""What the last axis of :class:`BlockScores` tells apart."""


@dataclass(frozen=True)
class BlockScores:
    """Sums over the targets of each block, by case.

    Parameters
    ----------
    nll
        float64 (blocks, 2): -ln p over all columns of the logits.
    nll_acgt
        float64 (blocks, 2): renormalised over A, C, G, T.
    targets
        int64 (blocks, 2): number of targets.
    """

    nll: npt.NDArray[np.float64]
    nll_acgt: npt.NDArray[np.float64]
    targets: npt.NDArray[np.int64]

    def measure(self, chosen: npt.NDArray[np.bool_] | None = None) -> Measure:
        """Sum up all blocks, or the chosen ones (bool, (blocks,))."""
        rows = slice(None) if chosen is None else chosen
        return measure(self.nll_acgt[rows].sum(1), self.targets[rows].sum(1), self.nll[rows].sum(1))

    def measure_case(self, case: int) -> Measure:
        """Sum up the targets of one case."""
        return measure(self.nll_acgt[:, case], self.targets[:, case], self.nll[:, case])


def score_blocks(
    model: nn.Module,
    store: GenomeStore,
    blocks: Blocks,
    scorer: Scorer,
    *,
    window: int,
    targets: int,
    batch_tokens: int,
    name: str = "the model",
    progress: Callable[[int], object] = lambda done: None,
) -> BlockScores:
    """Sum the scores of the targets of each block.

    Parameters
    ----------
    model
        Gives ``model(input_ids=ids).logits``; its device is used, its training mode restored.
    store
        The genome.
    blocks
        The targets.
    scorer
        How the model is asked.
    window
        Input positions of a forward pass.
    targets
        Width of the widest block.
    batch_tokens
        About how many positions a forward pass takes.
    name
        Name of the model, for messages.
    progress
        Called with the number of blocks done.

    Raises
    ------
    NotFiniteError
        When a score is not finite.
    """
    nll = np.zeros((len(blocks), 2))
    nll_acgt = np.zeros((len(blocks), 2))
    count = np.zeros((len(blocks), 2), np.int64)
    before, after = scorer.margins(window, targets)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    # Rows reach a million bases: they are summed in float64 where the device has it.
    wide = torch.float32 if device.type == "mps" else torch.float64
    done = 0
    with inference_mode(model):
        for rows in read_rows(
            store, blocks, targets=targets, before=before, after=after, bases=batch_tokens
        ):
            codes = torch.from_numpy(rows.codes).to(device)
            scores = scorer.score(model, codes, rows.lead, targets)
            part = codes[:, rows.lead : rows.lead + targets]
            wanted = torch.from_numpy(rows.wanted).to(device) & is_base(part)
            soft = is_soft_masked(part)
            kinds = torch.stack((wanted & ~soft, wanted & soft), dim=-1)
            for out, values in ((nll, scores.nll), (nll_acgt, scores.nll_acgt)):
                kept = torch.where(kinds, values.to(wide)[..., None], 0.0)
                out[rows.number] = kept.sum(1).cpu().numpy()
            count[rows.number] = kinds.sum(1).cpu().numpy()
            done += len(rows.number)
            progress(done)

    def place(block: int) -> str:
        contig = store.contigs[int(blocks.contig[block])].name
        return str(Interval(contig, int(blocks.start[block]), int(blocks.end[block])))

    require_finite(np.concatenate((nll, nll_acgt), axis=1), name, "log-probabilities", place)
    return BlockScores(nll, nll_acgt, count)

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megabase.data.hashing import GOLDEN, mix64
from megabase.errors import InputError
from megabase.objectives.language import MaskedLM, _position_bits

MakeBatch = Callable[..., dict[str, Tensor]]


def test_position_bits_are_those_of_the_window_hash() -> None:
    seeds = torch.tensor([0, -5, 2**63 - 1])
    got = _position_bits(seeds, 4).numpy().view(np.uint64)
    counters = seeds.numpy().view(np.uint64)[:, None] + np.arange(
        1, 5, dtype=np.uint64
    ) * np.uint64(GOLDEN)
    assert np.array_equal(got, mix64(counters))


def test_shares_of_picked_masked_replaced_and_kept(make_batch: MakeBatch) -> None:
    batch = make_batch(*["ACGT" * 5_000] * 10)
    inputs, targets, weights = MaskedLM().prepare(batch)
    picked = weights > 0
    assert picked.float().mean().item() == pytest.approx(0.15, abs=0.003)
    masked = (inputs == 3) & picked
    assert (masked.sum() / picked.sum()).item() == pytest.approx(0.8, abs=0.01)
    # A random base is the old one in a quarter of the cases: 0.1 * 3/4 visibly replaced.
    changed = (inputs != targets) & picked & ~masked
    assert (changed.sum() / picked.sum()).item() == pytest.approx(0.075, abs=0.006)
    values, counts = inputs[changed].unique(return_counts=True)
    assert values.tolist() == [7, 8, 9, 10]
    assert counts.min() > 0.2 * counts.sum()
    assert torch.equal(inputs[~picked], targets[~picked])


def test_only_bases_are_hidden(make_batch: MakeBatch) -> None:
    inputs, targets, weights = MaskedLM(probability=1.0).prepare(make_batch("ACGTNN.." * 50))
    others = (targets == 11) | (targets == 4)
    assert torch.equal(inputs[others], targets[others])
    assert bool((weights[others] == 0).all())
    assert bool((weights[~others] == 1).all())


def test_published_masking_hides_n_too_and_draws_special_tokens(make_batch: MakeBatch) -> None:
    objective = MaskedLM(
        probability=1.0, masked=0.0, replaced=1.0, replacements="published", n_as_padding=True
    )
    inputs, targets, weights = objective.prepare(make_batch("ACGTNN" * 2_000))
    assert sorted(inputs.unique().tolist()) == list(range(12))
    n = targets == 4
    assert n.float().mean().item() == pytest.approx(1 / 3)
    assert bool((weights[n] == 0).all())
    assert (inputs[n] != 4).float().mean() > 0.9
    assert MaskedLM(replacements="published", n_as_padding=True).replacements == "published"


def test_masks_depend_on_the_sequence_and_not_on_the_batch(make_batch: MakeBatch) -> None:
    batch = make_batch("ACGT" * 50, "ACGT" * 50, "ACGT" * 50)
    whole, _, _ = MaskedLM().prepare(batch)
    parts = [
        MaskedLM().prepare({name: value[i : i + 1] for name, value in batch.items()})[0]
        for i in range(3)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(whole, MaskedLM().prepare(batch)[0])


def test_sums_of_a_uniform_model(make_batch: MakeBatch, uniform_model: nn.Module) -> None:
    objective = MaskedLM(probability=1.0, soft_mask_weight=0.5)
    output = objective(uniform_model, make_batch("ACgtN."))
    assert output.count.item() == 3
    assert output.loss_sum.item() == pytest.approx(3 * math.log(16))
    assert output.metrics["targets"].item() == 4
    assert output.metrics["acgt_nll"].item() == pytest.approx(4 * math.log(4))


def test_bad_options_are_refused() -> None:
    for options in (
        {"probability": 0.0},
        {"masked": 0.9, "replaced": 0.2},
        {"replaced": -0.1},
        {"soft_mask_weight": -1.0},
        {"replacements": "bytes"},
    ):
        with pytest.raises(InputError):
            MaskedLM(**options)  # pyright: ignore

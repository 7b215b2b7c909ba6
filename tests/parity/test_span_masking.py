"""Masking of k-mer spans, by hand-sized inputs."""

from __future__ import annotations

import pytest
import torch
from span_masking import SPAN_OFFSETS, extend_spans, mask_kmer_spans

from megabase.errors import MegabaseError


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_spans_cover_the_neighbors_and_stay_inside(k: int) -> None:
    allowed = torch.ones(2, 20, dtype=torch.bool)
    allowed[:, 0] = allowed[:, 15:] = False
    centers = torch.zeros_like(allowed)
    centers[0, 8] = centers[1, 1] = centers[1, 14] = True
    spans = extend_spans(centers, allowed, k)
    assert spans[0].nonzero().flatten().tolist() == sorted({8, *(8 + o for o in SPAN_OFFSETS[k])})
    inside = {place + o for place in (1, 14) for o in (0, *SPAN_OFFSETS[k])}
    assert set(spans[1].nonzero().flatten().tolist()) == {p for p in inside if 1 <= p <= 14}


def test_masking_is_a_pure_function_of_ids_and_seed() -> None:
    ids = torch.randint(5, 69, (4, 60), generator=torch.Generator().manual_seed(0))
    special = torch.zeros_like(ids, dtype=torch.bool)
    seeds = torch.tensor([3, 1, 4, 1])
    state = torch.get_rng_state()
    whole = mask_kmer_spans(ids, special, k=3, seed=seeds, probability=0.1)
    assert torch.equal(state, torch.get_rng_state())
    part = mask_kmer_spans(ids[2:], special[2:], k=3, seed=seeds[2:], probability=0.1)
    assert torch.equal(whole.input_ids[2:], part.input_ids)
    assert torch.equal(whole.labels[2:], part.labels)
    picked = whole.labels != -100
    assert torch.equal(whole.labels[picked], ids[picked])
    assert torch.equal(whole.input_ids[~picked], ids[~picked])
    with pytest.raises(MegabaseError, match="one seed for each of 4"):
        mask_kmer_spans(ids, special, k=3, seed=seeds[:2])
    with pytest.raises(MegabaseError, match="not k=8"):
        mask_kmer_spans(ids, special, k=8, seed=0)

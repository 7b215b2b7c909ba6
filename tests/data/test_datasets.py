from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import torch
from published import interval_item

from megabase.data.regions import Intervals, Regions
from megabase.data.windows import (
    GenomeWindows,
    IntervalWindows,
    RandomWindows,
    TiledWindows,
)
from megabase.genome.alphabet import PAD, decode
from megabase.genome.store import Genome
from megabase.objectives.language import CausalLM


def texts(codes: torch.Tensor) -> list[str]:
    return [decode(row.numpy(), soft_mask=True) for row in codes]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_batches_hold_the_letters_of_their_windows(store: Genome, genome: dict[str, str]) -> None:
    source = RandomWindows(Regions.whole(store.lengths), seed=1, reverse_complement=0.5)
    data = GenomeWindows(store, source, extra=1)
    indices = np.arange(20)
    batch = data.batch(0, indices, 64)
    windows = source.draw(0, indices, 64, 1)
    names = [contig.name for contig in store.contigs]
    want = [
        genome[names[contig]][start : start + 65]
        for contig, start in zip(windows.contig.tolist(), windows.start.tolist(), strict=True)
    ]
    assert batch["codes"].shape == (20, 65)
    assert batch["codes"].dtype == torch.uint8
    assert texts(batch["codes"]) == want
    assert batch["reverse"].tolist() == windows.reverse.tolist()
    assert len(set(batch["mask_seed"].tolist())) == 20
    assert data.epoch_size(64) is None


def test_parts_of_a_batch_are_the_batch(store: Genome) -> None:
    source = RandomWindows(Regions.whole(store.lengths), seed=1, reverse_complement=0.5)
    data = GenomeWindows(store, source)
    whole = data.batch(2, np.arange(100, 112), 32)
    parts = [data.batch(2, np.arange(100 + 4 * i, 104 + 4 * i), 32) for i in range(3)]
    assert same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})


def _read(data: GenomeWindows) -> list[list[int]]:
    return data.batch(1, np.arange(5), 16)["codes"].tolist()


def test_batches_are_the_same_in_another_process(store: Genome) -> None:
    source = RandomWindows(Regions.whole(store.lengths), seed=1, max_n_fraction=0.1, store=store)
    data = GenomeWindows(store, source)
    assert _read(pickle.loads(pickle.dumps(data))) == _read(data)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_read, (data,)) == _read(data)


def test_limit_on_n_holds_in_the_batch(store: Genome) -> None:
    regions = Regions.of([1], [0], [3000])  # a sixth of chr2 is N
    source = RandomWindows(regions, seed=1, max_n_fraction=0.05, store=store)
    codes = GenomeWindows(store, source).batch(0, np.arange(300), 99)["codes"]
    share = ((codes & 7) == 4).float().mean(1)
    assert 0 < share.max() <= 0.05
    free = GenomeWindows(store, RandomWindows(regions, seed=1))
    plain = free.batch(0, np.arange(300), 99)["codes"]
    assert ((plain & 7) == 4).float().mean(1).max() > 0.9


def test_held_out_letters_never_reach_a_batch(store: Genome) -> None:
    split = Regions.split(store, include=["chr1"], test=["chr1:2,001-3,000"])
    held_out = set(range(2000, 3000))
    for source in (RandomWindows(split["train"], seed=3), TiledWindows(split["train"])):
        windows = source.draw(0, np.arange(400), 100, 1)
        codes = GenomeWindows(store, source).batch(0, np.arange(400), 100)["codes"]
        for start, row in zip(windows.start.tolist(), codes, strict=True):
            read = {start + i for i, code in enumerate(row.tolist()) if code != PAD}
            assert read
            assert not read & held_out


def test_short_tiles_are_padded_after_their_region(store: Genome, genome: dict[str, str]) -> None:
    source = TiledWindows(Regions.of([0], [10], [130]), shuffle=False)
    batch = GenomeWindows(store, source).batch(0, np.arange(2), 100)
    first, second = texts(batch["codes"])
    assert first == genome["chr1"][10:111]
    assert second == genome["chr1"][110:130] + "." * 81


def test_left_padded_intervals_give_the_published_items(
    store: Genome, genome: dict[str, str]
) -> None:
    rows = [(0, 100, 120), (0, 0, 8), (2, 0, 40), (2, 30, 38), (0, 4_990, 5_000), (0, 10, 90)]
    contig, start, end = (np.array(column) for column in zip(*rows, strict=True))
    source = IntervalWindows(
        Intervals(contig, start, end), contig_lengths=store.lengths, shuffle=False, padding="left"
    )
    names = [contig.name for contig in store.contigs]
    for length in (12, 33, 64):
        batch = GenomeWindows(store, source).batch(0, np.arange(len(rows)), length)
        inputs, targets, _ = CausalLM(
            include_n=True, include_padding=True, special_tokens="published"
        ).prepare(batch)
        for i, (index, low, high) in enumerate(rows):
            item = interval_item(genome[names[index]], low, high, length + 1)
            assert inputs[i].tolist() == item[0].tolist()
            assert targets[i].tolist() == item[1].tolist()

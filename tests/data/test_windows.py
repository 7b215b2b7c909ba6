from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabase.data.regions import Regions
from megabase.data.windows import RandomWindows, TiledWindows, WindowSource, _WindowBatch
from megabase.errors import InputError
from megabase.genome.alphabet import N
from megabase.genome.store import Genome

REGIONS = Regions.of([0, 0, 1, 2], [0, 700, 50, 0], [400, 1000, 1050, 30])


def rows(windows: _WindowBatch) -> list[tuple[int, int, bool]]:
    return list(
        zip(
            windows.contig.tolist(),
            windows.start.tolist(),
            windows.reverse.tolist(),
            strict=True,
        )
    )


def sources() -> list[WindowSource]:
    return [
        RandomWindows(REGIONS, seed=5, reverse_complement=0.5),
        TiledWindows(REGIONS, seed=5, reverse_complement=0.5),
        TiledWindows(REGIONS, seed=5, shuffle=False, last="drop"),
    ]


@settings(max_examples=30)
@given(st.data())
def test_any_split_of_the_indices_gives_the_same_windows(data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(sources()))
    total = data.draw(st.integers(1, 60))
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=6)))
    first = data.draw(st.integers(0, 10**12))
    indices = first + np.arange(total)
    whole = rows(source.draw(3, indices, 64, 1))
    parts = [rows(source.draw(3, part, 64, 1)) for part in np.split(indices, cuts)]
    assert whole == [row for part in parts for row in part]
    order = data.draw(st.permutations(range(total)))
    assert rows(source.draw(3, indices[order], 64, 1)) == [whole[i] for i in order]


def test_seed_stream_and_index_all_matter() -> None:
    indices = np.arange(50)
    plain = rows(RandomWindows(REGIONS, seed=1).draw(0, indices, 64))
    assert plain != rows(RandomWindows(REGIONS, seed=2).draw(0, indices, 64))
    assert plain != rows(RandomWindows(REGIONS, seed=1).draw(1, indices, 64))
    assert plain != rows(RandomWindows(REGIONS, seed=1).draw(0, indices + 1, 64))


def test_windows_are_the_same_in_every_process_and_forever() -> None:
    # A change of these numbers changes the data order of every recipe: never edit them lightly.
    windows = RandomWindows(REGIONS, seed=7, reverse_complement=0.5).draw(2, np.arange(6), 100, 1)
    tiles = TiledWindows(REGIONS, seed=7).draw(2, np.arange(6), 100, 1)
    code = (
        "import numpy as np\n"
        "from megabase.data.regions import Regions\n"
        "from megabase.data.windows import RandomWindows, TiledWindows\n"
        "r = Regions.of([0, 0, 1, 2], [0, 700, 50, 0], [400, 1000, 1050, 30])\n"
        "w = RandomWindows(r, seed=7, reverse_complement=0.5).draw(2, np.arange(6), 100, 1)\n"
        "t = TiledWindows(r, seed=7).draw(2, np.arange(6), 100, 1)\n"
        "print(w.start.tolist(), w.reverse.tolist(), t.start.tolist())\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == f"{windows.start.tolist()} {windows.reverse.tolist()} {tiles.start.tolist()}"
    assert windows.start.tolist() == [108, 854, 276, 52, 233, 732]
    assert windows.reverse.tolist() == [False, True, False, False, True, True]
    assert tiles.start.tolist() == [100, 200, 0, 750, 800, 350]


def test_sources_survive_pickling() -> None:
    for source in sources():
        again = pickle.loads(pickle.dumps(source))
        assert rows(again.draw(1, np.arange(9), 32, 1)) == rows(source.draw(1, np.arange(9), 32, 1))


intervals = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(1, 200)), max_size=6
)


@settings(max_examples=60)
@given(intervals, st.integers(1, 90), st.integers(0, 1), st.integers(0, 2**32))
def test_windows_never_touch_held_out_positions(
    held_out: list[tuple[int, int, int]], length: int, extra: int, seed: int
) -> None:
    whole = Regions.whole([1000, 1000, 1000])
    held = Regions.of(
        [h[0] for h in held_out], [h[1] for h in held_out], [h[1] + h[2] for h in held_out]
    )
    allowed = whole.subtract(held)
    for source in (RandomWindows(allowed, seed=seed), TiledWindows(allowed, seed=seed)):
        windows = source.draw(0, np.arange(300), length, extra)
        stop = windows.start + windows.length
        if windows.upper is not None:
            stop = np.minimum(stop, windows.upper)
        assert not held.overlap(windows.contig, windows.start, stop).any()
        assert (stop > windows.start + extra).all()
        # Nor do they leave the contigs.
        assert (windows.start >= 0).all()
        assert (stop <= 1000).all()


def test_random_windows_are_uniform_over_admissible_starts() -> None:
    length, extra, draws = 60, 1, 200_000
    windows = RandomWindows(REGIONS, seed=11).draw(0, np.arange(draws), length, extra)
    got: dict[tuple[int, int], int] = {}
    for contig, start in zip(windows.contig.tolist(), windows.start.tolist(), strict=True):
        got[contig, start] = got.get((contig, start), 0) + 1
    admissible = [
        (int(contig), start)
        for contig, low, high in zip(REGIONS.contig, REGIONS.start, REGIONS.end, strict=True)
        for start in range(int(low), int(high) - length - extra + 1)
    ]
    assert set(got) == set(admissible)
    expected = draws / len(admissible)
    chi_square = sum((got[place] - expected) ** 2 / expected for place in admissible)
    freedom = len(admissible) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_windows_of_heavier_regions_are_drawn_more_often() -> None:
    regions = Regions.of([0, 1], [0, 50], [400, 250])
    heavy, light = Regions.of([0], [100], [200]), Regions.of([0, 1], [150, 0], [180, 100])
    source = RandomWindows(regions, seed=1, weights=[(heavy, 4.0), (light, 0.5)])
    drawn = source.draw(0, np.arange(200_000), 9, 1)
    assert regions.subtract(Regions.of(drawn.contig, drawn.start, drawn.start + 10)).total == 0
    counts = np.zeros((2, 400))
    np.add.at(counts, (drawn.contig, drawn.start), 1)
    expected = np.zeros((2, 400))
    expected[0, :391], expected[1, 50:241] = 1, 1
    middle = np.arange(400) + 5
    expected[0, (middle >= 100) & (middle < 200)] = 4
    expected[0, (middle >= 150) & (middle < 180)] = 0.5
    expected[1, (middle < 100) & (expected[1] > 0)] = 0.5
    expected *= 200_000 / expected.sum()
    assert (counts[expected == 0] == 0).all()
    chi = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    degrees = (expected > 0).sum() - 1
    assert abs(chi - degrees) < 5 * np.sqrt(2 * degrees)


def test_strand_coin_has_its_probability() -> None:
    source = RandomWindows(REGIONS, seed=3, reverse_complement=0.25)
    share = source.draw(0, np.arange(40_000), 10).reverse.mean()
    assert abs(share - 0.25) < 0.01


def test_windows_rich_in_n_are_drawn_again(tmp_path: Path) -> None:
    store = made(tmp_path, "A" * 200 + "N" * 500 + "A" * 300)
    is_n = store.view(0) == N

    def count(windows: _WindowBatch) -> np.ndarray:
        return np.array([is_n[s : s + 50].sum() for s in windows.start.tolist()], dtype=np.int64)

    regions = Regions.whole([1000])
    source = RandomWindows(regions, seed=1, max_n_fraction=0.1, store=store)
    windows = source.draw(0, np.arange(2000), 50)
    assert count(windows).max() == 5
    # Windows that need no second try are those of the plain source; the rest are redrawn alone.
    plain = RandomWindows(regions, seed=1).draw(0, np.arange(2000), 50)
    good = count(plain) <= 5
    assert np.array_equal(windows.start[good], plain.start[good])
    alone = source.draw(0, np.array([int(np.flatnonzero(~good)[0])]), 50)
    assert alone.start[0] == windows.start[np.flatnonzero(~good)[0]]


def test_a_genome_of_n_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    store = made(tmp_path, "N" * 100)
    source = RandomWindows(Regions.whole([100]), seed=1, max_n_fraction=0.5, store=store)
    with pytest.raises(InputError, match="at most 50% N"):
        source.draw(0, np.arange(4), 10)


def made(folder: Path, letters: str) -> Genome:
    (folder / "g.fa").write_text(f">c\n{letters}\n")
    return Genome.build(folder / "g.fa", folder / "g.mb")


@pytest.mark.parametrize("extra", [0, 1])
def test_tiles_read_every_position_once_per_epoch(extra: int) -> None:
    source = TiledWindows(REGIONS, seed=2)
    size = source.epoch_size(64, extra)
    assert size is not None
    for epoch in (0, 1):
        windows = source.draw(0, epoch * size + np.arange(size), 64, extra)
        assert windows.upper is not None
        seen = [
            (contig, place)
            for contig, start, upper in zip(
                windows.contig.tolist(), windows.start.tolist(), windows.upper.tolist(), strict=True
            )
            for place in range(start, min(start + 64, upper - extra))
        ]
        assert len(seen) == len(set(seen)) == REGIONS.total - extra * len(REGIONS)


def test_tiles_are_shuffled_anew_in_each_epoch() -> None:
    source = TiledWindows(REGIONS, seed=2)
    size = source.epoch_size(16) or 0
    first, second = (source.draw(0, e * size + np.arange(size), 16).start for e in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.sort(first))
    still = TiledWindows(REGIONS, shuffle=False)
    assert still.draw(0, np.arange(3), 100).start.tolist() == [0, 100, 200]


def test_dropping_the_rest_leaves_full_tiles_only() -> None:
    source = TiledWindows(REGIONS, last="drop", shuffle=False)
    assert source.epoch_size(100, 0) == 4 + 3 + 10
    assert source.epoch_size(100, 1) == 3 + 2 + 9
    windows = source.draw(0, np.arange(14), 100, 1)
    assert windows.upper is not None
    assert (windows.start + windows.length <= windows.upper).all()
    assert TiledWindows(REGIONS).epoch_size(100, 1) == 4 + 3 + 10 + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomWindows(Regions.of([], [], []), seed=0), "no positions"),
        (
            lambda: RandomWindows(REGIONS, seed=0).draw(0, np.arange(2), 1000, 1),
            "longest has 1,000",
        ),
        (lambda: TiledWindows(REGIONS, last="drop").draw(0, np.arange(2), 1001), "longest has"),
    ],
)
def test_unusable_requests_say_what_to_do(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # pyright: ignore


def test_random_windows_have_no_epoch() -> None:
    assert RandomWindows(REGIONS, seed=0).epoch_size(10) is None

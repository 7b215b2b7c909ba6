from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megabase.data.regions import Regions

Triples = list[tuple[int, int, int]]
triples = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 12)).map(
        lambda t: (t[0], t[1], t[1] + t[2])
    ),
    max_size=8,
)


def make(rows: Triples) -> Regions:
    return Regions.of([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def positions(rows: Triples) -> set[tuple[int, int]]:
    return {(contig, place) for contig, start, end in rows for place in range(start, end)}


def members(regions: Regions) -> set[tuple[int, int]]:
    return positions(
        list(
            zip(
                regions.contig.tolist(),
                regions.start.tolist(),
                regions.end.tolist(),
                strict=True,
            )
        )
    )


@given(triples)
def test_of_is_the_union_in_fewest_sorted_intervals(rows: Triples) -> None:
    regions = make(rows)
    assert members(regions) == positions(rows)
    assert regions.total == len(positions(rows))
    rows_out = list(zip(regions.contig.tolist(), regions.start.tolist(), strict=True))
    assert rows_out == sorted(rows_out)
    same = regions.contig[1:] == regions.contig[:-1]
    assert bool((regions.start[1:] > regions.end[:-1])[same].all())


@given(triples, triples)
def test_algebra_is_that_of_sets(one: Triples, two: Triples) -> None:
    a, b = make(one), make(two)
    assert members(a.union(b)) == positions(one) | positions(two)
    assert members(a.intersect(b)) == positions(one) & positions(two)
    assert members(a.subtract(b)) == positions(one) - positions(two)
    assert a.subtract(b).union(a.intersect(b)) == a


@given(triples, triples)
def test_overlap_tells_shared_positions(one: Triples, two: Triples) -> None:
    regions = make(one)
    columns = np.array(two, dtype=np.int64).reshape(-1, 3).T
    got = regions.overlap(*columns)
    want = [bool(positions([row]) & positions(one)) for row in two]
    assert got.tolist() == want


def test_overlap_ignores_coordinates_before_the_contig() -> None:
    # chr index 1, position -5 must not reach into the end of contig 0.
    regions = Regions.of([0], [0], [10])
    assert not regions.overlap(np.array([1]), np.array([-5]), np.array([3])).any()
    assert not regions.overlap(np.array([0]), np.array([-5]), np.array([-1])).any()


def test_whole_and_longest() -> None:
    regions = Regions.whole([5, 0, 7])
    assert regions.contig.tolist() == [0, 2]
    assert (regions.total, regions.longest, len(regions)) == (12, 7, 2)
    assert Regions.of([], [], []).longest == 0
    assert Regions.whole([5]) != Regions.whole([6])
    assert Regions.whole([5]) != "other"

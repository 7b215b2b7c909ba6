from __future__ import annotations

import numpy as np
import pytest
from published import cut_interval

from megabase.data.regions import Intervals, Regions
from megabase.data.windows import IntervalWindows
from megabase.errors import InputError

LENGTHS = np.array([120, 60])
ROWS = [
    (0, 30, 50), (0, 40, 50), (0, 41, 50), (0, 0, 10), (0, 2, 9), (0, 114, 120),
    (0, 10, 39), (0, 110, 150), (1, 0, 60), (1, 55, 60), (1, 20, 20),
]  # fmt: skip


def source(**options: object) -> IntervalWindows:
    contig, start, end = (np.array(column) for column in zip(*ROWS, strict=True))
    return IntervalWindows(Intervals(contig, start, end), contig_lengths=LENGTHS, **options)  # pyright: ignore


@pytest.mark.parametrize("length", [1, 7, 20, 21, 64, 200])
@pytest.mark.parametrize("padding", ["in_place", "left"])
def test_windows_hold_the_bases_of_the_published_rule(length: int, padding: str) -> None:
    windows = source(shuffle=False, padding=padding).draw(0, np.arange(len(ROWS)), length)
    assert windows.length == length
    for i, (contig, start, end) in enumerate(ROWS):
        size = int(LENGTHS[contig])
        cut = cut_interval(start, end, length, size)
        low, high = int(windows.start[i]), int(windows.start[i]) + length
        if padding == "left":
            assert windows.lower is not None
            assert windows.upper is not None
            low, high = max(low, int(windows.lower[i])), min(high, int(windows.upper[i]))
            # Whatever is missing is missing before the sequence.
            assert high == windows.start[i] + length
        low, high = max(low, 0), min(high, size)
        assert (low, high) == (cut.start, cut.end)


def test_long_intervals_keep_their_beginning_and_odd_extra_goes_right() -> None:
    windows = source(shuffle=False).draw(0, np.arange(len(ROWS)), 20, 1)
    assert windows.length == 21
    assert windows.start[0] == 30  # 20 bases lengthened by 1: on the right
    assert windows.start[1] == 35  # 10 lengthened by 11: 5 left, 6 right
    assert windows.start[6] == 10  # 29 bases: the first 21
    assert windows.start[3] == -5  # off the contig: padding in place


def test_each_epoch_shows_each_row_once_in_its_own_order() -> None:
    windows = source(seed=4).draw(0, np.arange(3 * len(ROWS)), 20)
    epochs = windows.start.reshape(3, len(ROWS))
    assert (np.sort(epochs, axis=1) == np.sort(epochs[0])).all()
    assert not np.array_equal(epochs[0], epochs[1])
    assert source().epoch_size(20, 1) == len(ROWS)


def test_shift_stays_in_its_range_and_on_the_contig() -> None:
    rows = 4000
    shifted = source(shuffle=False, shift=(-3, 3)).draw(0, np.arange(rows * len(ROWS)), 20)
    plain = source(shuffle=False).draw(0, np.arange(len(ROWS)), 20)
    moves = (shifted.start.reshape(rows, -1) - plain.start)[:, :]
    assert sorted(set(moves[:, 0].tolist())) == [-3, -2, -1, 0, 1, 2, 3]
    assert sorted(set(moves[:, 3].tolist())) == [0, 1, 2, 3]  # starts at 0
    assert sorted(set(moves[:, 5].tolist())) == [-3, -2, -1, 0]  # ends at the contig's end


def test_rows_that_touch_held_out_regions_are_counted() -> None:
    held_out = Regions.of([0], [58], [70])
    assert source().touching(held_out, 10) == 0
    assert source().touching(held_out, 20) == 0
    # Lengthened to 28 bases, [40, 50) becomes [31, 59) and [41, 50) becomes [32, 60).
    assert source().touching(held_out, 28) == 2


def test_bad_tables_and_options_are_refused() -> None:
    one = np.array([0])
    with pytest.raises(InputError, match="no row"):
        IntervalWindows(Intervals(one[:0], one[:0], one[:0]), contig_lengths=LENGTHS)
    with pytest.raises(InputError, match="interval 1"):
        IntervalWindows(Intervals(one, np.array([120]), np.array([130])), contig_lengths=LENGTHS)
    with pytest.raises(InputError, match="ends before"):
        IntervalWindows(Intervals(one, np.array([12]), np.array([3])), contig_lengths=LENGTHS)
    with pytest.raises(InputError, match="range around 0"):
        source(shift=(1, 3))

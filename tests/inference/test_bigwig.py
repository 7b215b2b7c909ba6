"""bigWig files that claim more than they hold."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from megabase.errors import ReportError
from megabase.genome.interval import Interval
from megabase.inference.writers import Run, write_bigwig
from megabase.report.genome_tracks import _bigwig_track, _check_bigwig

pytest.importorskip("pybigtools")


@pytest.fixture
def track(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).random(5_000, dtype=np.float32)
    contigs = {f"chr{i}": 9_000 for i in range(30)}
    runs = [Run("chr1", 0, values), Run("chr2", 10, values)]
    write_bigwig(tmp_path / "a.bw", contigs, runs)
    return tmp_path / "a.bw"


def read(path: Path) -> int:
    segments = _bigwig_track(str(path), "x", [Interval("chr1", 0, 4_000)]).segments
    return len(segments[0].values)


def test_a_good_file_is_read(track: Path) -> None:
    _check_bigwig(track)
    assert read(track) == 4_000


@pytest.mark.parametrize("size", [1 << 35, 1 << 62])
def test_a_claimed_block_is_not_allocated(track: Path, size: int) -> None:
    raw = bytearray(track.read_bytes())
    index = struct.unpack_from("<Q", raw, 24)[0] + 48
    while not raw[index]:  # down to the first leaf
        index = struct.unpack_from("<Q", raw, index + 4 + 16)[0]
    struct.pack_into("<Q", raw, index + 4 + 24, size)
    track.write_bytes(raw)
    with pytest.raises(ReportError, match="lies outside the file"):
        read(track)


def test_damage_is_one_error(track: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, draws = track.read_bytes(), random.Random(5)
    messages: list[str] = []
    for _ in range(300):
        raw = bytearray(whole[: draws.choice((len(whole), draws.randrange(len(whole))))])
        for _ in range(draws.choice((1, 2, 8))):
            raw[draws.randrange(draws.choice((1_000, len(whole)))) % len(raw)] = draws.randrange(
                256
            )
        track.write_bytes(raw)
        try:
            read(track)
        except ReportError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(track) in message for message in messages)
    capfd.readouterr()

"""bigWig files that claim more than they hold."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from megabase.errors import InputError
from megabase.genome.signal import Signal, _check_bigwig
from megabase.genome.store import Genome
from megabase.inference.parts import Run, write_bigwig

pytest.importorskip("pybigtools")
CONTIGS = {f"chr{i}": 9_000 for i in range(30)}


@pytest.fixture
def track(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).random(5_000, dtype=np.float32)
    sequences = "".join(f">{name}\n{'A' * size}\n" for name, size in CONTIGS.items())
    (tmp_path / "g.fa").write_text(sequences)
    Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    runs = [Run("chr1", 0, values), Run("chr2", 10, values)]
    write_bigwig(tmp_path / "a.bw", CONTIGS, runs)
    return tmp_path / "a.bw"


def read(path: Path) -> int:
    return len(Signal(path, Genome(path.parent / "g.mb")).values("chr1", 0, 4_000))


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
    with pytest.raises(InputError, match="lies outside the file"):
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
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(str(track) in message for message in messages)
    capfd.readouterr()

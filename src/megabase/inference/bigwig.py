"""Sizes in a bigWig file are compared with the file before the reader allocates what they claim."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

__all__ = ["check_bigwig"]

_MAGIC, _TREE, _INDEX = 0x888FFC26, 0x78CA8C91, 0x2468ACE0
_NODES = 1_000_000
_SHRINK = 1_100  # deflate shrinks at most 1,032 times
_KEY_BYTES = 4_096


def check_bigwig(path: Path) -> None:
    """Compare the offsets and sizes of a bigWig file with its size.

    Raises
    ------
    ValueError, struct.error, OSError
        When it is no little-endian bigWig file, or claims more than it can hold.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        size = len(raw)
        magic, _, zooms, tree, _, index, *_, buffer, _ = struct.unpack_from("<IHHQQQHHQQIQ", raw)
        if magic != _MAGIC:
            raise ValueError("not a bigWig file")
        magic, _, key, value, count = struct.unpack_from("<IIIIQ", raw, tree)
        if magic != _TREE or not 0 < key <= _KEY_BYTES or value != 8 or count * 8 > size:
            raise ValueError("its list of contigs is damaged")
        _check_tree(raw, tree + 32, key, count)
        largest = _check_index(raw, index)
        for zoom in range(zooms):
            *_, start = struct.unpack_from("<IIQQ", raw, 64 + 24 * zoom)
            largest = max(largest, _check_index(raw, start))
        if buffer > _SHRINK * largest + (1 << 20):
            raise ValueError(f"blocks of {largest:,} bytes claim {buffer:,} bytes")


def _check_tree(raw: Any, start: int, key: int, count: int) -> None:
    """Walk the contigs: a tree whose nodes lie in the file, each seen once."""
    left, found, seen = [start], 0, set[int]()
    while left:
        at = left.pop()
        leaf, _, items = struct.unpack_from("<BBH", raw, at)
        if at in seen or len(seen) > _NODES or at + 4 + items * (key + 8) > len(raw):
            raise ValueError("its list of contigs is damaged")
        seen.add(at)
        found += items if leaf else 0
        for item in range(0 if leaf else items):
            left += struct.unpack_from("<Q", raw, at + 4 + item * (key + 8) + key)
    if found != count:
        raise ValueError(f"it lists {found:,} contigs and claims {count:,}")


def _check_index(raw: Any, start: int) -> int:
    """Walk an index of blocks; give the size of the largest."""
    if struct.unpack_from("<I", raw, start)[0] != _INDEX:
        raise ValueError("its index is damaged")
    left, largest, seen = [start + 48], 0, set[int]()
    while left:
        at = left.pop()
        leaf, _, items = struct.unpack_from("<BBH", raw, at)
        if at in seen or len(seen) > _NODES:
            raise ValueError("its index is damaged")
        seen.add(at)
        for item in range(items):
            if not leaf:
                left += struct.unpack_from("<Q", raw, at + 4 + item * 24 + 16)
                continue
            place, length = struct.unpack_from("<QQ", raw, at + 4 + item * 32 + 16)
            if place + length > len(raw):
                raise ValueError(f"a block of {length:,} bytes lies outside the file")
            largest = max(largest, length)
    return largest

"""The look-up table of scores of substitutions: bgzip text with a tabix index.

``##megabase=`` and the provenance, lines of ``##`` about the columns, ``#Chrom Pos Ref Alt score
percentile`` (tabs between, 1-based), and three rows for each position in the order of the genome. A
bgzip block begins with a row and holds one contig, so a row is found without reading others.
"""

from __future__ import annotations

import gzip
import json
import math
import mmap
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASES
from megabase.genome.files import BGZF_END
from megabase.genome.interval import one_based
from megabase.inference.parts import Provenance
from megabase.untrusted import parsing

COLUMNS = ("#Chrom", "Pos", "Ref", "Alt", "score", "percentile")
"""As in the tables of CADD, whose readers take these too."""
_BLOCK = 1 << 14
"""Bytes of text of a block: as small as level 1 compresses well, since a look-up reads one."""
_DECIMALS = 5
"""Of a score: two passes over the same bases differ by less than the last of them."""
TBI_LIMIT = 1 << 29
"""Longest contig of a tabix index, by its format; csi takes longer ones."""
_PERCENTILES = [f"{tenths / 10:.1f}" for tenths in range(1_001)]
"""Texts of the percentiles, of which there are few."""


_HEAD = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
"""Beginning of a bgzip block: flags, no time, an extra field of 6 bytes with the size of it."""
_STEPS = 16
"""Blocks that a look-up passes one by one, before it halves the rest of the file."""


def score_rows(
    contig: str, at: NDArray[np.int64], ref: NDArray[np.uint8], alt: NDArray[np.int64],
    scores: NDArray[np.float32], quantiles: NDArray[np.float32],
) -> bytes:  # fmt: skip
    """Give the rows of substitutions (n,) at 0-based positions `at`, as text."""
    letters = pl.Series(list(BASES))
    percentiles: pl.Series = pl.Series(["."]).new_from_index(0, len(at))
    if len(quantiles):
        below = np.maximum(np.searchsorted(quantiles, scores) - 1, 0)
        percentiles = pl.Series(_PERCENTILES).gather(below)
    columns = (
        pl.Series([contig]).new_from_index(0, len(at)), pl.Series(one_based(at)),
        letters.gather(ref), letters.gather(alt), pl.Series(scores), percentiles,
    )  # fmt: skip
    frame = pl.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return frame.write_csv(
        separator="\t", include_header=False, float_precision=_DECIMALS, quote_style="never"
    ).encode()


def bgzip(text: bytes) -> bytes:
    """Compress lines into bgzip blocks (SAM specification, section 4.1), each of whole lines."""
    packed, at = [], 0
    while at < len(text):
        end = text.rfind(b"\n", at, at + _BLOCK) + 1 or len(text)
        part, at = text[at:end], end
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = deflate.compress(part) + deflate.flush()
        packed += [_HEAD, struct.pack("<H", len(body) + 25), body]
        packed.append(struct.pack("<2I", zlib.crc32(part), len(part)))
    return b"".join(packed)


def merge_table(
    about: Sequence[str], parts: Sequence[Path], target: Path, provenance: Provenance
) -> None:
    """Write the header and parts that are bgzip blocks."""
    head = [f"##megabase={provenance.to_json()}", *(f"##{line}" for line in about)]
    text = "".join(f"{line}\n" for line in (*head, "\t".join(COLUMNS)))
    with target.open("wb") as file:
        file.write(bgzip(text.encode()))
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
        file.write(BGZF_END)


def index_table(path: Path, longest: int) -> Path:
    """Write the index of a table; `longest` is the length of the longest contig."""
    import pysam

    kind = "csi" if longest > TBI_LIMIT else "tbi"
    for old in (".tbi", ".csi"):
        path.with_name(path.name + old).unlink(missing_ok=True)
    pysam.tabix_index(
        str(path), force=True, seq_col=0, start_col=1, end_col=1, meta_char="#",
        csi=kind == "csi", keep_original=True,
    )  # fmt: skip
    return path.with_name(f"{path.name}.{kind}")


class ScoreTable:
    """A table, opened for look-ups; `order` numbers the contigs of its genome.

    Blocks begin with a row, so a few letters of each tell where a row is.
    """

    def __init__(self, path: Path, order: Mapping[str, int]) -> None:
        self.path, self.order = path, {name.encode(): n for name, n in order.items()}
        with parsing(path, InputError, "expected a table of megabase variants --all"):
            with gzip.open(path) as text:
                first = text.readline()
            if not first.startswith(b"##megabase="):
                raise ValueError("no line ##megabase")
            self.provenance = Provenance(**json.loads(first[11:]))
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._map[-len(BGZF_END) :] != BGZF_END:
                raise ValueError("the block that ends a bgzip file is missing")
        self._end = len(self._map) - len(BGZF_END)
        self._text, self._first = lru_cache(4)(self._read), lru_cache(64)(self._peek)

    def look_up(
        self, contig: str, positions: Sequence[int]
    ) -> dict[int, dict[str, tuple[float, float]]]:
        """Find score and percentile (NaN without) by 0-based position and alternative base.

        Ascending positions are found fast.
        """
        found: dict[int, dict[str, tuple[float, float]]] = {}
        at, rank, room = 0, self.order[contig.encode()], 3 * (len(contig) + 48)
        for position in positions:
            key = rank, one_based(position)
            at = self._before(at, key)
            blocks = (block for block in (at, self._next(at)) if self._first(block) <= key)
            text = b"".join(self._text(b) for b in blocks if self._first(b)[0] == rank)
            start = text.find(b"\t%d\t" % key[1])
            if start < 0:
                continue
            rows: dict[str, tuple[float, float]] = {}
            for line in text[start : start + room].split(b"\n", 3)[:3]:
                fields = line.split(b"\t")[-5:]
                if int(fields[0]) == key[1]:
                    percentile = math.nan if fields[4] == b"." else float(fields[4])
                    rows[fields[2].decode()] = float(fields[3]), percentile
            found[position] = rows
        return found

    def _before(self, at: int, key: tuple[int, int]) -> int:
        """Find the last block whose first row is before `key`, from the block `at` on if it is."""
        at = at if self._first(at) < key else 0
        for _ in range(_STEPS):
            if self._first(behind := self._next(at)) >= key:
                return at
            at = behind
        low, high = at + 1, self._end
        while low < high:
            middle = (low + high) // 2
            block = self._map.find(_HEAD, middle, self._end)
            if block < 0 or self._first(block) >= key:
                high = middle
            else:
                at, low = block, block + 1
        return at

    def _next(self, at: int) -> int:
        """Give where the block behind one begins; the end has none."""
        if at >= self._end:
            return at
        return at + 1 + int.from_bytes(self._map[at + 16 : at + 18], "little")

    def _peek(self, at: int) -> tuple[int, int]:
        """Give contig and position (1-based) of the first row; the header is before all."""
        if at >= self._end:
            return len(self.order), 0
        text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._map[at + 18 : at + 1024], 512)
        if text.startswith(b"#"):
            return -1, 0
        with parsing(self.path, InputError, "expected bgzip blocks as megabase wrote them"):
            contig, position = text.split(b"\t", 2)[:2]
            return self.order[contig], int(position)

    def _read(self, at: int) -> bytes:
        """Decompress a block."""
        return zlib.decompress(self._map[at + 18 : self._next(at) - 8], -zlib.MAX_WBITS)

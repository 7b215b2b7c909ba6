"""The look-up table of scores of substitutions: bgzip text with a tabix index.

``##megabase=`` and the provenance, lines of ``##`` about the columns, ``#Chrom Pos Ref Alt score
percentile`` (tabs between, 1-based), and three rows for each position in the order of the genome. A
bgzip block begins with a row and holds one contig, so a row is found without reading others.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.genome.alphabet import BASES
from megabase.genome.files import BGZF_END
from megabase.genome.interval import one_based
from megabase.inference.parts import Provenance

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
        # Flags, no time, extra field of 6 bytes: "BC", 2 bytes, size of the block - 1.
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
        packed += [head, struct.pack("<H", len(body) + 25), body]
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

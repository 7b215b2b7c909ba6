"""Numbers along a genome: bigWig and bedGraph files, read by place."""

import contextlib
import math
import mmap
import struct
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError, MissingDependencyError
from megabase.genome.files import numbered_lines
from megabase.genome.left_out import LeftOut
from megabase.genome.store import Genome
from megabase.untrusted import parsing

BIGWIG = (".bw", ".bigwig")  # endings of bigWig files
BEDGRAPH = (".bedgraph", ".bdg", ".bg")  # endings of bedGraph files; ``.gz`` or ``.bgz`` may follow


bigwigs = partial(MissingDependencyError.load, "pybigtools", "tracks")
"""Give the package for bigWig files, called with what it is needed for (``writing bigWig``)."""


class Signal:
    """The numbers of a bigWig or bedGraph file along a genome.

    What lies on no contig of the genome is left out and counted. An InputError when the file is
    damaged or of another genome build, or for a row of a bedGraph that is not four columns with a
    finite number, or gives a base a second one.
    """

    def __init__(self, path: str | Path, store: Genome) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no file {path}")
        name = self.path.name.lower()
        self._rows: dict[str, tuple[NDArray[Any], ...]] = {}
        self._names: dict[str, str] = {}  # contigs of the genome, and how a bigWig calls them
        if name.endswith(BIGWIG):
            self._open(store)
        elif name.removesuffix(".gz").removesuffix(".bgz").endswith(BEDGRAPH):
            self._read(store)
        else:
            known = ", ".join((*BIGWIG, *BEDGRAPH))
            raise InputError(f"{path} is not a track; expected a name ending in {known}")

    @property
    def contigs(self) -> set[str]:
        """Contigs of the genome that the file knows."""
        return {*self._rows, *self._names}

    def values(self, contig: str, start: int, end: int) -> NDArray[np.float32]:
        """Give the number at each base, 0-based half-open: float32 (end - start,), NaN for none."""
        if contig in self._rows:
            return self._of_rows(contig, start, end)
        if contig not in self._names:
            return np.full(end - start, np.nan, dtype=np.float32)
        place = self._names[contig], start, end
        with parsing(self.path, InputError, "it is damaged or not a bigWig file"):
            found = np.asarray(self._file.values(*place, fillna=None), dtype=np.float32)
            count = {"bins": 1, "summary": "bases_covered", "exact": True, "fillna": 0}
            bases = self._file.values(*place, **count)
        # A base whose number is NaN looks like one without a number, but counts as covered.
        if np.isinf(found).any() or round(float(bases[0])) != np.count_nonzero(~np.isnan(found)):
            raise InputError(
                f"{self.path}: {contig}:{start + 1:,}-{end:,} holds a number that is not finite; "
                "leave bases without a value out"
            )
        return found

    def _open(self, store: Genome) -> None:
        package = bigwigs("reading bigWig")
        with parsing(self.path, InputError, "it is damaged or not a bigWig file"):
            _check_bigwig(self.path)
            self._file: Any = package.open(str(self.path))
            sizes = dict(self._file.chroms())
        left_out = LeftOut(self.path, "contig")
        for number, (name, size) in enumerate(sizes.items(), start=1):
            index = store.find_contig(name)
            if index is None:
                left_out.add("UNKNOWN_CONTIG", number, lambda n=name: f"no contig {n!r}")
                continue
            contig = store.contigs[index]
            if size != contig.length:
                raise InputError(
                    f"{self.path}: contig {name!r} has {size:,} bases, and {contig.length:,} in "
                    f"genome {store.name!r}; is it made for this genome build?"
                )
            self._names[contig.name] = name
        left_out.report(len(self._names), "contigs")

    def _read(self, store: Genome) -> None:
        columns: dict[str, tuple[array[int], array[int], array[float], array[int]]] = {}
        left_out, used = LeftOut(self.path), 0
        for line, name, start, end, value in _bedgraph_rows(self.path):
            index = store.find_contig(name)
            if index is None:
                left_out.add("UNKNOWN_CONTIG", line, lambda n=name: f"no contig {n!r}")
            elif end > store.lengths[index]:
                left_out.add("OUTSIDE_CONTIG", line, lambda e=end: f"the row ends at {e:,}")
            else:
                new = array("q"), array("q"), array("f"), array("q")
                kept = columns.setdefault(store.contigs[index].name, new)
                for column, cell in zip(kept, (start, end, value, line), strict=True):
                    column.append(cell)  # pyright: ignore[reportArgumentType]
                used += 1
        left_out.report(used)
        for name, kept in columns.items():
            starts, ends, values, lines = map(np.array, kept)
            order = np.argsort(starts, kind="stable")
            twice = np.flatnonzero(starts[order][1:] < ends[order][:-1])
            if len(twice):
                line = max(lines[order[twice[0]]], lines[order[twice[0] + 1]])
                where = f"{self.path}, line {line:,}"
                raise InputError(f"{where}: a base of this row has a value already")
            self._rows[name] = starts[order], ends[order], values[order]

    def _of_rows(self, contig: str, start: int, end: int) -> NDArray[np.float32]:
        starts, ends, values = self._rows[contig]
        rows = slice(np.searchsorted(ends, start, "right"), np.searchsorted(starts, end, "left"))
        first = np.maximum(starts[rows] - start, 0)
        counts = np.minimum(ends[rows], end) - start - first
        before = np.cumsum(counts) - counts
        found = np.full(end - start, np.nan, dtype=np.float32)
        places = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
        found[places] = np.repeat(values[rows], counts)
        return found


def _bedgraph_rows(path: Path) -> Iterator[tuple[int, str, int, int, float]]:
    for number, line in numbered_lines(path):
        cells = line.split()
        if not cells or cells[0].startswith("#") or cells[0] in ("track", "browser"):
            continue
        where = f"{path}, line {number:,}"
        if len(cells) != 4:
            columns = f"four columns (contig, start, end, value), found {len(cells)}"
            raise InputError(f"{where}: a bedGraph row has {columns}: {line[:60]!r}")
        try:
            start, end = int(cells[1]), int(cells[2])
        except ValueError:
            raise InputError(f"{where}: start and end are whole numbers: {line[:60]!r}") from None
        value = math.nan
        with contextlib.suppress(ValueError):
            value = float(cells[3])
        if not abs(value) <= _LARGEST:
            raise InputError(
                f"{where}: the value must be a finite number, found {cells[3]!r}; leave bases "
                "without a value out"
            )
        if not 0 <= start < end:
            raise InputError(f"{where}: expected 0 <= start < end, found {start:,} and {end:,}")
        yield number, cells[0], start, end, value


_LARGEST = float(np.finfo(np.float32).max)  # numbers are float32, as in bigWig
_MAGIC, _TREE, _INDEX = 0x888FFC26, 0x78CA8C91, 0x2468ACE0  # of a bigWig, its contigs, its blocks
_NODES = 1_000_000  # of a tree: the index of a human genome, one entry a base pair, has fewer
_SHRINK = 1_100  # deflate shrinks at most 1,032 times
_KEY_BYTES = 4_096  # of a contig name: far more than any has


def _check_bigwig(path: Path) -> None:
    """Check offsets and sizes of a bigWig against its file size, before a reader allocates them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        magic, _, zooms, tree, _, index, *_, buffer, _ = struct.unpack_from("<IHHQQQHHQQIQ", raw)
        if magic != _MAGIC:
            raise ValueError("not a bigWig file")
        magic, _, key, value, count = struct.unpack_from("<IIIIQ", raw, tree)
        if magic != _TREE or not 0 < key <= _KEY_BYTES or value != 8 or count * 8 > len(raw):
            raise ValueError("its list of contigs is damaged")
        leaves = _leaves(raw, tree + 32, (key + 8, key + 8), key, "list of contigs")
        found = sum(items for _, items in leaves)
        if found != count:
            raise ValueError(f"it lists {found:,} contigs and claims {count:,}")
        roots = [index, *(struct.unpack_from("<Q", raw, 80 + 24 * z)[0] for z in range(zooms))]
        largest = max(_largest_block(raw, root) for root in roots)
        if buffer > _SHRINK * largest + (1 << 20):
            raise ValueError(f"blocks of {largest:,} bytes claim {buffer:,} bytes")


def _leaves(
    raw: Any, root: int, sizes: tuple[int, int], child: int, what: str
) -> Iterator[tuple[int, int]]:
    """Walk a tree whose nodes lie in the file, each seen once; give place and items of each leaf.

    `sizes` are the bytes of an item of a leaf and of another node, in which the place of the node
    below stands `child` bytes in.
    """
    left, seen = [root], set[int]()
    while left:
        at = left.pop()
        leaf, _, items = struct.unpack_from("<BBH", raw, at)
        size = sizes[0] if leaf else sizes[1]
        if at in seen or len(seen) > _NODES or at + 4 + items * size > len(raw):
            raise ValueError(f"its {what} is damaged")
        seen.add(at)
        if leaf:
            yield at + 4, items
        for item in range(0 if leaf else items):
            left += struct.unpack_from("<Q", raw, at + 4 + item * size + child)


def _largest_block(raw: Any, root: int) -> int:
    """Walk an index of blocks, which lie in the file; give the size of the largest."""
    if struct.unpack_from("<I", raw, root)[0] != _INDEX:
        raise ValueError("its index is damaged")
    largest = 0
    for place, items in _leaves(raw, root + 48, (32, 24), 16, "index"):
        for item in range(items):
            start, length = struct.unpack_from("<QQ", raw, place + item * 32 + 16)
            if start + length > len(raw):
                raise ValueError(f"a block of {length:,} bytes lies outside the file")
            largest = max(largest, length)
    return largest

"""Sequences as functions take them, cut into windows and run through a model in batches."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from megabase.data.regions import Intervals
from megabase.data.sources import Sequence as Named
from megabase.errors import InputError
from megabase.genome.alphabet import PAD, encode, warn_ambiguous
from megabase.genome.store import Genome
from megabase.models.loading import Loaded

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Codes = NDArray[np.uint8]
_Given = str | bytes | _Codes
Several = Mapping[str, str] | Iterable[_Given | Named]
"""Sequences in memory, by name or in order."""
_Array = NDArray[Any]

Stitch = Literal["center", "before", "average"]
"""``center``: a base is taken from the window in which it is farthest from both ends.
``before``: from the window that has most DNA in front of it, for models that look back only.
``average``: the mean of all windows that cover it."""

_WIDEST_PADDING = 0.75
"""Padding a row by up to a quarter costs less than another batch; more than that does not."""


def require_several(sequences: Iterable[_Item]) -> Iterable[_Item]:
    """Refuse a single text, whose letters would be taken for sequences, and what has no items."""
    if isinstance(sequences, (str, bytes, Path)):
        raise InputError(
            f"expected a list of sequences, found one text, {str(sequences)[:40]!r}; a single one "
            'is written ["ACGT"], and files are read by the functions that end in _file, or on the '
            "command line"
        )
    if not isinstance(sequences, Iterable):
        raise InputError(f"expected a list of sequences, found {type(sequences).__name__}")
    return sequences


def named_sequences(sequences: Several) -> list[Named]:
    """Give sequences their names, those of a mapping or numbers from 0; one that has a name as is.

    Errors and warnings are those of :func:`as_codes`, and of sequences without A, C, G, T.
    """
    by_name = isinstance(sequences, Mapping)
    given = sequences.items() if by_name else enumerate(require_several(sequences))
    ambiguous: Counter[str] = Counter()
    found = [
        one if isinstance(one, Named) else Named(str(name), as_codes(one, ambiguous=ambiguous))
        for name, one in given
    ]
    warn_ambiguous(ambiguous, "the sequences")
    return list(Named.counted(found, "the sequences"))


def as_codes(
    sequence: _Given, what: str = "the sequence", ambiguous: Counter[str] | None = None
) -> NDArray[np.uint8]:
    """Give the base codes of letters; codes are taken as they are.

    Letters that are read as N are counted in `ambiguous`, or else warned about under the name
    `what`.
    """
    if isinstance(sequence, (str, bytes)):
        counts = Counter[str]() if ambiguous is None else ambiguous
        codes = encode(sequence, counts)
        if ambiguous is None:
            warn_ambiguous(counts, what)
        return codes
    if isinstance(sequence, np.ndarray) and sequence.dtype == np.uint8:
        return sequence
    kind = type(sequence).__name__
    found = f"an array of {sequence.dtype}" if isinstance(sequence, np.ndarray) else kind
    raise InputError(f"a sequence is DNA letters, or base codes (uint8); found {found}")


def require_readable(model: Loaded, codes: _Codes, what: str, advice: str) -> None:
    """Refuse a sequence without a base, or longer than the model reads (:class:`InputError`)."""
    if not len(codes):
        raise InputError(f"{what} has no base; leave it out")
    if not model.encoder.fits(codes, model.longest):
        raise InputError(
            f"{what} has {len(codes):,} bases, more than {model.name} reads ({model.longest:,} "
            f"positions); {advice}"
        )


def record_name(names: Sequence[str] | None, number: int) -> str:
    """Name a sequence for messages, by its number from 1 where it has no name."""
    return f"sequence {names[number] if names else number + 1}"


def stitched(
    spans: "Sequence[Span]", part: tuple[int, int], batch_tokens: int,
    answer: "Callable[[Sequence[Span]], NDArray[np.float32]]",
) -> NDArray[np.float32]:  # fmt: skip
    """Put what windows say together, float32 (bases, width); where several count, the mean.

    `spans` of one length answer for all bases of the part, (first, after the last); `answer` gives
    float32 (windows, window, width) for some of them.
    """
    low, high = part
    rows = max(1, batch_tokens // max(spans[0].end - spans[0].start, 1))
    total = count = np.zeros((0, 1), dtype=np.float32)
    for begin in range(0, len(spans), rows):
        group = spans[begin : begin + rows]
        found = answer(group)
        if not len(total):
            total = np.zeros((high - low, found.shape[-1]), dtype=np.float32)
            count = np.zeros((high - low, 1), dtype=np.float32)
        for span, values in zip(group, found, strict=True):
            first, last = max(span.first, low), min(span.last, high)
            if first < last:
                total[first - low : last - low] += values[first - span.start : last - span.start]
                count[first - low : last - low] += 1
    return total / count


def run_batched(
    items: Sequence[_Codes], function: Callable[[_Codes, NDArray[np.int64]], Sequence[_Result]], *,
    batch_tokens: int = 1 << 16, pad: bool = False,
) -> list[_Result]:  # fmt: skip
    """Run a function over batches of sequences of base codes; results are in the order of `items`.

    It is called with codes (rows, length) and the numbers of these rows in `items`. Longer
    sequences go first, so that running out of memory happens at once or never; one above
    `batch_tokens` is a batch of its own. `pad` lets rows of different lengths share a batch, filled
    up on the right: for causal models only, where a padded position never changes an earlier one.
    """
    lengths = np.array([len(item) for item in items], dtype=np.int64)
    results: list[_Result | None] = [None] * len(items)
    order = np.argsort(-lengths, kind="stable")
    low = 0
    while low < len(order):
        width = int(lengths[order[low]])
        most = max(1, batch_tokens // max(width, 1))
        high = low + 1
        while high < len(order) and high - low < most:
            length = int(lengths[order[high]])
            if length != width and not (pad and length >= _WIDEST_PADDING * width):
                break
            high += 1
        rows = order[low:high]
        codes = np.full((len(rows), width), PAD, dtype=np.uint8)
        for row, number in zip(codes, rows.tolist(), strict=True):
            row[: lengths[number]] = items[number]
        for number, result in zip(rows.tolist(), function(codes, rows), strict=True):
            results[number] = result
        low = high
    return [result for result in results if result is not None]


class Span(NamedTuple):
    """A window and the part of it that counts; all 0-based half-open, in the whole sequence."""

    start: int
    end: int
    first: int
    last: int

    def part(self, values: _Array) -> _Array:
        """Give the part that counts of values (end - start, ...) of the window."""
        return values[self.first - self.start : self.last - self.start]


def plan_windows(
    length: int, window: int, overlap: int, rule: Stitch = "center",
    part: tuple[int, int] | None = None,
) -> list[Span]:  # fmt: skip
    """Lay windows over a sequence, one every ``window - overlap`` bases.

    The last one is moved back to end with the sequence, so that all have the same length. With
    ``center`` neighbors meet in the middle of what they share; with ``before`` the earlier window
    keeps all of it; the parts of ``average`` are whole windows. `part` gives only the windows with
    values for these bases, (first, after the last), out of the plan of the whole sequence.

    Examples
    --------
    >>> plan_windows(10, 6, 2)
    [Span(start=0, end=6, first=0, last=5), Span(start=4, end=10, first=5, last=10)]
    """
    if rule not in get_args(Stitch):
        raise InputError(f"windows are stitched by {', '.join(get_args(Stitch))}; found {rule!r}")
    if window < 1 or not 0 <= overlap < window:
        expected = f"0 or more and smaller than the window of {window:,} bases"
        raise InputError(f"the overlap must be {expected}; found {overlap:,}")
    low, high = (0, length) if part is None else part
    if length <= window:
        return [Span(0, length, 0, length)]
    step = window - overlap
    count = -(-(length - window) // step) + 1

    def start_of(number: int) -> int:
        return min(number * step, length - window)

    # A genome has millions of windows: only those near the part are looked at.
    near = range(max(0, (low - window) // step - 1), min(count, high // step + 2))
    spans: list[Span] = []
    for number in near:
        start, end = start_of(number), start_of(number) + window
        first, last = start, end
        if rule == "before":
            first = start_of(number - 1) + window if number else 0
        elif rule == "center":
            first = (start + start_of(number - 1) + window + 1) // 2 if number else 0
            last = (start_of(number + 1) + end + 1) // 2 if number + 1 < count else length
        if first < high and last > low:
            spans.append(Span(start, end, first, last))
    return spans


class _Rows(NamedTuple):
    number: NDArray[np.int64]  # number of each block, (n,)
    codes: NDArray[np.uint8]  # base codes, (n, length); padding outside the contig
    lead: int  # position of the first target in every row
    wanted: NDArray[np.bool_]  # which columns from ``lead`` on belong to the block, (n, targets)


def read_rows(
    store: Genome, blocks: Intervals, *, targets: int, before: int, after: int = 0,
    bases: int = 1 << 16,
) -> Iterator[_Rows]:  # fmt: skip
    """Read blocks with DNA before and after the widest, `targets`, about `bases` at a time.

    There are fewer bases in front where the contig begins sooner, and padding behind its end.
    """
    lead = np.minimum(blocks.start, before)
    for width in np.unique(lead).tolist():
        chosen = np.flatnonzero(lead == width)
        length = width + targets + after
        step = max(1, bases // length)
        for low in range(0, chosen.size, step):
            index = chosen[low : low + step]
            start = blocks.start[index]
            codes = store.fetch_many(blocks.contig[index], start - width, length)
            size = (blocks.end[index] - start)[:, None]
            yield _Rows(index, codes, width, np.arange(targets) < size)

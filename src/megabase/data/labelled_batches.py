"""Batches of labelled sequences: a pure function of (seed, index), padded to their longest row.

Sequences are turned into tokens once, by a callable that the caller brings, so any tokenizer works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.data.base_labels import IGNORED
from megabase.data.hashing import derive_key, draw_bits, unit_float
from megabase.data.labelled import LabelledSequences
from megabase.errors import InputError, TruncationWarning, warn
from megabase.genome import alphabet

__all__ = [
    "BaseLabels",
    "Encode",
    "LabelledBatches",
    "TokenRows",
    "tokenise",
]

Encode = Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
"""From the base codes of a sequence to its token ids."""

_ORDER, _STRAND, _BLOCKS, _CROP = 1, 2, 3, 4
_POOL = 50
"""Blocks that are sorted by length together: more give less padding and less mixing."""


class TokenRows(NamedTuple):
    """Token ids of all sequences; row i is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)


class BaseLabels(NamedTuple):
    """Classes of all bases; those of row i are ``values[offsets[i]:offsets[i + 1]]``."""

    values: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]


def tokenise(
    sequences: LabelledSequences,
    encode: Encode,
    *,
    reverse: bool = False,
    max_bases: int | None = None,
    max_tokens: int | None = None,
    truncate: bool = False,
) -> TokenRows:
    """Turn every sequence into tokens.

    Parameters
    ----------
    sequences
        What to encode.
    encode
        From base codes (length,) to token ids.
    reverse
        Encode the reverse complement instead.
    max_bases, max_tokens
        Longest sequence, in bases and in tokens.
    truncate
        Keep the beginning of longer ones, with a :class:`TruncationWarning` that counts them, in
        place of an error. Bases are cut before the reverse complement is taken, so both strands
        are of the same stretch.

    Returns
    -------
    TokenRows
        In the smallest integer type that holds every id.

    Raises
    ------
    InputError
        Naming file and row, for a sequence that is too long, or one that gives no token.
    """
    longest = int(sequences.lengths.max(initial=0))
    if max_bases is not None and longest > max_bases and not truncate:
        _refuse(sequences, sequences.lengths, max_bases, "bases", "max_length")
    rows: list[npt.NDArray[Any]] = []
    cut = 0
    for index in range(len(sequences)):
        codes = sequences.sequence(index)[:max_bases]
        tokens = encode(alphabet.reverse_complement(codes) if reverse else codes)
        if not len(tokens):
            raise InputError(f"{sequences.where(index)}: the tokenizer gives no token")
        too_long = max_tokens is not None and len(tokens) > max_tokens
        cut += too_long or len(codes) < sequences.lengths[index]
        kept = tokens[:max_tokens] if too_long and truncate else tokens
        rows.append(kept.astype(np.min_scalar_type(int(kept.max()))))
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if max_tokens is not None and int(lengths.max(initial=0)) > max_tokens:
        _refuse(sequences, lengths, max_tokens, "tokens", "the longest input of the model")
    if cut and not reverse:
        limit = f"{max_bases:,} bases" if max_bases is not None else f"{max_tokens:,} tokens"
        warn(
            f"{cut:,} of {len(rows):,} sequences of {sequences.text.source} are cut to {limit}",
            TruncationWarning,
        )
    ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.uint8)
    return TokenRows(ids, np.concatenate([[0], np.cumsum(lengths)]))


def _refuse(
    sequences: LabelledSequences,
    lengths: npt.NDArray[np.int64],
    limit: int,
    unit: str,
    what: str,
) -> None:
    over = np.flatnonzero(lengths > limit)
    first, longest = int(over[0]), int(lengths.max())
    raise InputError(
        f"{sequences.where(first)}: the sequence has {int(lengths[first]):,} {unit}, above "
        f"{what}, {limit:,} ({len(over):,} rows are longer, the longest has {longest:,}); "
        "take a model with a longer input, or cut them with table.truncate"
    )


class LabelledBatches:
    """Numbered labelled sequences for the training loop.

    Parameters
    ----------
    rows
        Tokens of the forward strand.
    labels
        int64 (n,) or float32 (n, K); or the classes of all bases, where every token is one base.
    pad_id
        Token that fills shorter rows.
    seed
        Decides the order of every epoch and the strands.
    shuffle
        False: index i is row i.
    block
        Sequences of a step. Rows of a block have similar lengths when lengths differ.
    reverse
        Tokens of the reverse complement, for the two options below.
    reverse_probability
        Chance that a row is read as its reverse complement.
    both_strands
        Give each row twice: all rows forward, then all rows as their reverse complement, while
        ``labels`` holds each once.
    padding
        Side that is padded.
    pad_to_length
        Pad to the length that is asked for, as published, instead of the longest row.
    crop
        Share of every row that is read, in (0, 1]: a stretch at a place drawn anew in every epoch.

    Notes
    -----
    An epoch is one permutation of all rows; index i lies in epoch i // n. Which row an index gives
    depends on neither the micro-batch nor the number of processes.
    """

    def __init__(
        self,
        rows: TokenRows,
        labels: npt.NDArray[Any] | BaseLabels,
        *,
        pad_id: int,
        seed: int = 0,
        shuffle: bool = True,
        block: int = 1,
        reverse: TokenRows | None = None,
        reverse_probability: float = 0.0,
        both_strands: bool = False,
        padding: Literal["right", "left"] = "right",
        pad_to_length: bool = False,
        crop: float = 1.0,
    ) -> None:
        if not 0 < crop <= 1:
            raise InputError(f"the share of a row that is read is {crop}; expected (0, 1]")
        if reverse is None and (reverse_probability or both_strands):
            raise InputError("reverse complements are asked for without their tokens")
        self._rows, self._reverse, self._labels = rows, reverse, labels
        self._pad, self._seed, self._shuffle, self._block = pad_id, seed, shuffle, max(1, block)
        self._probability, self._both = reverse_probability, both_strands
        self._left, self._to_length = padding == "left", pad_to_length
        self._crop = crop
        self._order: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._rows.offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self._rows.lengths.max(initial=0))

    def epoch_size(self, length: int) -> int:
        """Give the number of rows, whatever the length."""
        return len(self)

    def rows_of(self, stream: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the row of each index of a stage."""
        indices = np.asarray(indices, dtype=np.int64)
        if not self._shuffle:
            return indices
        epochs, places = np.divmod(indices, len(self))
        rows = np.empty_like(indices)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = self._epoch_order(stream, int(epoch))[places[inside]]
        return rows

    def token_count(self, stream: int, first: int, last: int, length: int) -> int:
        """Count the real tokens (no padding) of the indices from `first` to before `last`."""
        total, lengths = 0, np.minimum(self._read_of(self._rows.lengths), length)
        whole, size = int(lengths.sum()), len(self)
        for epoch in range(first // size, -(-last // size)):
            low, high = max(first, epoch * size), min(last, (epoch + 1) * size)
            if high - low == size:
                total += whole
            else:
                total += int(lengths[self.rows_of(stream, np.arange(low, high))].sum())
        return total

    def batch(self, stream: int, indices: npt.NDArray[np.int64], length: int) -> dict[str, Tensor]:
        """Give sequences by number.

        Parameters
        ----------
        stream
            Number of the stage.
        indices
            int64 (n,) running numbers in the stage.
        length
            Most tokens of a row; longer rows lose their end (length warm-up).

        Returns
        -------
        dict
            ``input_ids`` int64 (n, width), or (2 n, width) with both strands; ``labels`` (n,) or
            (n, K), or for bases int64 (n, width) in the direction of the row, -100 at padding;
            ``attention_mask`` int64 like the ids, only when a row is padded.
        """
        rows = self.rows_of(stream, indices)
        reverse = np.zeros(len(rows), dtype=bool)
        if self._probability:
            key = derive_key(self._seed, stream, _STRAND)
            reverse = unit_float(draw_bits(key, indices)) < self._probability
        if self._both:
            rows, reverse = np.tile(rows, 2), np.repeat([False, True], len(rows))
        sources = [self._rows if not turned else self._reverse for turned in reverse]
        starts = self._starts(stream, indices, rows)
        ids = [
            self._stretch(source.ids[source.offsets[row] : source.offsets[row + 1]], start)[:length]
            for source, row, start in zip(sources, rows, starts, strict=True)
            if source is not None
        ]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        width = length if self._to_length else int(lengths.max())
        tokens = np.full((len(ids), width), self._pad, dtype=np.int64)
        for row, values in enumerate(ids):
            start = width - len(values) if self._left else 0
            tokens[row, start : start + len(values)] = values
        one = len(indices)  # with both strands, labels are those of the forward one
        if isinstance(self._labels, BaseLabels):
            labels = self._base_labels(
                rows[:one], reverse[:one], lengths[:one], starts[:one], width
            )
        else:
            labels = self._labels[rows[:one]]
        batch = {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}
        if (lengths < width).any():
            place = np.arange(width) - (width - lengths[:, None] if self._left else 0)
            real = (place >= 0) & (place < lengths[:, None])
            batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        return batch

    def _read_of(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the tokens that are read of rows of these lengths."""
        return np.ceil(lengths * self._crop).astype(np.int64)

    def _starts(
        self, stream: int, indices: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Draw where in its row each stretch begins: 0 first, to 1 last."""
        if self._crop == 1:
            return np.zeros(len(rows))
        drawn = unit_float(draw_bits(derive_key(self._seed, stream, _CROP), indices))
        return np.resize(drawn, len(rows))

    def _stretch(self, values: npt.NDArray[Any], start: float) -> npt.NDArray[Any]:
        read = int(self._read_of(np.array(len(values))))
        first = int(start * (len(values) - read + 1))
        return values[first : first + read]

    def _base_labels(
        self,
        rows: npt.NDArray[np.int64],
        reverse: npt.NDArray[np.bool_],
        lengths: npt.NDArray[np.int64],
        starts: npt.NDArray[np.float64],
        width: int,
    ) -> npt.NDArray[np.int64]:
        """Lay the classes of the bases beside the tokens of the same rows."""
        values, offsets = cast("BaseLabels", self._labels)
        placed = np.full((len(rows), width), IGNORED, dtype=np.int64)
        whole = self._rows.lengths
        given = zip(rows, reverse, lengths, starts, strict=True)
        for place, (row, turned, length, first) in enumerate(given):
            found = values[offsets[row] : offsets[row] + whole[row]]
            found = self._stretch(found[::-1] if turned else found, first)
            start = width - length if self._left else 0
            placed[place, start : start + length] = found[:length]
        return placed

    def _epoch_order(self, stream: int, epoch: int) -> npt.NDArray[np.int64]:
        kept = self._order
        if kept is not None and kept[0] == (stream, epoch):
            return kept[1]
        number = np.arange(len(self), dtype=np.int64)
        order = np.argsort(draw_bits(derive_key(self._seed, stream, epoch, _ORDER), number))
        lengths = self._rows.lengths
        if lengths.min() != lengths.max():
            order = self._bucketed(order, derive_key(self._seed, stream, epoch, _BLOCKS))
        self._order = ((stream, epoch), order)
        return order

    def _bucketed(self, order: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.int64]:
        """Sort by length inside pools of blocks, then shuffle the blocks of all pools."""
        pool = self._block * _POOL
        lengths = self._rows.lengths
        ordered = [
            part[np.argsort(lengths[part], kind="stable")]
            for part in np.split(order, range(pool, len(order), pool))
        ]
        joined = np.concatenate(ordered)
        full = len(joined) // self._block * self._block
        blocks = joined[:full].reshape(-1, self._block)
        shuffled = np.argsort(draw_bits(key, np.arange(len(blocks), dtype=np.int64)))
        return np.concatenate([blocks[shuffled].ravel(), joined[full:]])

"""Batches of labeled sequences, of any tokenizer: pure functions of (seed, index)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.data.hashing import Draws
from megabase.data.labeled import IGNORED, LabeledSequences, Ragged
from megabase.data.vocabulary import PAD_ID, SEP_ID, text_to_ids
from megabase.errors import InputError, TruncationWarning, warn
from megabase.genome import alphabet

Encode = Callable[[npt.NDArray[np.uint8]], npt.NDArray[Any]]
"""From the base codes of a sequence to its token ids."""

_ORDER, _STRAND, _BLOCKS, _CROP = 1, 2, 3, 4  # part of a draw's key: purposes are independent
_POOL = 50  # blocks that are sorted by length together: more give less padding and less mixing

_Ints = npt.NDArray[np.int64]


class Padding(NamedTuple):
    """How rows of different lengths are made equal."""

    token: int
    """Token that fills shorter rows."""
    left: bool = False
    """Whether it goes before the sequence and not after it."""
    full: bool = False
    """Pad to the requested length, as published, instead of the longest row of the batch."""


class Draw(NamedTuple):
    """What is drawn at random for every epoch: its order, the strands and the segments."""

    seed: int = 0
    shuffle: bool = True  # False: index i is row i
    block: int = 1  # sequences of a step. Rows of a block have similar lengths when lengths differ.
    reverse_probability: float = 0.0  # chance that a row is read as its reverse complement
    crop: float = 1.0  # share of every row that is read, in (0, 1]: a segment at a random position


def tokenize(
    sequences: LabeledSequences, encode: Encode, *, reverse: bool = False,
    max_bases: int | None = None, max_tokens: int | None = None, truncate: bool = False,
) -> Ragged:  # fmt: skip
    """Turn every sequence into tokens, in the smallest integer type that holds every id.

    With `truncate` the beginning of longer ones is kept, and a TruncationWarning counts them; bases
    are cut before the reverse complement is taken, so both strands cover the same segment. An
    InputError names file and row of a sequence that is too long, or that gives no token.
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
    return Ragged.of(rows)


def _refuse(sequences: LabeledSequences, lengths: _Ints, limit: int, unit: str, what: str) -> None:
    over = np.flatnonzero(lengths > limit)
    first, longest = int(over[0]), int(lengths.max())
    raise InputError(
        f"{sequences.where(first)}: the sequence has {int(lengths[first]):,} {unit}, above "
        f"{what}, {limit:,} ({len(over):,} rows are longer, the longest has {longest:,}); "
        "take a model with a longer input, or cut them with table.truncate"
    )


class LabeledBatches:
    """Labeled sequences by number, for the training loop.

    `rows` are the tokens of the forward strand and `reverse` those of the reverse complement, for a
    ``reverse_probability`` and `both_strands`: each row twice, all rows forward, then all as their
    reverse complement, while ``labels`` holds each once. Labels are int64 (n,), float32 (n, K), or
    the classes of all bases, where every token is one base, or float32 (bins, K) of all bins of
    `bin` bases.

    An epoch is one permutation of all rows; index i lies in epoch i // n. Which row an index gives
    depends on neither the micro-batch nor the number of processes.
    """

    def __init__(
        self, rows: Ragged, labels: npt.NDArray[Any] | Ragged, *, padding: Padding,
        draw: Draw | None = None, reverse: Ragged | None = None, both_strands: bool = False,
        bin: int = 1,
    ) -> None:  # fmt: skip
        draw = draw or Draw()
        if not 0 < draw.crop <= 1:
            raise InputError(f"the share of a row that is read is {draw.crop}; expected (0, 1]")
        if reverse is None and (draw.reverse_probability or both_strands):
            raise InputError("reverse complements are asked for without their tokens")
        self._rows, self._reverse, self._labels = rows, reverse, labels
        self._padding, self._both, self._bin = padding, both_strands, bin
        self._draw = draw._replace(block=max(1, draw.block))
        self._order: tuple[tuple[int, int], _Ints] | None = None

    def __len__(self) -> int:
        return len(self._rows.offsets) - 1

    def epoch_size(self, length: int) -> int:
        """Give the number of rows, whatever the length."""
        return len(self)

    def rows_of(self, stream: int, indices: _Ints) -> _Ints:
        """Give the row of each index of a stage."""
        if not self._draw.shuffle:
            return np.asarray(indices, dtype=np.int64)
        return _in_order(indices, len(self), lambda epoch: self._epoch_order(stream, epoch))

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

    def batch(self, stream: int, indices: _Ints, length: int) -> dict[str, Tensor]:
        """Give sequences by their int64 (n,) running numbers in a stage, cut to `length` tokens.

        ``input_ids`` is int64 (n, width), or (2 n, width) with both strands; ``labels`` (n,) or (n,
        K), or for bases int64 (n, width) in the direction of the row, -100 at padding, for bins
        float32 (n, width // bin, K), NaN there; ``attention_mask`` int64 like the ids, only when a
        row is padded.
        """
        rows = self.rows_of(stream, indices)
        reverse = np.zeros(len(rows), dtype=bool)
        if self._draw.reverse_probability:
            coins = Draws(self._draw.seed, stream, _STRAND).floats(indices)
            reverse = coins < self._draw.reverse_probability
        if self._both:
            rows, reverse = np.tile(rows, 2), np.repeat([False, True], len(rows))
        starts = np.zeros(len(rows))  # where in its row each segment begins: 0 first, to 1 last
        if self._draw.crop < 1:
            draws = Draws(self._draw.seed, stream, _CROP)
            starts = np.resize(draws.floats(indices), len(rows))
        sources = {False: self._rows, True: self._reverse or self._rows}
        places = list(zip(rows.tolist(), reverse.tolist(), starts.tolist(), strict=True))
        ids = [self._segment(sources[t].row(row), start)[:length] for row, t, start in places]
        width = length if self._padding.full else max(map(len, ids))
        labels = self._labels
        one = len(indices)  # with both strands, labels are those of the forward one
        if isinstance(labels, Ragged):
            whole, most = self._rows.lengths // self._bin, length // self._bin
            classes = [
                self._segment(labels.row(row)[: whole[row]][:: -1 if turned else 1], start)[:most]
                for row, turned, start in places[:one]
            ]
            fill = np.nan if labels.values.ndim > 1 else IGNORED
            given: npt.NDArray[Any] = self._padded(classes, width // self._bin, fill)
        else:
            given = labels[rows[:one]]
        tokens = self._padded(ids, width, self._padding.token)
        batch = {"input_ids": torch.from_numpy(tokens), "labels": torch.from_numpy(given)}
        if any(len(row) < width for row in ids):
            real = self._padded([np.ones_like(row, dtype=np.int64) for row in ids], width, 0)
            batch["attention_mask"] = torch.from_numpy(real)
        return batch

    def _padded(
        self, rows: Sequence[npt.NDArray[Any]], width: int, fill: float
    ) -> npt.NDArray[Any]:
        kind = np.float32 if np.isnan(fill) else np.int64
        padded = np.full((len(rows), width, *rows[0].shape[1:]), fill, dtype=kind)
        for number, values in enumerate(rows):
            start = width - len(values) if self._padding.left else 0
            padded[number, start : start + len(values)] = values
        return padded

    def _read_of(self, lengths: _Ints) -> _Ints:
        return np.ceil(lengths * self._draw.crop).astype(np.int64)

    def _segment(self, values: npt.NDArray[Any], start: float) -> npt.NDArray[Any]:
        read = int(self._read_of(np.array(len(values))))
        first = int(start * (len(values) - read + 1))
        return values[first : first + read]

    def _epoch_order(self, stream: int, epoch: int) -> _Ints:
        if self._order is None or self._order[0] != (stream, epoch):
            number = np.arange(len(self), dtype=np.int64)
            order = np.argsort(Draws(self._draw.seed, stream, epoch, _ORDER).bits(number))
            if np.ptp(self._rows.lengths):
                order = self._bucketed(order, Draws(self._draw.seed, stream, epoch, _BLOCKS))
            self._order = ((stream, epoch), order)
        return self._order[1]

    def _bucketed(self, order: _Ints, draws: Draws) -> _Ints:
        """Sort by length inside pools of blocks, then shuffle the blocks of all pools."""
        size = self._draw.block
        pool = np.arange(len(order)) // (size * _POOL)
        joined = order[np.lexsort((self._rows.lengths[order], pool))]
        full = len(joined) // size * size
        blocks = joined[:full].reshape(-1, size)
        shuffled = np.argsort(draws.bits(np.arange(len(blocks), dtype=np.int64)))
        return np.concatenate([blocks[shuffled].ravel(), joined[full:]])


def _in_order(indices: _Ints, size: int, order_of: Callable[[int], _Ints]) -> _Ints:
    """Give the row of each running number, from the order of all rows in every epoch."""
    epochs, places = np.divmod(np.asarray(indices, dtype=np.int64), size)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        rows[inside] = order_of(int(epoch))[places[inside]]
    return rows


def _in_context_item(query: str, demonstrations: Sequence[tuple[str, str]], length: int) -> _Ints:
    """Build an in-context prompt, int64: (sequence, letter) demonstrations, then the query."""

    def block(text: str) -> _Ints:
        ids = text_to_ids(text[:length])
        return np.concatenate([np.full(length - ids.size, PAD_ID), ids, [SEP_ID]])

    parts = [
        part
        for text, letter in demonstrations
        for part in (block(text), np.append(text_to_ids(letter), SEP_ID))
    ]
    return np.concatenate([*parts, block(query)])


class InContextBatches:
    """Queries by number, each behind its own demonstrations.

    A prompt holds, for each of `shots` demonstrations a class, the sequence, a separator, the
    letter of its class and a separator, and then the query and a separator: the next token is the
    answer. Sequences longer than `length` tokens lose their end, shorter ones are padded on the
    left. A query never demonstrates itself. An InputError when a class has too few examples.

    Source: ``src/dataloaders/datasets/icl_genomics_dataset.py`` of HazyResearch/hyena-dna, where
    demonstrations come from the split that the query is in, the test split included.
    """

    def __init__(
        self, queries: LabeledSequences, examples: LabeledSequences, *, letters: str, length: int,
        shots: int, seed: int = 0, shuffle: bool = False, reverse_probability: float = 0.0,
    ) -> None:  # fmt: skip
        self._queries, self._examples = queries, examples
        self._letters, self.length, self._shots = letters, length, shots
        self._seed, self._shuffle, self._probability = seed, shuffle, reverse_probability
        self._members = [np.flatnonzero(examples.labels == i) for i in range(len(letters))]
        self._same = queries.text is examples.text
        needed = shots + int(self._same)
        for name, members in zip(examples.classes, self._members, strict=True):
            if len(members) < needed:
                raise InputError(
                    f"{examples.text.source}: the class {name!r} has {len(members)} rows; "
                    f"{shots} examples for each question need {needed}"
                )

    @staticmethod
    def tokens_of(length: int, demonstrations: int) -> int:
        """Give the tokens of a query after N demonstrations, each sequence of `length` tokens."""
        return demonstrations * (length + 3) + length + 1

    def __len__(self) -> int:
        return len(self._queries)

    @property
    def longest(self) -> int:
        """Tokens of a query with its demonstrations."""
        return self.tokens_of(self.length, self._shots * len(self._letters))

    def epoch_size(self, length: int) -> int:
        """Give the number of queries."""
        return len(self)

    def rows_of(self, stream: int, indices: _Ints) -> _Ints:
        """Give the query of each index."""
        number = np.arange(len(self), dtype=np.int64)

        def order(epoch: int) -> _Ints:
            drawn = Draws(self._seed, stream, epoch, _ORDER).bits(number)
            return np.argsort(drawn) if self._shuffle else number

        return _in_order(indices, len(self), order)

    def demonstrations_of(self, index: int, row: int) -> _Ints:
        """Give the rows of the demonstrations of the query in a row, in the order of the prompt.

        `index` is its running number, which the draw depends on.
        """
        rng = np.random.default_rng([self._seed, index])
        chosen: list[int] = []
        for pool in self._members:
            if self._same:
                pool = pool[self._examples.rows[pool] != self._queries.rows[row]]
            chosen += rng.choice(pool, size=self._shots, replace=False).tolist()
        return rng.permutation(np.array(chosen, dtype=np.int64))

    def batch(self, stream: int, indices: _Ints, length: int) -> dict[str, Tensor]:
        """Give queries by number, with their prompts and answers.

        ``input_ids`` int64 (n, tokens); ``places`` int64 (n, m), the positions whose next token is
        an answer, that of the query last; ``answers`` int64 (n, m), the classes of demonstrations
        and query; ``labels`` int64 (n,), the class of the query.
        """
        rows = self.rows_of(stream, indices)
        numbers = np.arange(self._shots * len(self._letters) + 1, dtype=np.int64)
        ids: list[_Ints] = []
        answers: list[list[int]] = []
        for index, row in zip(indices.tolist(), rows.tolist(), strict=True):
            chosen = self.demonstrations_of(index, row).tolist()
            draws = Draws(self._seed, stream, index, _STRAND).floats(numbers)
            reverse = (draws < self._probability).tolist()
            texts = [_text(self._examples, i, r) for i, r in zip(chosen, reverse, strict=False)]
            classes = [int(self._examples.labels[i]) for i in chosen]
            solved = [(text, self._letters[c]) for text, c in zip(texts, classes, strict=True)]
            query = _text(self._queries, row, reverse[-1])
            ids.append(_in_context_item(query, solved, self.length))
            answers.append([*classes, int(self._queries.labels[row])])
        found = np.array(answers, dtype=np.int64)
        # The separators before the labels of the demonstrations, and the last token.
        places = np.arange(found.shape[1], dtype=np.int64) * (self.length + 3) + self.length
        return {
            "input_ids": torch.from_numpy(np.stack(ids)),
            "places": torch.from_numpy(np.tile(places, (len(ids), 1))),
            "answers": torch.from_numpy(found),
            "labels": torch.from_numpy(found[:, -1].copy()),
        }


def _text(sequences: LabeledSequences, row: int, reverse: bool) -> str:
    codes = sequences.sequence(row)
    return alphabet.decode(alphabet.reverse_complement(codes) if reverse else codes)

"""The character tokenizer of the published DNA language models, made fast.

One token per base, with the ids of :mod:`megabase.data.vocabulary`. Letters are looked up in a
256-byte table and rows are joined, cut and padded as numpy arrays by the rules of transformers, so
a megabase is encoded in a few milliseconds and never becomes a list.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchEncoding
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy, TensorType, to_py_obj

from megabase.data.vocabulary import (
    COMPLEMENT_TOKEN_IDS,
    LOGIT_COLUMNS,
    PAD_ID,
    SPECIAL_TOKEN_HABITS,
    TOKEN_OF_ID,
    VOCABULARY,
    letter_table,
)
from megabase.errors import ModelError
from megabase.models.tokenizers.table import TableTokenizer, warn_letters

Ids = NDArray[np.int64]
# The order of the published folders' character list, which their token ids follow.
_CHARACTERS = ("A", "C", "G", "T", "N")
# [RESERVED] is missing: the published tokenizers keep it in a text without special tokens.
_SKIPPED_WITH_SPECIALS = frozenset({0, 1, 2, 3, 4, 6, *range(12, LOGIT_COLUMNS)})
# Keys of published tokenizer_config.json files that add nothing to the vocabulary.
_PUBLISHED_KEYS = ("complement_map", "char_ords", "auto_map", "characters")
SPECIAL_TOKEN_NAMES = {
    "bos_token": "[BOS]", "eos_token": "[SEP]", "unk_token": "[UNK]", "sep_token": "[SEP]",
    "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
"""Special tokens under the names of transformers; the end token is SEP, as published."""


class _Row(NamedTuple):
    """One encoded text; all arrays have one entry for each token."""

    ids: Ids
    special: Ids  # 1 for an added token: a special token or padding
    real: Ids  # 0 for padding
    spans: Ids  # first letter and the one past the last, (tokens, 2); meaningless unless wanted

    def padded(self, before: int, after: int, fills: tuple[int, int, int]) -> "_Row":
        """Add tokens on both sides, with the id, the sign of a special token and that of a real."""
        sides, columns = [(before, after), (0, 0)], zip(self, (*fills, 0), strict=True)
        return _Row(
            *(np.pad(one, sides[: one.ndim], constant_values=fill) for one, fill in columns)
        )


class _TokenMap:
    """What the tokens of a text stand for: the part of tokenizers' ``Encoding`` that is read."""

    n_sequences = 1

    def __init__(self, row: _Row) -> None:
        self._row = row

    @property
    def word_ids(self) -> list[int | None]:
        """Number of the word of each token, which is 0; None for added tokens."""
        return [None if added else 0 for added in self._row.special.tolist()]

    sequence_ids = word_ids
    """Number of the text of each token, which is 0 too."""


class DNATokenizer(TableTokenizer):
    """One token per base, with the published ids.

    Parameters
    ----------
    special_tokens
        Which special tokens a call adds (unless it has ``add_special_tokens=False``):
        ``"hyenadna"`` appends SEP, as the training repository, the ``-hf`` repositories and
        Caduceus do; ``"standalone"`` puts CLS before and SEP after, as the standalone file does;
        ``"none"`` adds nothing.
    case_sensitive
        False (default): lower-case bases are bases. True: they become ``[UNK]``, as in all
        published HyenaDNA tokenizers (Caduceus upper-cases).
    iupac
        ``"n"`` (default): IUPAC letters other than A, C, G, T become N. ``"unk"``: they become
        ``[UNK]``, as published.
    **kwargs
        Passed on to transformers: `padding_side` (default ``"right"``; a folder's own
        ``tokenizer_config.json`` decides when loading), `model_max_length` and others. With
        ``split_special_tokens=True`` special tokens written in the text are read as letters, as
        transformers before 4.34 did.

    Examples
    --------
    >>> tokenizer = DNATokenizer()
    >>> tokenizer("ACGtn")["input_ids"]
    [7, 8, 9, 10, 11, 1]
    >>> tokenizer.decode([7, 8, 12])
    'AC[RESERVED_12]'
    """

    def __init__(
        self, special_tokens: str = "hyenadna", case_sensitive: bool = False, iupac: str = "n",
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self._tokens, self._ids = list(TOKEN_OF_ID), VOCABULARY
        pattern = self._pattern(special_tokens)
        characters = tuple(kwargs.get("characters") or _CHARACTERS)
        if characters != _CHARACTERS:
            raise ModelError(
                f"the character list {characters} would give other token ids than the published "
                f"models use; expected {_CHARACTERS}"
            )
        for key in _PUBLISHED_KEYS:
            kwargs.pop(key, None)
        if kwargs.get("add_special_tokens") is False:  # of published files; has no meaning here
            del kwargs["add_special_tokens"]
        # Named, so that a side set later is saved too.
        kwargs.setdefault("padding_side", self.padding_side)
        self.special_tokens, self.iupac = special_tokens, iupac
        self.case_sensitive = bool(case_sensitive)
        self._letters = letter_table(self.case_sensitive, iupac)
        kwargs["special_tokens_pattern"] = pattern
        super().__init__(
            special_tokens=special_tokens, case_sensitive=self.case_sensitive, iupac=iupac,
            **{**SPECIAL_TOKEN_NAMES, **kwargs},
        )  # fmt: skip

    @property
    def is_fast(self) -> bool:
        """True: tokens know their position in the text (``return_offsets_mapping``)."""
        return True

    @property
    def complement_map(self) -> dict[int, int]:
        """Token id of the complement of each of the 12 token ids."""
        return {index: COMPLEMENT_TOKEN_IDS[index] for index in VOCABULARY.values()}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [TOKEN_OF_ID[index] for index in self._translate(text)]

    def _translate(self, text: str | bytes) -> bytes:
        # One byte for each character: whatever is not Latin-1 becomes "?", which is unknown.
        raw = text.encode("latin-1", errors="replace") if isinstance(text, str) else bytes(text)
        return raw.translate(self._letters)

    def _letter_ids(self, text: str | bytes) -> Ids:
        return np.frombuffer(self._translate(text), dtype=np.uint8).astype(np.int64)

    def _encode_text(self, text: str | bytes, split_special_tokens: bool, spans: bool) -> _Row:
        """Encode one text; no special tokens are added yet."""
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        known = {} if split_special_tokens else self._added_tokens_encoder
        pattern = "|".join(re.escape(token) for token in sorted(known, key=len, reverse=True))
        pieces: list[Any] = []
        edges: list[Any] = []
        start = 0
        for match in re.finditer(pattern, text) if known else ():
            pieces += [self._letter_ids(text[start : match.start()]), [known[match.group()]]]
            edges.append(np.arange(start, match.start() + 1))
            start = match.end()
        ids = np.concatenate([*pieces, self._letter_ids(text[start:])]).astype(np.int64)
        places = np.empty((0, 2), dtype=np.int64)
        if spans:  # a token ends where the next one begins
            ends = np.concatenate([*edges, np.arange(start, len(text) + 1)])
            places = np.stack([ends[:-1], ends[1:]], axis=1)
        return _Row(ids, np.zeros_like(ids), np.ones_like(ids), places)

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, text: Any, text_pair: Any = None, add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None, **kwargs: Any,
    ) -> BatchEncoding:  # fmt: skip
        if self.iupac == "n":
            warn_letters(text, text_pair)
        spans = bool(kwargs.get("return_offsets_mapping"))
        batched = isinstance(text, (list, tuple))
        texts = list(text) if batched else [text]
        unusual = ("return_overflowing_tokens", "sanitize_control_tokens", "is_split_into_words")
        plain = text_pair is None and all(isinstance(one, (str, bytes)) for one in texts)
        if not plain or any(kwargs.get(name) for name in unusual):  # the general, slower way
            if spans:
                raise ModelError(
                    "token ids, pairs, words and overflowing pieces have no offsets; leave out "
                    "return_offsets_mapping, or encode single texts"
                )
            return super()._encode_plus(
                text, text_pair, add_special_tokens=add_special_tokens,
                padding_strategy=padding_strategy, truncation_strategy=truncation_strategy,
                max_length=max_length, **kwargs,
            )  # fmt: skip
        split = bool(kwargs.get("split_special_tokens", self.split_special_tokens))
        pattern = SPECIAL_TOKEN_HABITS[self.special_tokens] if add_special_tokens else "none"
        before, after = int(pattern == "cls_sep"), int(pattern != "none")
        cuts = truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE
        rows: list[_Row] = []
        for one in texts:
            row = self._encode_text(one, split, spans)
            excess = len(row.ids) + before + after - max_length if cuts and max_length else 0
            if excess > 0:
                kept = max(0, len(row.ids) - excess)
                first = 0 if self.truncation_side == "right" else len(row.ids) - kept
                row = _Row(*(column[first : first + kept] for column in row))
            row = row.padded(before, 0, (VOCABULARY["[CLS]"], 1, 1))
            rows.append(row.padded(0, after, (VOCABULARY["[SEP]"], 1, 1)))
            ids, verbose = cast("Any", rows[-1].ids), bool(kwargs.get("verbose", True))
            self._eventual_warn_about_too_long_sequence(ids, max_length, verbose)
        lengths = [len(row.ids) for row in rows]
        # A single empty text is left empty, as transformers does.
        if padding_strategy != PaddingStrategy.DO_NOT_PAD and (batched or any(lengths)) and lengths:
            full = padding_strategy == PaddingStrategy.MAX_LENGTH and max_length is not None
            width = cast("int", max_length) if full else max(lengths)
            multiple = kwargs.get("pad_to_multiple_of") or 1
            left = (kwargs.get("padding_side") or self.padding_side) == "left"
            width = -(-width // multiple) * multiple
            for number, row in enumerate(rows):
                missing = max(0, width - len(row.ids))
                sides = (missing, 0) if left else (0, missing)
                rows[number] = row.padded(*sides, (PAD_ID, 1, 0))
        return self._finish(rows, batched, kwargs)

    def _finish(self, rows: list[_Row], batched: bool, wanted: dict[str, Any]) -> BatchEncoding:
        """Give the columns that a call wants, as lists or in one array for each."""
        found: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        columns = {
            "token_type_ids": [np.zeros_like(row.ids) for row in rows],
            "attention_mask": [row.real for row in rows],
            "special_tokens_mask": [row.special for row in rows],
        }
        for name, column in columns.items():
            flag = wanted.get(f"return_{name}")
            if name in self.model_input_names if flag is None else flag:
                found[name] = column
        if wanted.get("return_length"):
            found["length"] = [np.int64(len(row.ids)) for row in rows]
        encodings = cast("Any", [_TokenMap(row) for row in rows])
        tensor_type = wanted.get("return_tensors")
        if wanted.get("return_offsets_mapping"):
            found["offset_mapping"] = [row.spans for row in rows]
        if tensor_type is None:
            lists = {key: [value.tolist() for value in values] for key, values in found.items()}
            if "offset_mapping" in lists:
                lists["offset_mapping"] = [[*map(tuple, one)] for one in lists["offset_mapping"]]
            data = lists if batched else {key: values[0] for key, values in lists.items()}
            return BatchEncoding(data, encodings)
        lengths = sorted({len(row.ids) for row in rows})
        if len(lengths) > 1:
            raise ModelError(
                f"texts of {lengths[0]:,} to {lengths[-1]:,} tokens do not fit one tensor; "
                "pass padding=True (or padding='max_length', truncation=True)"
            )
        nothing = np.empty((0, 0), dtype=np.int64)  # of an empty batch
        arrays = {key: np.stack(values) if values else nothing for key, values in found.items()}
        if TensorType(tensor_type) == TensorType.NUMPY:
            return BatchEncoding(arrays, encodings)
        return BatchEncoding({k: torch.from_numpy(v) for k, v in arrays.items()}, encodings)

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any
    ) -> str | list[str]:
        """Turn token ids (one, a sequence, or a batch: one text for each sequence) into text.

        ``skip_special_tokens`` leaves out ids 12-15 too (``[RESERVED]`` stays, as published). An id
        outside 0-15 that the user did not add is a :class:`ModelError`.
        """
        if hasattr(token_ids, "detach"):
            token_ids = token_ids.detach().cpu().numpy()
        elif not isinstance(token_ids, np.ndarray):
            token_ids = to_py_obj(token_ids)
        several = isinstance(token_ids, Sequence) and any(map(np.ndim, token_ids[:1]))
        if several or (isinstance(token_ids, np.ndarray) and token_ids.ndim > 1):
            return [self._decode_row(np.asarray(row), skip_special_tokens) for row in token_ids]
        return self._decode_row(np.asarray(token_ids), skip_special_tokens)

    def _decode_row(self, ids: NDArray[Any], skip_special_tokens: bool) -> str:
        ids = np.atleast_1d(ids).astype(np.int64)
        added = {i: str(token) for i, token in self._added_tokens_decoder.items()}
        distinct = np.unique(ids).tolist()
        if all(VOCABULARY["A"] <= index <= VOCABULARY["N"] for index in distinct):
            return np.frombuffer(b"ACGTN", dtype=np.uint8)[ids - VOCABULARY["A"]].tobytes().decode()
        skipped = set(self.all_special_ids) | _SKIPPED_WITH_SPECIALS if skip_special_tokens else ()
        texts = {
            index: "" if index in skipped else added.get(index) or self._convert_id_to_token(index)
            for index in distinct
        }
        return "".join(texts[index] for index in ids.tolist())


class HyenaDNATokenizer(DNATokenizer):
    """The tokenizer that ``LongSafari/hyenadna-*-hf`` folders name; pads on the left, as these."""

    padding_side: str = "left"


class CaduceusTokenizer(HyenaDNATokenizer):
    """The tokenizer that ``kuleshov-group/caduceus-*`` folders name."""

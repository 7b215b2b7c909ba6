"""The character tokenizer of the published DNA language models, made fast and forgiving.

One token per base, with the ids of :mod:`.vocabulary`. Letters are looked up in a
256-byte table, so a megabase is encoded in a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy, TensorType, to_py_obj

from megabase.data.vocabulary import (
    COMPLEMENT_TOKEN_IDS,
    LOGIT_COLUMNS,
    SPECIAL_TOKEN_HABITS,
    TOKEN_OF_ID,
    VOCABULARY,
    letter_table,
)
from megabase.errors import ModelError
from megabase.models.tokenizers.encoding import (
    Ids,
    Part,
    Row,
    TokenMap,
    join_parts,
    pad_row,
    padded_width,
    parts_of,
    truncate,
    warn_letters,
)

__all__ = [
    "COMPLEMENT_TOKEN_IDS",
    "LOGIT_COLUMNS",
    "SPECIAL_TOKEN_HABITS",
    "VOCABULARY",
    "CaduceusTokenizer",
    "DNATokenizer",
    "HyenaDNATokenizer",
]

_PAD, _UNK = 4, 6
_CHARACTERS = ("A", "C", "G", "T", "N")
_SKIPPED_WITH_SPECIALS = frozenset({0, 1, 2, 3, 4, 6, *range(12, LOGIT_COLUMNS)})
# Keys of published tokenizer_config.json files that say nothing beyond the vocabulary above.
_PUBLISHED_KEYS = ("complement_map", "char_ords", "auto_map")


class DNATokenizer(PreTrainedTokenizer):
    """One token per base, with the published ids.

    Parameters
    ----------
    special_tokens
        Which special tokens a call adds (unless it says ``add_special_tokens=False``):
        ``"hyenadna"`` appends SEP, as the training repository, the ``-hf`` repositories and
        Caduceus do; ``"standalone"`` puts CLS before and SEP after, as the standalone file does;
        ``"none"`` adds nothing.
    case_sensitive
        False (default): lower-case bases are bases. True: they become ``[UNK]``, as in all
        published HyenaDNA tokenizers (Caduceus upper-cases).
    iupac
        ``"n"`` (default): IUPAC letters other than A, C, G, T become N. ``"unk"``: they become
        ``[UNK]``, as published.
    padding_side
        ``"right"`` (default) or ``"left"``, the published side; a folder's own
        ``tokenizer_config.json`` decides when loading.
    model_max_length
        Longest input in tokens, used by ``truncation=True`` and ``padding="max_length"``.
    **kwargs
        Passed on to transformers. With ``split_special_tokens=True`` special tokens written in the
        text are read as letters, as transformers before 4.34 did.

    Raises
    ------
    ModelError
        For an unknown option, or a folder whose character list is not A, C, G, T, N.

    Notes
    -----
    Calls with ``return_tensors`` build no Python list. Without it transformers promises lists of
    integers, and gets them. An empty text without special tokens stays empty even when padding is
    asked for, as in every published tokenizer.

    Examples
    --------
    >>> tokenizer = DNATokenizer()
    >>> tokenizer("ACGtn")["input_ids"]
    [7, 8, 9, 10, 11, 1]
    >>> tokenizer.decode([7, 8, 12])
    'AC[RESERVED_12]'
    """

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012
    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side: str = "right"

    def __init__(
        self,
        special_tokens: str = "hyenadna",
        case_sensitive: bool = False,
        iupac: str = "n",
        **kwargs: Any,
    ) -> None:
        if special_tokens not in SPECIAL_TOKEN_HABITS:
            raise ModelError(
                f"special_tokens is one of {tuple(SPECIAL_TOKEN_HABITS)}, not {special_tokens!r}"
            )
        characters = tuple(kwargs.pop("characters", None) or _CHARACTERS)
        if characters != _CHARACTERS:
            raise ModelError(
                f"the character list {characters} would give other token ids than the published "
                f"models use; expected {_CHARACTERS}"
            )
        for key in _PUBLISHED_KEYS:
            kwargs.pop(key, None)
        if kwargs.get("add_special_tokens") is False:  # of published files; it says nothing here
            del kwargs["add_special_tokens"]
        kwargs.pop("special_tokens_pattern", None)
        # Named, so that a side set later is saved too.
        kwargs.setdefault("padding_side", self.padding_side)
        self.special_tokens = special_tokens
        self.case_sensitive = bool(case_sensitive)
        self.iupac = iupac
        self._letters = letter_table(self.case_sensitive, iupac)
        names = {"bos": "[BOS]", "eos": "[SEP]", "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]",
                 "cls": "[CLS]", "mask": "[MASK]"}  # fmt: skip
        for name, token in names.items():
            kwargs.setdefault(f"{name}_token", token)
        super().__init__(
            special_tokens=special_tokens,
            case_sensitive=self.case_sensitive,
            iupac=iupac,
            special_tokens_pattern=SPECIAL_TOKEN_HABITS[special_tokens],
            **kwargs,
        )

    # -- vocabulary ----------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of named tokens, 12 (models have 16 rows)."""
        return len(VOCABULARY)

    @property
    def is_fast(self) -> bool:
        """Whether tokens know their place in the text (``return_offsets_mapping``): they do."""
        return True

    @property
    def complement_map(self) -> dict[int, int]:
        """Token id of the complement of each of the 12 token ids."""
        return {index: COMPLEMENT_TOKEN_IDS[index] for index in VOCABULARY.values()}

    def get_vocab(self) -> dict[str, int]:
        """Give token -> id, tokens added by the user included."""
        return {**VOCABULARY, **self._added_tokens_encoder}

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Save nothing: the vocabulary is fixed."""
        return ()

    def _convert_token_to_id(self, token: str) -> int:
        return VOCABULARY.get(token, _UNK)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < LOGIT_COLUMNS:
            raise ModelError(f"token id {index} is outside 0-{LOGIT_COLUMNS - 1}")
        return TOKEN_OF_ID[index]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [TOKEN_OF_ID[index] for index in self._translate(text)]

    # -- encoding ------------------------------------------------------------------------------

    def _translate(self, text: str | bytes) -> bytes:
        # One byte for each character: whatever is not Latin-1 becomes "?", which is unknown.
        raw = text.encode("latin-1", errors="replace") if isinstance(text, str) else bytes(text)
        return raw.translate(self._letters)

    def encode_array(self, sequence: str | bytes) -> Ids:
        """Encode letters alone: no special tokens added, none looked for in the text.

        Parameters
        ----------
        sequence
            DNA letters.

        Returns
        -------
        NDArray[np.int64]
            Token ids, shape (length,).

        Warns
        -----
        AmbiguousLettersWarning
            When letters are read as N.
        """
        if self.iupac == "n":
            warn_letters(sequence)
        return self._ids(sequence)

    def _ids(self, text: str | bytes) -> Ids:
        return np.frombuffer(self._translate(text), dtype=np.uint8).astype(np.int64)

    def _encode_text(self, text: str | bytes, split_special_tokens: bool, spans: bool) -> Part:
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        known = {} if split_special_tokens else self._added_tokens_encoder
        pattern = "|".join(re.escape(token) for token in sorted(known, key=len, reverse=True))
        pieces: list[Any] = []
        places: list[Any] = []
        start = 0
        for match in re.finditer(pattern, text) if known else ():
            pieces += [self._ids(text[start : match.start()]), [known[match.group()]]]
            places.append(np.arange(start, match.start() + 1))
            start = match.end()
        ids = np.concatenate([*pieces, self._ids(text[start:])]).astype(np.int64)
        words = np.zeros_like(ids)
        if not spans:
            return Part(ids, np.empty((0, 2), np.int64), words)
        # A token ends where the next one begins.
        edges = np.concatenate([*places, np.arange(start, len(text) + 1)])
        return Part(ids, np.stack([edges[:-1], edges[1:]], axis=1), words)

    def _encode_words(self, words: Sequence[str], split_special_tokens: bool, spans: bool) -> Part:
        found = [self._encode_text(word, split_special_tokens, spans) for word in words or [""]]
        ids, places, _ = (np.concatenate(each) for each in zip(*found, strict=True))
        counts = [len(part.ids) for part in found]
        return Part(ids, places, np.repeat(np.arange(len(found)), counts))

    def _encode_plus(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode texts, pairs of texts, or lists of words, without character lists."""
        if self.iupac == "n":
            warn_letters(text, text_pair)
        words = bool(kwargs.get("is_split_into_words"))
        batched = isinstance(text, (list, tuple)) and not (words and text and _is_text(text[0]))
        pairs = parts_of(text, text_pair, words) if not _is_unusual(kwargs) else None
        spans = bool(kwargs.get("return_offsets_mapping"))
        if pairs is None:  # token ids or overflowing pieces: the general, slower way
            if spans:
                raise ModelError(
                    "token ids and overflowing pieces have no offsets; leave out "
                    "return_offsets_mapping, or encode texts without return_overflowing_tokens"
                )
            return super()._encode_plus(
                text=cast("Any", text),
                text_pair=text_pair,
                add_special_tokens=add_special_tokens,
                padding_strategy=padding_strategy,
                truncation_strategy=truncation_strategy,
                max_length=max_length,
                **kwargs,
            )
        split = bool(kwargs.get("split_special_tokens", self.split_special_tokens))
        habit = SPECIAL_TOKEN_HABITS[self.special_tokens] if add_special_tokens else "none"
        encode = self._encode_words if words else self._encode_text
        rows: list[Row] = []
        texts: list[list[Part]] = []
        for pair in pairs:
            parts = [encode(part, split, spans) for part in pair]
            if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
                added = self.num_special_tokens_to_add(len(parts) > 1) if add_special_tokens else 0
                excess = sum(len(part.ids) for part in parts) + added - max_length
                parts = _truncated(parts, excess, truncation_strategy, self.truncation_side)
            texts.append(parts)
            rows.append(join_parts([part.ids for part in parts], habit))
            self._eventual_warn_about_too_long_sequence(
                rows[-1].ids,  # pyright: ignore[reportArgumentType]
                max_length,
                bool(kwargs.get("verbose", True)),
            )
        width = padded_width(
            [len(row.ids) for row in rows],
            padding_strategy,
            max_length,
            kwargs.get("pad_to_multiple_of"),
            batched,
        )
        left = (kwargs.get("padding_side") or self.padding_side) == "left"
        result = self._collect(rows, width, left, kwargs)
        found = zip(result["input_ids"], texts, strict=True)
        maps = [TokenMap(ids, parts, habit, left) for ids, parts in found]
        return _finish(result, maps, batched, kwargs)

    def _collect(
        self, rows: list[Row], width: int | None, left: bool, wanted: Any
    ) -> dict[str, list[Any]]:

        def column(values: Iterable[Ids], fill: int) -> list[Ids]:
            if width is None:
                return list(values)
            return [pad_row(value, width, fill, left) for value in values]

        def asked(name: str, option: str) -> bool:
            flag = wanted.get(option)
            return name in self.model_input_names if flag is None else bool(flag)

        result: dict[str, list[Any]] = {"input_ids": column((row.ids for row in rows), _PAD)}
        if asked("token_type_ids", "return_token_type_ids"):
            result["token_type_ids"] = column((row.types for row in rows), 0)
        if asked("attention_mask", "return_attention_mask"):
            result["attention_mask"] = column((np.ones_like(row.ids) for row in rows), 0)
        if wanted.get("return_special_tokens_mask"):
            result["special_tokens_mask"] = column((row.special for row in rows), 1)
        if wanted.get("return_length"):
            result["length"] = [np.int64(len(ids)) for ids in result["input_ids"]]
        return result

    # -- decoding ------------------------------------------------------------------------------

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        **kwargs: Any,
    ) -> str | list[str]:
        """Turn token ids into text.

        Parameters
        ----------
        token_ids
            One id, a sequence of ids (list, array or tensor), or a batch of sequences.
        skip_special_tokens
            Leave out special tokens and ids 12-15 (``[RESERVED]`` stays, as published).
        **kwargs
            Taken for compatibility; there is nothing to clean up.

        Returns
        -------
        str or list[str]
            The text, or one text for each sequence of a batch.

        Raises
        ------
        ModelError
            For an id below 0 or above 15 that was not added by the user.
        """
        if hasattr(token_ids, "detach"):
            token_ids = token_ids.detach().cpu().numpy()
        if not isinstance(token_ids, np.ndarray):
            token_ids = to_py_obj(token_ids)
            if isinstance(token_ids, Sequence) and len(token_ids) and _is_row(token_ids[0]):
                return [self._decode_row(np.asarray(row), skip_special_tokens) for row in token_ids]
            token_ids = np.asarray(token_ids)
        if token_ids.ndim > 1:
            return [self._decode_row(row, skip_special_tokens) for row in token_ids]
        return self._decode_row(token_ids, skip_special_tokens)

    def _decode_row(self, ids: NDArray[Any], skip_special_tokens: bool) -> str:
        ids = np.atleast_1d(ids).astype(np.int64)
        added = {i: str(token) for i, token in self._added_tokens_decoder.items()}
        distinct = np.unique(ids)
        if all(VOCABULARY["A"] <= index <= VOCABULARY["N"] for index in distinct):
            return np.frombuffer(b"ACGTN", dtype=np.uint8)[ids - VOCABULARY["A"]].tobytes().decode()
        skipped = set(self.all_special_ids) | _SKIPPED_WITH_SPECIALS if skip_special_tokens else ()
        texts = {
            index: "" if index in skipped else added.get(index) or self._convert_id_to_token(index)
            for index in distinct.tolist()
        }
        return "".join(texts[index] for index in ids.tolist())

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens without spaces."""
        return "".join(tokens)


class HyenaDNATokenizer(DNATokenizer):
    """The tokenizer under the name that ``LongSafari/hyenadna-*-hf`` folders ask for.

    Pads on the left when the folder does not say, as published; otherwise a
    :class:`DNATokenizer`, lower-case bases included.
    """

    padding_side: str = "left"


class CaduceusTokenizer(HyenaDNATokenizer):
    """The tokenizer under the name that ``kuleshov-group/caduceus-*`` folders ask for."""


def _is_row(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_unusual(options: dict[str, Any]) -> bool:
    names = ("return_overflowing_tokens", "sanitize_control_tokens")
    return any(options.get(name) for name in names)


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes))


def _truncated(
    parts: list[Part], excess: int, strategy: TruncationStrategy, side: str
) -> list[Part]:
    columns = (truncate([*column], excess, strategy, side) for column in zip(*parts, strict=True))
    return [Part(*fields) for fields in zip(*columns, strict=True)]


def _finish(
    result: dict[str, list[Any]], maps: list[TokenMap], batched: bool, wanted: Any
) -> BatchEncoding:
    spans = [one.offsets for one in maps] if wanted.get("return_offsets_mapping") else None
    encodings = cast("Any", maps)
    tensor_type = wanted.get("return_tensors")
    if tensor_type is None:
        lists = {key: [value.tolist() for value in values] for key, values in result.items()}
        if spans is not None:
            lists["offset_mapping"] = spans
        data = lists if batched else {key: values[0] for key, values in lists.items()}
        return BatchEncoding(data, encodings)
    if spans is not None:
        result["offset_mapping"] = [np.array(one).reshape(-1, 2) for one in spans]
    lengths = sorted({len(ids) for ids in result["input_ids"]})
    if len(lengths) > 1:
        raise ModelError(
            f"texts of {lengths[0]:,} to {lengths[-1]:,} tokens do not fit one tensor; "
            "pass padding=True (or padding='max_length', truncation=True)"
        )
    nothing = np.empty((0, 0), dtype=np.int64)  # of an empty batch
    arrays = {key: np.stack(values) if values else nothing for key, values in result.items()}
    if TensorType(tensor_type) == TensorType.NUMPY:
        return BatchEncoding(arrays, encodings)
    import torch

    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    return BatchEncoding(tensors, encodings)

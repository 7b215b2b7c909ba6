"""The published character vocabulary: token ids, complements, letters and base codes to ids.

Token ids are those of the public HyenaDNA and Caduceus tokenizers. Models have 16 rows, so ids
12-15 exist too; they are shown as ``[RESERVED_12]`` ... and are never produced by encoding.

Base codes stay one byte a base until the last moment: strand and shift are taken on the device, and
only then are they looked up as token ids (eight bytes a base).
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.errors import ModelError
from megabase.genome import alphabet
from megabase.genome.alphabet import AMBIGUITY_LETTERS, CODE_OF_LETTER, TOKEN_ID_OF_CODE

VOCABULARY: dict[str, int] = {
    "[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6,
    "A": 7, "C": 8, "G": 9, "T": 10, "N": 11,
}  # fmt: skip
"""Token -> id; published with the models, whose embedding rows follow it."""
VOCABULARY_SIZE = len(VOCABULARY)
"""Number of ids in use, 12; the models' logits have more columns."""
SEP_ID, MASK_ID, PAD_ID, UNKNOWN_ID, N_ID = 1, 3, 4, 6, 11
"""Ids of :data:`VOCABULARY` that training and scoring handle themselves."""
LOGIT_COLUMNS = 16
"""Rows of the embedding and columns of the logits: 12 tokens padded to a multiple of 8."""
COMPLEMENT_TOKEN_IDS: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15)
"""Token id of the complement of every id 0-15: A and T, C and G swap."""
SPECIAL_TOKEN_HABITS: dict[str, str] = {
    "hyenadna": "eos",  # SEP appended: the training repository and the -hf repositories, Caduceus
    "standalone": "cls_sep",  # CLS before, SEP after: the standalone file and the notebook
    "none": "none",
}
"""Named habits of adding special tokens, and the pattern transformers calls them by."""
TOKEN_OF_ID: tuple[str, ...] = (
    *VOCABULARY,
    *(f"[RESERVED_{index}]" for index in range(len(VOCABULARY), LOGIT_COLUMNS)),
)
"""Text of every id 0-15."""


def letter_table(case_sensitive: bool = False, iupac: str = "n") -> bytes:
    """Give the token id of each byte, as a table for :meth:`bytes.translate`.

    With `case_sensitive`, lower-case letters are unknown. IUPAC letters other than A, C, G, T are N
    with `iupac` ``"n"`` and unknown with ``"unk"``; any other value is a ModelError.
    """
    if iupac not in ("n", "unk"):
        raise ModelError(f"iupac is 'n' or 'unk', not {iupac!r}")
    table = TOKEN_ID_OF_CODE[np.frombuffer(CODE_OF_LETTER, dtype=np.uint8)].copy()
    if iupac == "unk":
        for letter in AMBIGUITY_LETTERS:
            table[[ord(letter), ord(letter.lower())]] = UNKNOWN_ID
    if case_sensitive:
        table[ord("a") : ord("z") + 1] = UNKNOWN_ID
    return table.tobytes()


def text_to_ids(text: str, *, case_sensitive: bool = False) -> npt.NDArray[np.int64]:
    """Look letters up as token ids, int64 (len(text),).

    Everything but A, C, G, T, N is unknown (6); so is lower case when it is `case_sensitive`, which
    is published in HyenaDNA, not in Caduceus.
    """
    table = letter_table(case_sensitive, "unk")
    ids = text.encode("latin-1", "replace").translate(table)
    return np.frombuffer(ids, dtype=np.uint8).astype(np.int64)


def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Give token ids, and complements, by base code."""
    # The reverse complement of all codes in order is the complement table, read backwards.
    other = alphabet.reverse_complement(np.arange(256, dtype=np.uint8))[::-1].copy()
    tables = alphabet.TOKEN_ID_OF_CODE.astype(np.int64), other
    return torch.from_numpy(tables[0]).to(device), torch.from_numpy(tables[1]).to(device)


def _look_up(table: Tensor, codes: Tensor) -> Tensor:
    # As an index, uint8 would mean a mask.
    return table.index_select(0, codes.reshape(-1).int()).view(codes.shape)


def codes_to_ids(codes: Tensor) -> Tensor:
    """Look base codes, in either case, up as int64 ids: A 7, C 8, G 9, T 10, N 11, padding 4."""
    return _look_up(_tables(codes.device)[0], codes)


def reverse_complement_codes(codes: Tensor, reverse: Tensor) -> Tensor:
    """Take the reverse complement of the rows of codes (n, length) marked by a bool (n,).

    Padding is reversed with the rest, so it moves to the other end. The soft-mask bit stays with
    its base.
    """
    flipped = _look_up(_tables(codes.device)[1], codes.flip(-1))
    return torch.where(reverse[:, None], flipped, codes)

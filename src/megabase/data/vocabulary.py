"""Token ids of the published character vocabulary that stand for no base code.

The ids of bases and padding come from :mod:`megabase.genome.alphabet`; these are the others that
training needs (HyenaDNA's character tokenizer).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megabase.genome.alphabet import BASE_TOKEN_IDS, BASES, PAD, TOKEN_ID_OF_CODE, N

__all__ = ["MASK_ID", "N_ID", "PAD_ID", "SEP_ID", "UNKNOWN_ID", "VOCABULARY_SIZE", "text_to_ids"]

SEP_ID = 1
MASK_ID = 3
PAD_ID = int(TOKEN_ID_OF_CODE[PAD])
UNKNOWN_ID = 6
N_ID = int(TOKEN_ID_OF_CODE[N])
VOCABULARY_SIZE = N_ID + 1
"""Number of ids in use, 12; the models' logits have more columns."""


def _id_table() -> npt.NDArray[np.int64]:
    table = np.full(256, UNKNOWN_ID, dtype=np.int64)
    for letter, token in zip(BASES, BASE_TOKEN_IDS, strict=True):
        table[ord(letter)] = token
    table[ord("N")] = N_ID
    return table


_ID_OF_LETTER = _id_table()


def text_to_ids(text: str, *, case_sensitive: bool = False) -> npt.NDArray[np.int64]:
    """Look letters up as token ids, one for each character.

    Parameters
    ----------
    text
        Any text; everything but A, C, G, T, N is unknown (6).
    case_sensitive
        Take lower case as unknown; published in HyenaDNA, not in Caduceus.

    Returns
    -------
    numpy.ndarray
        int64 (len(text),).
    """
    letters = (text if case_sensitive else text.upper()).encode("latin-1", "replace")
    return _ID_OF_LETTER[np.frombuffer(letters, dtype=np.uint8)]

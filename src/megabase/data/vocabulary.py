"""Token ids of the published character vocabulary that stand for no base code.

The ids of bases and padding come from :mod:`megabase.genome.alphabet`; these are the others that
training needs (HyenaDNA's character tokenizer).
"""

from megabase.genome.alphabet import PAD, TOKEN_ID_OF_CODE, N

__all__ = ["MASK_ID", "N_ID", "PAD_ID", "SEP_ID", "UNKNOWN_ID", "VOCABULARY_SIZE"]

SEP_ID = 1
MASK_ID = 3
PAD_ID = int(TOKEN_ID_OF_CODE[PAD])
UNKNOWN_ID = 6
N_ID = int(TOKEN_ID_OF_CODE[N])
VOCABULARY_SIZE = N_ID + 1
"""Number of ids in use, 12; the models' logits have more columns."""

"""Byte-pair encoding of DNA: a vocabulary of frequent pieces, learned from sequences.

``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4, then A, C, G, N, T and the merged
pieces. The whole tokenizer, case folding included, is in ``tokenizer.json``, so the folder of a
model also loads where only transformers is installed.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import BatchEncoding, PreTrainedTokenizerFast

from megabase.errors import ModelError
from megabase.genome import alphabet
from megabase.models.tokenizers.table import warn_letters

# DNABERT's five, at the same ids.
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# In the order that the trainer gives them ids.
_LETTERS = sorted(alphabet.BASES + "N")
_LONGEST = 64  # bases of the longest token; without a limit runs of N become tokens of their own
_POSITIONS = 4096  # tokens that BigBird reads


def train_bpe(sequences: Iterable[str], vocab_size: int = 32000) -> "BPETokenizer":
    """Learn a byte-pair vocabulary from DNA; the BigBird paper takes pieces of 500 to 1000 bases.

    `vocab_size` counts the five special tokens and five letters (BigBird: 32,000); it comes out
    smaller when the sequences hold too few repeated pairs. Raises :class:`ModelError` when the
    vocabulary cannot hold the letters, or the sequences are empty.
    """
    fewest = len(_SPECIAL) + len(_LETTERS)
    if vocab_size < fewest:
        raise ModelError(
            f"vocab_size must be at least {fewest} (5 special tokens, 5 letters), "
            f"found {vocab_size}"
        )
    tokenizer = _empty()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), initial_alphabet=_LETTERS,
        show_progress=False, max_token_length=_LONGEST,
    )  # fmt: skip
    texts = (text for text in sequences if text)
    first = next(texts, None)
    if first is None:
        raise ModelError("there are no sequences to learn a byte-pair vocabulary from")
    tokenizer.train_from_iterator(chain([first], texts), trainer)
    names = {f"{token[1:-1].lower()}_token": token for token in _SPECIAL}
    return BPETokenizer(tokenizer_object=tokenizer, model_max_length=_POSITIONS, **names)


def _empty() -> Tokenizer:
    """Make a tokenizer without merges: case folding, special tokens, decoding."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    upper = [normalizers.Replace(letter.lower(), letter) for letter in _LETTERS]
    ambiguous = alphabet.AMBIGUITY_LETTERS + alphabet.AMBIGUITY_LETTERS.lower()
    to_n = normalizers.Replace(Regex(f"[{ambiguous}]"), "N")
    tokenizer.normalizer = normalizers.Sequence([*upper, to_n])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", _SPECIAL.index("[CLS]")), ("[SEP]", _SPECIAL.index("[SEP]"))],
    )
    return tokenizer


class BPETokenizer(PreTrainedTokenizerFast):
    """Byte pairs of DNA, ``[CLS]`` before and ``[SEP]`` after.

    Made by :func:`train_bpe` or read from a model folder. Lower case is upper-cased, IUPAC letters
    other than A, C, G, T become N. Takes what :class:`transformers.PreTrainedTokenizerFast` does,
    and ``strict``: by default (True) a character that is not a DNA letter is a :class:`GenomeError`
    with its position, otherwise it becomes ``[UNK]``.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (the library's own form)
    padding_side: str = "right"

    # No __init__: a class with one is rebuilt from the vocabulary alone when it is loaded, and the
    # merges, letters and special tokens of its file are lost.

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # pyright: ignore[reportIncompatibleMethodOverride]
        warn_letters(text, text_pair)
        for part in (text, text_pair) if self.init_kwargs.get("strict", True) else ():
            for item in part if isinstance(part, (list, tuple)) else [part]:
                if isinstance(item, str):
                    for token in self.added_tokens_encoder:  # keeps the positions of an error
                        item = item.replace(token, "N" * len(token))
                    alphabet.encode(item)
        return super()._encode_plus(text, text_pair, **kwargs)

"""Configuration of DNABERT."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig

from megabase.models.base import OwnFamilyConfig, Problems

_UNUSED = ("num_rnn_layer", "rnn", "rnn_dropout", "rnn_hidden", "split", "auto_map")
"""Settings of a recurrent classifier that the released weights do not hold, and of foreign code."""


class DNABERTConfig(OwnFamilyConfig, BertConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """BERT-base over k-mers; the defaults are the published 6-mer model.

    Names are those of ``zhihan1996/DNA_bert_{3,4,5,6}``, whose folders load as they are. Their
    settings for a recurrent classifier (``rnn``, ``num_rnn_layer``, ``rnn_hidden``, ``split``),
    which the released weights do not hold, are left out.

    Parameters
    ----------
    k
        Bases in a k-mer; follows from `vocab_size` (4**k + 5) when None, and decides it when given.
    long_inputs
        ``"error"`` refuses inputs of more than ``max_position_embeddings`` tokens. ``"pieces"``:
        the classifier reads them as pieces of that many tokens, the form
        ``DNABERTTokenizer(long_inputs="pieces")`` gives them, and averages the pooled vectors of
        the pieces. (The published long-input model ran a recurrent network over them instead; its
        weights were not released.)
    **kwargs
        Everything that :class:`transformers.BertConfig` takes.
    """

    model_type = "dnabert"
    family_title = "DNABERT"
    other_model_types = ("bert",)

    vocab_size: int = 4101
    k: int | None = None
    long_inputs: str = "error"
    max_length: int | None = None
    """Longest input in tokens: always ``max_position_embeddings``. Published folders hold a 20
    here, an old default of text generation."""

    def __post_init__(self, **kwargs: Any) -> None:
        for key in _UNUSED:
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)
        self.max_length = self.max_position_embeddings
        problems = Problems("DNABERT configuration", self)
        if self.k is None:
            self.k = next((k for k in range(1, 9) if 4**k + 5 == self.vocab_size), None)
            problems.demand(
                self.k is not None,
                f"vocab_size must be 4**k + 5 (69, 261, 1029 or 4101 for k = 3 to 6), found "
                f"{self.vocab_size}: this is a BERT of another vocabulary",
            )
        else:
            problems.whole("k")
            self.vocab_size = 4**self.k + 5
        problems.one_of("long_inputs", ("error", "pieces"))
        problems.report()

    @property
    def max_bases(self) -> int:
        """Longest sequence in bases: two tokens are special, the k-mers overlap."""
        return self.max_position_embeddings + int(self.k or 0) - 3

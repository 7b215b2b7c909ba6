"""HyenaDNA over k-mers: the ablation of the HyenaDNA paper's Table A.4.

The paper gives neither overlap nor vocabulary; both are our choice, explained in
:mod:`megabase.models.tokenizers.kmer_tokens`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from megabase.models.hyenadna.configuration import HyenaDNAConfig
from megabase.models.tokenizers.kmer_tokens import KmerTokenizer

__all__ = ["KmerHyenaDNA", "kmer_hyenadna"]

_EXTRA_POSITIONS = 2
"""Tokens beyond those of the bases that the published filters have room for."""


class KmerHyenaDNA(NamedTuple):
    """A configuration and the tokenizer that belongs to it."""

    config: HyenaDNAConfig
    tokenizer: KmerTokenizer


def kmer_hyenadna(
    bases: int = 1024, k: int = 6, stride: int | None = None, **settings: Any
) -> KmerHyenaDNA:
    """Make the configuration and the tokenizer of a HyenaDNA over k-mers.

    Parameters
    ----------
    bases
        Longest sequence; the limit in tokens follows from it.
    k, stride
        As for :class:`~megabase.models.tokenizers.kmer_tokens.KmerTokenizer`: 6-mers side by side.
    **settings
        Other fields of :class:`HyenaDNAConfig`, such as ``d_model`` and ``n_layer``.

    Returns
    -------
    KmerHyenaDNA

    Examples
    --------
    >>> config, tokenizer = kmer_hyenadna(bases=1024)
    >>> config.vocab_size, config.vocab_rows, config.max_length
    (4108, 4112, 176)
    """
    tokenizer = KmerTokenizer(k, stride)
    tokens = tokenizer.token_count(bases, add_special_tokens=False) + _EXTRA_POSITIONS
    tokenizer.model_max_length = tokens
    config = HyenaDNAConfig(vocab_size=tokenizer.vocab_size, max_seq_len=tokens, **settings)
    return KmerHyenaDNA(config, tokenizer)

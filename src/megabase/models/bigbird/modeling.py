"""BigBird (Zaheer et al. 2020) for DNA: the classes of transformers, made steady.

transformers' model changes itself when it meets an input too short for sparse attention: from then
on it attends fully at every length. Here the kind of attention is chosen anew for every batch, by
its length alone. transformers also seeds numpy's global random numbers in every training step;
here they are left as they were. The random blocks of training are used in evaluation too, see
``config.random_blocks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from transformers import BigBirdForMaskedLM, BigBirdForSequenceClassification, BigBirdModel
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from megabase.models.bert import BertLike
from megabase.models.bigbird.configuration import GenomicBigBirdConfig


@contextmanager
def _numpy_random_state_kept() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002 (transformers draws from the global state)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class _BigBird(BertLike):
    """Kind of attention and random blocks, for every class below."""

    config_class = GenomicBigBirdConfig
    config: GenomicBigBirdConfig

    def _describe_limit(self) -> tuple[str, str]:
        return (
            "this BigBird",
            "shorten the sequences (truncation=True does), or build the model with more "
            "max_position_embeddings",
        )

    @property
    def _backbone(self) -> BigBirdModel:
        return cast("BigBirdModel", self if isinstance(self, BigBirdModel) else self.bert)

    def _ready(self, tokens: int) -> AbstractContextManager[None]:
        """Attend sparsely to ``config.shortest_sparse`` tokens and more, fully below."""
        config = self.config
        sparse = config.attention_type == "block_sparse" and tokens >= config.shortest_sparse
        wanted = "block_sparse" if sparse else "original_full"
        if self._backbone.attention_type != wanted:
            # transformers builds new layers and then throws their weights away; the random numbers
            # that costs are given back.
            with torch.random.fork_rng(devices=[]):
                self._backbone.set_attention_type(wanted)
            self._set_random_blocks()
        return _numpy_random_state_kept() if sparse else nullcontext()  # sparse draws blocks

    def _set_random_blocks(self) -> None:
        # Nothing but the choice of random blocks looks at the flag of this layer.
        always = self.config.random_blocks == "always"
        for layer in self._backbone.encoder.layer:
            attention = cast("Any", layer).attention.self
            if isinstance(attention, BigBirdBlockSparseAttention):
                attention.training = always or self.training

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""
        super().train(mode)
        self._set_random_blocks()
        return self


class GenomicBigBirdModel(_BigBird, BigBirdModel):  # pyright: ignore
    """Encoder and pooler."""

    library_class = BigBirdModel


class GenomicBigBirdForMaskedLM(_BigBird, BigBirdForMaskedLM):  # pyright: ignore
    """Encoder with a head that predicts hidden tokens."""

    library_class = BigBirdForMaskedLM


class GenomicBigBirdForSequenceClassification(  # pyright: ignore
    _BigBird, BigBirdForSequenceClassification
):
    """Encoder with transformers' head (dense, activation, linear) on the first token."""

    library_class = BigBirdForSequenceClassification

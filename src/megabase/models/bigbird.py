"""BigBird (Zaheer et al. 2020) for DNA: the classes of transformers, made steady.

transformers' model changes itself when it meets an input too short for sparse attention: from then
on it attends fully at every length. Here the kind of attention is chosen anew for every batch, by
its length alone. transformers also seeds numpy's global random numbers in every training step;
here they are left as they were. The random blocks of training are used in evaluation too, see
``config.random_blocks``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    BigBirdConfig,
    BigBirdForMaskedLM,
    BigBirdForSequenceClassification,
    BigBirdModel,
)
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from megabase.models.base import OwnFamilyConfig, Problems
from megabase.models.heads import BertLike


class GenomicBigBirdConfig(OwnFamilyConfig, BigBirdConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """BigBird with the sparsity of its genomics experiments (arXiv 2007.14062, appendix F).

    Blocks of 64 tokens; the first and last block global, a window of three blocks, three random
    blocks; 12 layers of width 768 and 12 heads, 4096 positions, 32,000 byte pairs: the defaults.

    Parameters
    ----------
    random_blocks
        ``"always"``: the random blocks a model was trained with are also used in evaluation.
        ``"training-only"``: evaluation puts the first block in their place, as transformers does
        without saying so; a model then is another function when it is tested.
    **kwargs
        Everything that :class:`transformers.BigBirdConfig` takes. Special tokens are those of
        :class:`megabase.models.tokenizers.bpe.BPETokenizer`.
    """

    model_type = "genomic-bigbird"
    family_title = "BigBird"
    other_model_types = ("big_bird",)

    vocab_size: int = 32000
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    sep_token_id: int | None = 3
    random_blocks: str = "always"
    max_length: int | None = None  # longest input in tokens: always max_position_embeddings

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.max_length = self.max_position_embeddings
        problems = Problems("BigBird configuration", self)
        problems.one_of("random_blocks", ("always", "training-only"))
        problems.one_of("attention_type", ("block_sparse", "original_full"))
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        problems.whole(*sizes, "block_size")
        if not problems.found:
            width, heads = self.hidden_size, self.num_attention_heads
            problems.demand(
                width % heads == 0,
                f"num_attention_heads must divide hidden_size {width}, found {heads}",
            )
            block, longest = self.block_size, self.max_position_embeddings
            problems.demand(
                self.attention_type != "block_sparse" or longest % block == 0,
                f"max_position_embeddings must be a multiple of block_size {block}, "
                f"found {longest}",
            )
        problems.report()

    @property
    def shortest_sparse(self) -> int:
        """Fewest tokens that attention is sparse for; shorter inputs attend to everything."""
        return (5 + 2 * self.num_random_blocks) * self.block_size + 1


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

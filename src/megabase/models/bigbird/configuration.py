"""Configuration of the genomic BigBird."""

from __future__ import annotations

from typing import Any

from transformers import BigBirdConfig

from megabase.models.base import OwnFamilyConfig, Problems


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
    max_length: int | None = None
    """Longest input in tokens: always ``max_position_embeddings``."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.max_length = self.max_position_embeddings
        problems = Problems("BigBird configuration", self)
        problems.one_of("random_blocks", ("always", "training-only"))
        problems.one_of("attention_type", ("block_sparse", "original_full"))
        problems.whole(
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "block_size"
        )
        if not problems.found:
            problems.demand(
                self.hidden_size % self.num_attention_heads == 0,
                f"num_attention_heads must divide hidden_size {self.hidden_size}, "
                f"found {self.num_attention_heads}",
            )
            problems.demand(
                self.attention_type != "block_sparse"
                or self.max_position_embeddings % self.block_size == 0,
                f"max_position_embeddings must be a multiple of block_size {self.block_size}, "
                f"found {self.max_position_embeddings}",
            )
        problems.report()

    @property
    def shortest_sparse(self) -> int:
        """Fewest tokens that attention is sparse for; shorter inputs attend to everything."""
        return (5 + 2 * self.num_random_blocks) * self.block_size + 1

"""Settings of the Transformer baseline."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from megabase.models.validation import Problems

__all__ = ["GPTConfig"]

_POOLINGS = ("mean", "last", "first", "max", "sum", "published_mean", "hf")


class GPTConfig(PreTrainedConfig):
    """Settings of the Transformer baseline of the HyenaDNA paper (arXiv 2306.15794, section 4.1).

    The shell of HyenaDNA with causal attention and learned positions in place of the Hyena
    operator. Defaults are the published two-layer baseline of 529,920 parameters. One error lists
    every problem.

    Attributes
    ----------
    vocab_size, pad_vocab_size_multiple : int
        Tokens, and the multiple that rows of embedding and logits are rounded up to.
    d_model, n_layer : int
        Width and number of blocks.
    d_inner : int or None
        Width inside the MLP; four times the width when None.
    num_heads : int
        Attention heads; must divide the width.
    causal : bool
        Whether a position sees only itself and earlier ones.
    max_position_embeddings : int
        Rows of the position table, which is the longest input in tokens. Positions count from the
        left end of the padded input.
    embed_dropout, resid_dropout, attention_dropout : float
        Dropout of embeddings, block outputs and attention weights.
    layer_norm_epsilon, initializer_range : float
        Epsilon of every LayerNorm; standard deviation of initial weights.
    residual_in_fp32 : bool
        Whether the running sum is kept in float32 at least.
    mask_padding : bool
        Whether padded positions are hidden from attention where real ones could see them. False is
        the published behaviour.
    pooling : str
        How a sequence classifier pools positions (:data:`megabase.layers.pooling.POOLINGS`).
    head_bias : bool
        Whether a classifier's head has a bias.
    pad_token_id, bos_token_id, eos_token_id : int or None
        Special tokens.
    tie_word_embeddings : bool
        Whether the next-token head is the embedding matrix.
    """

    model_type = "megabase_gpt"
    attribute_map = {  # noqa: RUF012 (the library's own form)
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "d_inner",
        "num_attention_heads": "num_heads",
    }
    keys_to_ignore_at_inference = ["hidden_states"]  # noqa: RUF012

    vocab_size: int = 12
    pad_vocab_size_multiple: int = 8
    d_model: int = 128
    n_layer: int = 2
    d_inner: int | None = None
    num_heads: int = 8
    causal: bool = True
    max_position_embeddings: int = 1024
    embed_dropout: float = 0.1
    resid_dropout: float = 0.0
    attention_dropout: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    residual_in_fp32: bool = True
    mask_padding: bool = True
    pooling: str = "mean"
    head_bias: bool = True
    pad_token_id: int | None = 4
    bos_token_id: int | None = 2
    eos_token_id: int | None = 1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)
        kwargs.pop("use_cache", None)
        if self.d_inner is None and isinstance(self.d_model, int):
            self.d_inner = 4 * self.d_model
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        problems = Problems("GPT configuration", self)
        problems.whole(
            "vocab_size",
            "pad_vocab_size_multiple",
            "d_model",
            "n_layer",
            "d_inner",
            "num_heads",
            "max_position_embeddings",
        )
        problems.number("embed_dropout", "resid_dropout", "attention_dropout", high=1.0)
        problems.number("initializer_range", "layer_norm_epsilon")
        problems.one_of("pooling", _POOLINGS)
        if isinstance(self.d_model, int) and isinstance(self.num_heads, int) and self.num_heads > 0:
            problems.demand(
                self.d_model % self.num_heads == 0,
                f"num_heads must divide d_model {self.d_model}, found {self.num_heads}",
            )
        problems.report()

    def _get_generation_parameters(self) -> dict[str, Any]:
        # The library takes every attribute of this name for a misplaced setting of generation.
        found = super()._get_generation_parameters()
        found.pop("max_length", None)
        return found

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding matrix and of the logits."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self.max_position_embeddings

    @property
    def length_setting(self) -> str:
        """Name of the setting that limits the length."""
        return "max_position_embeddings"

    @property
    def is_causal_model(self) -> bool:
        """Whether no position sees a later one."""
        return self.causal

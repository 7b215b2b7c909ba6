"""Settings of a Mamba language model."""

from __future__ import annotations

from typing import Any

from megabase.models.state_space_settings import StateSpaceConfig

__all__ = ["MambaConfig"]


class MambaConfig(StateSpaceConfig):
    """Settings of a Mamba language model (arXiv 2312.00752).

    Names are those of the public state-spaces/mamba code. Defaults are the next-token baseline of
    the Caduceus paper (arXiv 2403.03234), of 468,608 parameters. One error lists every problem.

    Attributes
    ----------
    vocab_size, pad_vocab_size_multiple : int
        Tokens, and the multiple that rows of embedding and logits are rounded up to.
    d_model, n_layer : int
        Width and number of blocks.
    max_seq_len : int or None
        Longest input that evaluation and tokenizers assume. The model itself has no limit.
    ssm_cfg : dict or None
        Settings of the mixers (:class:`~megabase.models.state_space_settings.MixerSettings`).
    rms_norm : bool
        Whether norms are RMSNorm; LayerNorm otherwise.
    fused_add_norm : bool
        A published switch between kernels that give the same numbers; kept, without effect.
    residual_in_fp32 : bool
        Whether the running sum is kept in float32 at least.
    norm_epsilon : float
        Epsilon of the norms.
    initializer_cfg : dict or None
        ``initializer_range`` (0.02), ``rescale_prenorm_residual`` (True) and
        ``n_residuals_per_layer`` (1).
    mask_padding : bool
        Whether padded positions are kept out of convolutions and states where an attention mask
        names them. False is the published behaviour.
    pooling : str
        How a sequence classifier pools positions (:data:`megabase.layers.pooling.POOLINGS`).
    head_bias : bool
        Whether a classifier's head has a bias.
    pad_token_id, bos_token_id, eos_token_id : int or None
        Special tokens.
    tie_word_embeddings : bool
        Whether the next-token head is the embedding matrix (published as ``tie_embeddings``).
    """

    model_type = "megabase_mamba"

    def __post_init__(self, **kwargs: Any) -> None:
        tied = kwargs.pop("tie_embeddings", None)
        if tied is not None:
            self.tie_word_embeddings = bool(tied)
        super().__post_init__(**kwargs)

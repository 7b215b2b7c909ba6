"""Settings of a Mamba language model."""

from __future__ import annotations

from typing import Any

from megabase.models.state_space import StateSpaceConfig


class MambaConfig(StateSpaceConfig):
    """Settings of a Mamba language model (arXiv 2312.00752).

    Names are those of the public state-spaces/mamba code. Defaults are the next-token baseline of
    the Caduceus paper (arXiv 2403.03234), of 468,608 parameters. The other settings are those of
    :class:`megabase.models.base.LanguageModelConfig`; the last was published as ``tie_embeddings``.

    Attributes
    ----------
    max_seq_len : int or None
        Longest input that evaluation and tokenizers assume. The model itself has no limit.
    ssm_cfg : dict or None
        Settings of the mixers (:class:`megabase.models.state_space.MixerSettings`).
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
    """

    model_type = "megabase_mamba"

    def __post_init__(self, **kwargs: Any) -> None:
        tied = kwargs.pop("tie_embeddings", None)
        if tied is not None:
            self.tie_word_embeddings = bool(tied)
        super().__post_init__(**kwargs)

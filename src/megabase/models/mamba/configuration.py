"""Settings of a Mamba language model, and those that Caduceus shares with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from megabase.models.base import LanguageModelConfig, Problems

_IGNORED_MIXER_KEYS = ("layer", "use_fast_path", "device", "dtype")
"""Entries of a published ``ssm_cfg`` that do not change the numbers: the kind of mixer, which is
checked, and switches between kernels."""


@dataclass(frozen=True)
class MixerSettings:
    """Settings of one Mamba mixer: the entries of ``ssm_cfg``, filled up with defaults."""

    d_state: int = 16
    """States per inner channel."""
    d_conv: int = 4
    """Taps of the short convolution."""
    expand: float = 2
    """Inner channels over width."""
    dt_rank: int | str = "auto"
    """Rank of the step sizes; ``auto`` is the width over 16, rounded up."""
    dt_min: float = 1e-3
    """Smallest initial step size."""
    dt_max: float = 0.1
    """Largest initial step size."""
    dt_init: str = "random"
    """Initial weights of the step sizes: ``random`` or ``constant``."""
    dt_scale: float = 1.0
    """Factor on those weights."""
    dt_init_floor: float = 1e-4
    """Lower bound of initial step sizes."""
    conv_bias: bool = True
    """Whether the convolution has a bias."""
    bias: bool = False
    """Whether the projections in and out have biases."""

    def check(self, problems: Problems) -> None:
        """Add what is wrong to the problems of the whole configuration."""
        own = Problems("ssm_cfg", self)
        own.whole("d_state", "d_conv")
        own.number("expand", "dt_scale", "dt_min", "dt_max", "dt_init_floor", low=1e-12)
        if self.dt_rank != "auto":
            own.whole("dt_rank")
        own.one_of("dt_init", ("random", "constant"))
        problems.found += [f"ssm_cfg: {text}" for text in own.found]

    def layer_options(self) -> dict[str, Any]:
        """Give the arguments of :class:`megabase.layers.mamba.MambaMixer` besides the width."""
        names = ("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias")
        return {name: getattr(self, name) for name in names}


class StateSpaceConfig(LanguageModelConfig):
    """Settings of both families; see :class:`megabase.models.mamba.MambaConfig`."""

    n_layer: int = 4
    max_seq_len: int | None = None
    ssm_cfg: dict[str, Any] | None = None
    rms_norm: bool = True
    fused_add_norm: bool = True
    residual_in_fp32: bool = False
    norm_epsilon: float = 1e-5
    initializer_cfg: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("num_attention_heads", None)
        width = kwargs.pop("hidden_size", None)
        if width is not None:
            self.d_model = width * self.d_model // self.hidden_size
        self.ssm_cfg = dict(self.ssm_cfg or {})
        self.initializer_cfg = dict(self.initializer_cfg or {})
        super().__post_init__(**kwargs)

    def _check(self, problems: Problems) -> None:
        if self.max_seq_len is not None:
            problems.whole("max_seq_len")
        problems.number("norm_epsilon")
        known = set(MixerSettings.__dataclass_fields__)
        given = dict(self.ssm_cfg or {})
        unknown = sorted(set(given) - known - set(_IGNORED_MIXER_KEYS))
        problems.demand(
            not unknown, f"ssm_cfg knows {', '.join(sorted(known))}, found {', '.join(unknown)}"
        )
        problems.demand(
            given.get("layer") in (None, "Mamba1"),
            f"ssm_cfg.layer must be Mamba1, found {given.get('layer')!r}",
        )
        if not unknown:
            self.mixer.check(problems)

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden vector."""
        return self.d_model

    @property
    def num_attention_heads(self) -> int:
        """One: there is no attention, but adapters divide the width by this."""
        return 1

    def to_dict(self) -> dict[str, Any]:
        """Give all settings, and what other libraries look for under these names."""
        heads = self.num_attention_heads
        return {**super().to_dict(), "hidden_size": self.hidden_size, "num_attention_heads": heads}

    def to_diff_dict(self) -> dict[str, Any]:
        """Give the settings that a file holds."""
        found = super().to_diff_dict()
        return {k: v for k, v in found.items() if k not in ("hidden_size", "num_attention_heads")}

    @property
    def mixer(self) -> MixerSettings:
        """Settings of the mixers, complete."""
        known = MixerSettings.__dataclass_fields__
        return MixerSettings(**{k: v for k, v in (self.ssm_cfg or {}).items() if k in known})

    @property
    def initializer_range(self) -> float:
        """Standard deviation of initial embeddings and classifier weights."""
        return float((self.initializer_cfg or {}).get("initializer_range", 0.02))

    @property
    def residual_scale(self) -> float:
        """Factor on the initial weights of what joins the running sum."""
        settings = self.initializer_cfg or {}
        if not settings.get("rescale_prenorm_residual", True):
            return 1.0
        return 1 / math.sqrt(int(settings.get("n_residuals_per_layer", 1)) * self.n_layer)

    @property
    def max_length(self) -> int | None:
        """Longest input in tokens that evaluation and tokenizers assume; None when unrecorded."""
        return self.max_seq_len


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
        Settings of the mixers (:class:`MixerSettings`).
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

"""Settings that the Mamba and Caduceus families share, under their published names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from megabase.models.validation import Problems

__all__ = ["MixerSettings", "StateSpaceConfig"]

_POOLINGS = ("mean", "last", "first", "max", "sum", "published_mean", "hf")
_STEP_STARTS = ("random", "constant")
_MIXER_KINDS = (None, "Mamba1")
# Published switches between kernels, which give the same numbers.
_KERNEL_SWITCHES = ("use_fast_path", "device", "dtype")


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
    """No initial step size is smaller."""
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
        own.one_of("dt_init", _STEP_STARTS)
        problems.found += [f"ssm_cfg: {text}" for text in own.found]

    def layer_options(self) -> dict[str, Any]:
        """Give the arguments of :class:`megabase.layers.mamba.MambaMixer` beside the width."""
        return {
            "d_state": self.d_state,
            "d_conv": self.d_conv,
            "expand": self.expand,
            "dt_rank": self.dt_rank,
            "conv_bias": self.conv_bias,
            "bias": self.bias,
        }


class StateSpaceConfig(PreTrainedConfig):
    """What both families are set by; see their own configurations for the meaning."""

    attribute_map = {  # noqa: RUF012 (the library's own form)
        "num_hidden_layers": "n_layer",
    }
    keys_to_ignore_at_inference = ["hidden_states", "cache"]  # noqa: RUF012

    vocab_size: int = 12
    pad_vocab_size_multiple: int = 8
    d_model: int = 128
    n_layer: int = 4
    max_seq_len: int | None = None
    ssm_cfg: dict[str, Any] | None = None
    rms_norm: bool = True
    fused_add_norm: bool = True
    residual_in_fp32: bool = False
    norm_epsilon: float = 1e-5
    initializer_cfg: dict[str, Any] | None = None
    mask_padding: bool = True
    pooling: str = "mean"
    head_bias: bool = True
    pad_token_id: int | None = 4
    bos_token_id: int | None = 2
    eos_token_id: int | None = 1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Folders of other projects name code of their own here; ours needs none, and a folder saved
        # again must not send readers to theirs.
        kwargs.pop("auto_map", None)
        kwargs.pop("use_cache", None)
        kwargs.pop("num_attention_heads", None)
        width = kwargs.pop("hidden_size", None)
        if width is not None:
            self.d_model = width * self.d_model // self.hidden_size
        self.ssm_cfg = dict(self.ssm_cfg or {})
        self.initializer_cfg = dict(self.initializer_cfg or {})
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        problems = Problems(f"{type(self).__name__.removesuffix('Config')} configuration", self)
        problems.whole("vocab_size", "pad_vocab_size_multiple", "d_model", "n_layer")
        if self.max_seq_len is not None:
            problems.whole("max_seq_len")
        problems.number("norm_epsilon")
        problems.one_of("pooling", _POOLINGS)
        known = set(MixerSettings.__dataclass_fields__)
        given = dict(self.ssm_cfg or {})
        unknown = sorted(set(given) - known - {"layer", *_KERNEL_SWITCHES})
        problems.demand(
            not unknown, f"ssm_cfg knows {', '.join(sorted(known))}, found {', '.join(unknown)}"
        )
        problems.demand(
            given.get("layer") in _MIXER_KINDS,
            f"ssm_cfg.layer must be Mamba1, found {given.get('layer')!r}",
        )
        if not unknown:
            self.mixer.check(problems)
        self._check_family(problems)
        problems.report()

    def _check_family(self, problems: Problems) -> None:
        """Add what is wrong with the settings of the family itself."""

    def _get_generation_parameters(self) -> dict[str, Any]:
        # The library takes every attribute of this name for a misplaced setting of generation.
        found = super()._get_generation_parameters()
        found.pop("max_length", None)
        return found

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
    def vocab_rows(self) -> int:
        """Rows of the embedding matrix and of the logits."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    @property
    def max_length(self) -> int | None:
        """Longest input in tokens that evaluation and tokenizers assume; None when nothing says."""
        return self.max_seq_len

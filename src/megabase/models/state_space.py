"""What Mamba and Caduceus share: settings, initial weights, groups, shapes of published weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from megabase.errors import CheckpointError
from megabase.layers.linear import can_read
from megabase.layers.mamba import MambaMixer, Norm
from megabase.models.base import DNAModel, LanguageModelConfig, Problems, optimizer_groups
from megabase.models.checkpoints.reader import ConvertedModel, build
from megabase.models.families import family_of

_IGNORED_MIXER_KEYS = ("layer", "use_fast_path", "device", "dtype")
"""Entries of a published ``ssm_cfg`` that do not change the numbers: the kind of mixer, which is
checked, and switches between kernels."""


@dataclass(frozen=True)
class _MixerSettings:
    """Settings of one Mamba mixer: the entries of ``ssm_cfg``, filled up with defaults."""

    d_state: int = 16  # states per inner channel
    d_conv: int = 4  # taps of the short convolution
    expand: float = 2  # inner channels over width
    dt_rank: int | str = "auto"  # rank of the step sizes: the width over 16, rounded up
    dt_min: float = 1e-3  # smallest initial step size
    dt_max: float = 0.1  # largest initial step size
    dt_init: str = "random"  # initial weights of the step sizes, or constant
    dt_scale: float = 1.0  # factor on those weights
    dt_init_floor: float = 1e-4  # lower bound of initial step sizes
    conv_bias: bool = True
    bias: bool = False  # of the projections in and out

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

    computed = ("hidden_size", "num_attention_heads")

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
        known = set(_MixerSettings.__dataclass_fields__)
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

    @property
    def mixer(self) -> _MixerSettings:
        """Settings of the mixers, complete."""
        known = _MixerSettings.__dataclass_fields__
        return _MixerSettings(**{k: v for k, v in (self.ssm_cfg or {}).items() if k in known})

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


class StateSpacePreTrainedModel(DNAModel):
    """Initial weights, optimizer groups and tied tensors of both families."""

    config: StateSpaceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the published initial values.

        Embeddings and classifiers N(0, range^2); other linear maps and convolutions as torch does,
        with biases of linear maps 0, and ``out_proj`` divided by the root of the number of blocks;
        ``A = -(1, 2, ..., N)``, ``D = 1``; initial step sizes log-uniform from ``dt_min`` to
        ``dt_max``.
        """
        if isinstance(module, nn.Embedding | nn.Linear | nn.Conv1d):
            if isinstance(module, nn.Embedding) or module is getattr(self, "score", None):
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bias: Any = getattr(module, "bias", None)
            if isinstance(module, nn.Conv1d) and bias is not None:
                bound = 1 / math.sqrt(module.kernel_size[0])
                init.uniform_(bias, -bound, bound)
            elif bias is not None:
                init.zeros_(bias)
        elif isinstance(module, Norm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MambaMixer):
            _init_mixer(module, self.config.mixer, self.config.residual_scale)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer.

        Biases, embeddings (and a head tied to them), LayerNorms, ``A_log`` and ``D`` do not decay.
        RMSNorms do, as in the public training code, whose list of exceptions does not know them.
        """
        spared = {
            id(module.weight)
            for module in self.modules()
            if isinstance(module, nn.Embedding) or (isinstance(module, Norm) and not module.rms)
        }

        def group_of(name: str, parameter: nn.Parameter) -> str:
            last = name.rsplit(".", 1)[-1]
            keeps = id(parameter) in spared or last in ("A_log", "D", "bias")
            return "not_decayed" if keeps else "decayed"

        settings = {"decayed": (lr, weight_decay), "not_decayed": (lr, 0.0)}
        return optimizer_groups(self, settings, group_of)

    def mixer_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Give the mask the mixers need, or None when nothing has to be hidden."""
        if attention_mask is None or not self.config.mask_padding:
            return None
        mask = attention_mask.bool()
        looks = self.padded_side is None and can_read(mask)
        return None if looks and bool(mask.all()) else mask


def _init_mixer(mixer: MambaMixer, settings: _MixerSettings, residual_scale: float) -> None:
    """Draw the initial weights of a mixer."""
    # Drawn for a copy too, so that the numbers after it do not depend on what is tied or loaded.
    drawn = torch.empty_like(mixer.out_proj.weight, device=mixer.D.device)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    init.copy_(mixer.out_proj.weight, drawn * residual_scale)
    bound = settings.dt_scale * mixer.dt_rank**-0.5
    if settings.dt_init == "constant":
        init.constant_(mixer.dt_proj.weight, bound)
    else:
        init.uniform_(mixer.dt_proj.weight, -bound, bound)
    low, high = math.log(settings.dt_min), math.log(settings.dt_max)
    steps = torch.exp(torch.rand_like(mixer.dt_proj.bias) * (high - low) + low)
    steps = steps.clamp(min=settings.dt_init_floor)
    # The inverse of softplus, so that the first step sizes are `steps`.
    init.copy_(mixer.dt_proj.bias, steps + torch.log(-torch.expm1(-steps)))
    rates = torch.arange(1, mixer.d_state + 1, dtype=mixer.A_log.dtype, device=mixer.A_log.device)
    init.copy_(mixer.A_log, torch.log(rates).expand_as(mixer.A_log))
    init.ones_(mixer.D)


def read_shapes(
    tensors: dict[str, Tensor], embedding: str, head: str, layers: str, mixer: str, source: object
) -> dict[str, Any]:
    """Read from the weights, by our names, the settings that they decide.

    The embedding is filled in from the `head` where a file holds one of the two. `layers` is what
    the names of blocks begin with, and `mixer` what follows the number of a block in the names of
    its mixer. CheckpointError when a tensor that decides is missing.
    """
    tied = tensors.get(head)
    if tied is not None:  # a file may hold one of two tied tensors
        tensors.setdefault(embedding, tied)
    first = f"{layers}0.{mixer}"
    needed = [embedding, *(f"{first}{end}" for end in ("A_log", "conv1d.weight", "dt_proj.weight"))]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(f"{source}: expected {', '.join(missing)}, which is not there")
    rows, width = tensors[embedding].shape
    inner, states = tensors[f"{first}A_log"].shape
    rank = tensors[f"{first}dt_proj.weight"].shape[1]
    norms = (f"{layers}0.norm.bias", f"{layers}0.norm.submodule.bias")
    settings: dict[str, Any] = {
        "d_model": width,
        "n_layer": len({n[len(layers) :].split(".")[0] for n in tensors if n.startswith(layers)}),
        "ssm_cfg": {
            "d_state": states,
            "d_conv": tensors[f"{first}conv1d.weight"].shape[-1],
            "expand": inner / width if inner % width else inner // width,
            "dt_rank": _MixerSettings.dt_rank if rank == -(-width // 16) else rank,
            "conv_bias": f"{first}conv1d.bias" in tensors,
            "bias": f"{first}in_proj.bias" in tensors,
        },
        "rms_norm": not any(name in tensors for name in norms),
    }
    if tied is not None:
        settings["tie_word_embeddings"] = torch.equal(tied, tensors[embedding])
    if rows != 16:  # the published vocabulary of 12, padded
        settings.update(vocab_size=rows, pad_vocab_size_multiple=1)
    if "score.weight" in tensors:
        settings["num_labels"] = tensors["score.weight"].shape[0]
        settings["head_bias"] = "score.bias" in tensors
    return settings


def build_found(
    config: StateSpaceConfig, tensors: Mapping[str, Tensor], source: object, *,
    bare: bool, notes: Sequence[str], dropped: tuple[str, ...],
) -> ConvertedModel:  # fmt: skip
    """Build the classifier, the bare model or the language model that tensors are of.

    A language-model head that a classifier carries along is left out.
    """
    family = family_of(config.model_type)
    assert family is not None
    classes = family.classes()
    if "score.weight" in tensors:
        dropped += tuple(name for name in tensors if name.startswith("lm_head."))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
        model_class = classes["sequence-classification"]
    elif bare:
        model_class = classes["base"]
        prefix = f"{model_class.base_model_prefix}."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    else:
        model_class = next(classes[kind] for kind in ("masked-lm", "causal-lm") if kind in classes)
    model, _ = build(model_class, config, tensors, source, computed="complement_map$")
    return ConvertedModel(model, tuple(notes), dropped)

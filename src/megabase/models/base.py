"""What the families share below their heads: settings, tied tensors, arguments, groups."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from megabase.errors import ConfigError, InputError
from megabase.layers.backbone import Backbone
from megabase.layers.pooling import POOLINGS

# Arguments that callers of transformers models pass to any model: None, False or 0 in one of them
# must not stop a family that has nothing of the kind.
_STANDARD = frozenset(TransformersKwargs.__annotations__) | {
    "cache_params", "cache_position", "encoder_attention_mask", "encoder_hidden_states",
    "head_mask", "labels", "logits_to_keep", "past_key_values", "shift_labels", "token_type_ids",
    "use_cache",
}  # fmt: skip


class Problems:
    """Collects everything that is wrong with the attributes of `settings`, for one error."""

    def __init__(self, title: str, settings: object) -> None:
        self.title, self.settings = title, settings
        self.found: list[str] = []

    def whole(self, *names: str, at_least: int = 1) -> None:
        """Demand whole numbers of at least `at_least`."""
        for name in names:
            value = getattr(self.settings, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
                self.found.append(f"{name} must be a whole number >= {at_least}, found {value!r}")

    def number(self, *names: str, low: float = 0.0, high: float = float("inf")) -> None:
        """Demand numbers from `low` to `high`."""
        for name in names:
            value = getattr(self.settings, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.found.append(f"{name} must be a number, found {value!r}")
            elif not low <= value <= high:
                span = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
                self.found.append(f"{name} must be {span}, found {value!r}")

    def one_of(self, name: str, choices: Iterable[str]) -> None:
        """Demand one of the named choices."""
        value, known = getattr(self.settings, name), tuple(choices)
        self.demand(value in known, f"{name} must be one of {', '.join(known)}, found {value!r}")

    def demand(self, holds: bool, message: str) -> None:
        """Add `message` unless `holds`."""
        if not holds:
            self.found.append(message)

    def report(self) -> None:
        """Raise one ConfigError that lists every problem, if there is any."""
        if self.found:
            raise ConfigError(f"{self.title}: " + "; ".join(self.found))


class LanguageModelConfig(PreTrainedConfig):
    """Settings that HyenaDNA, GPT, Mamba and Caduceus have in common.

    Attributes
    ----------
    vocab_size, pad_vocab_size_multiple : int
        Tokens, and the multiple that rows of embedding and logits are rounded up to.
    d_model, n_layer : int
        Width and number of blocks.
    mask_padding : bool
        Whether padded positions are hidden from real ones that could see them. False is the
        published behavior.
    pooling, head_bias : str, bool
        How a classifier pools positions (:data:`.pooling.POOLINGS`); whether its head has a bias.
    tie_word_embeddings : bool
        Whether the head is the embedding matrix.
    """

    attribute_map = {"num_hidden_layers": "n_layer"}  # noqa: RUF012 (the library's own form)
    keys_to_ignore_at_inference = ["hidden_states", "cache"]  # noqa: RUF012
    computed: ClassVar[tuple[str, ...]] = ()

    vocab_size: int = 12
    pad_vocab_size_multiple: int = 8
    d_model: int = 128
    n_layer: int = 2
    mask_padding: bool = True
    pooling: str = "mean"
    head_bias: bool = True
    pad_token_id: int | None = 4
    bos_token_id: int | None = 2
    eos_token_id: int | None = 1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Folders of other projects name code of their own in auto_map; ours needs none, and a
        # folder saved again must not send readers to theirs.
        kwargs.pop("auto_map", None)
        kwargs.pop("use_cache", None)
        super().__post_init__(**kwargs)
        problems = Problems(f"{type(self).__name__.removesuffix('Config')} configuration", self)
        problems.whole("vocab_size", "pad_vocab_size_multiple", "d_model", "n_layer")
        problems.one_of("pooling", POOLINGS)
        self._check(problems)
        problems.report()

    def _check(self, problems: Problems) -> None:
        """Add what is wrong with the other settings."""

    def to_dict(self) -> dict[str, Any]:
        """Give all settings, and what other libraries look for under the names of `computed`."""
        return super().to_dict() | {name: getattr(self, name) for name in self.computed}

    def to_diff_dict(self) -> dict[str, Any]:
        """Give the settings that a file holds."""
        return {k: v for k, v in super().to_diff_dict().items() if k not in self.computed}

    def _get_generation_parameters(self) -> dict[str, Any]:
        # transformers takes every attribute of this name for a misplaced setting of generation.
        found = super()._get_generation_parameters()
        found.pop("max_length", None)
        return found

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding matrix and of the logits."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple


class OwnFamilyConfig:
    """A configuration whose class loads folders of its own family only.

    `family_title` names it in the error message; `other_model_types` are those of its published
    folders.
    """

    family_title: ClassVar[str]
    other_model_types: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def get_config_dict(cls, source: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read ``config.json``; a folder of another family is a ConfigError."""
        parent: Any = super()
        config, rest = parent.get_config_dict(source, **kwargs)
        own: str = cls.model_type  # pyright: ignore[reportAttributeAccessIssue]
        found = config.get("model_type", own)
        if found not in (*cls.other_model_types, own):
            raise ConfigError(
                f"{source} holds a model of the family {found!r}, not a {cls.family_title}; load "
                "it with the classes of its own family, or with AutoModel, which picks them"
            )
        return {**config, "model_type": own}, rest


class DNAModel(PreTrainedModel):
    """A language model of ours, with or without a head.

    It names its shared tensors whatever its configuration and head: a checkpoint may hold any one
    of the copies. `base_class` is the family's model without a head, which heads keep under
    ``base_model_prefix``, and `token_table` the name of the token embedding inside.
    """

    supports_gradient_checkpointing = True
    base_class: ClassVar[type[PreTrainedModel]]
    token_table: ClassVar[str]
    padded_side: Literal["left", "right"] | None = None
    """Side on which every mask has its padding, where that is known: no mask is looked at then."""

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Map copies of shared tensors, if among the parameters `names`, to what each copies."""
        return {}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Name every copy of a shared tensor, and the name it is a copy of."""
        names = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        return {copy: first for copy, first in self.tied_names(names).items() if copy in names}

    @property
    def _tied_weights_keys(self) -> dict[str, str]:  # pyright: ignore
        # transformers reads these as patterns when it saves, to know which copies may be left out.
        tied = self.get_expanded_tied_weights_keys()
        return {f"{re.escape(copy)}$": first for copy, first in tied.items()}

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.base_model.get_submodule(self.token_table)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.base_model.set_submodule(self.token_table, value)

    def get_submodule(self, target: str) -> nn.Module:
        """Give a module by its name.

        peft looks for the token table under BERT's name, and otherwise for a table of as many rows
        as there are tokens; ours have more rows, and names of their own.
        """
        if target == "embeddings.word_embeddings":
            return self.get_input_embeddings()
        return super().get_submodule(target)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of tokens, which is then that of rows; see transformers."""
        table: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        config: Any = self.config
        if config.vocab_rows != table.weight.shape[0]:
            config.pad_vocab_size_multiple = 1
        return table

    def _given(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Give the argument that is there; ConfigError when not exactly one is."""
        given = [value for value in (input_ids, inputs_embeds) if value is not None]
        if len(given) != 1:
            raise ConfigError("give exactly one of input_ids and inputs_embeds")
        return given[0]

    def _collects(self, wanted: bool | None) -> bool:
        """Whether hidden states are returned: as the caller says, or else the configuration."""
        return bool(self.config.output_hidden_states if wanted is None else wanted)


def refuse_rest(model: nn.Module, rest: Mapping[str, Any], allowed: Iterable[str] = ()) -> None:
    """Raise ConfigError for arguments that a forward pass cannot honor.

    Those named in `allowed` are honored. Standard arguments of transformers may be there as None,
    False or 0, and ``use_cache`` without a cache changes nothing.
    """
    for name, value in rest.items():
        if name in allowed or name == "use_cache":
            continue
        kind = type(model).__name__
        if name not in _STANDARD:
            own = [p for p in inspect.signature(model.forward).parameters if p != "rest"]
            taken = dict.fromkeys((*own, "return_dict", *allowed))
            raise ConfigError(
                f"{kind} has no argument {name!r}; its forward pass takes {', '.join(taken)}"
            )
        # is_causal=False requests something; the others do not when they are false.
        off = name != "is_causal" and type(value) in (bool, int) and not value
        if value is not None and not off:
            raise ConfigError(
                f"{kind} cannot honor {name}: it has nothing of the kind; leave the argument out"
            )


def positions_left(length: int, kernel: int, pools: Iterable[int]) -> int:
    """Count the positions that convolutions leave, each with the pooling after it (1: none)."""
    for pool in pools:
        length = max(length - kernel + 1, 0) // pool
    return length


def check_length(length: int, limit: int, model: str, advice: str) -> None:
    """Refuse an input of more than `limit` tokens with an InputError that names both lengths."""
    if length > limit:
        raise InputError(
            f"the input has {length:,} tokens, {model} reads {limit:,} at most; {advice}"
        )


def optimizer_groups(
    module: nn.Module, settings: Mapping[str, tuple[float, float]],
    group_of: Callable[[str, nn.Parameter], str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Group the trained parameters of a module for an optimizer; empty groups are left out.

    `settings` holds the learning rate and weight decay of every group, and `group_of` gives the
    group of a parameter by its name and value.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, (lr, decay) in settings.items():
        groups[name] = {"name": name, "params": [], "lr": lr, "weight_decay": decay}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[group_of(name, parameter)]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def grouped_parameters(
    module: nn.Module, lr: float, weight_decay: float, *, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Group parameters into those that decay and those that do not, for an optimizer.

    Biases and the weights of norms (everything of one dimension) do not decay, as in the public
    BERT and GenomicBenchmarks recipes; embedding tables do where `decay_embeddings`.
    """
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and not decay_embeddings]
    spared = {id(table.weight) for table in tables}
    return optimizer_groups(
        module,
        {"decay": (lr, weight_decay), "no decay": (lr, 0.0)},
        lambda _, p: "decay" if p.ndim > 1 and id(p) not in spared else "no decay",
    )


def checkpoint_activations(model: PreTrainedModel, segment: int = 1) -> None:
    """Recompute the activations of all blocks in the backward pass instead of keeping them.

    `segment` consecutive blocks keep one input between them; ConfigError when it is above 1 and the
    family recomputes single blocks only.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if segment != 1 and not backbones:
        raise ConfigError(
            f"{type(model).__name__} cannot checkpoint in segments of {segment} blocks, only "
            "HyenaDNA and GPT can; leave checkpointing_stretch at 1"
        )
    # The older name is what early versions of transformers have, and later ones warn of.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
    for backbone in backbones:
        backbone.segment = segment

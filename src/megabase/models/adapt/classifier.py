"""A model with a head for labels: built from settings, and saved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from megabase.errors import ConfigError
from megabase.models.adapt.language_model import config_fields, new_model
from megabase.models.adapt.lora import ADAPTER_FOLDER, add_adapters, merged_state, save_adapter
from megabase.models.auto import load_config, load_model
from megabase.models.checkpoints.convert import write_model
from megabase.models.families import FAMILIES, all_families, family_of
from megabase.models.presets import find_preset
from megabase.models.tokenizers.character import DNATokenizer
from megabase.models.tokenizers.encoder import TokenEncoder, named_fields
from megabase.settings import HeadConfig, LoraConfig, StartConfig

# Field that holds the longest input of a family, positions to add to the longest sequence, and the
# least that can be built (shorter sequences are padded).
_LENGTH_FIELDS = {
    "hyenadna": ("max_seq_len", 2, 0),
    "gpt": ("max_position_embeddings", 0, 1024),
    "cnn": ("max_length", 0, 57),
    "deepsea": ("max_length", 0, 163),
}
_POOLING_FIELDS = ("pooling", "pooling_strategy")
"""What the families call the way from positions to one vector."""
# Names of transformers for what a head answers.
_PROBLEMS = {
    "classes": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
    "nucleotides": "single_label_classification",
}


@dataclass(frozen=True)
class Labels:
    """The answers of a head."""

    kind: str
    """classes, multi_label, regression or nucleotides."""
    names: tuple[str, ...]
    """One for each output."""

    @property
    def per_base(self) -> bool:
        """Whether every base has a label of its own."""
        return self.kind == "nucleotides"

    @property
    def task(self) -> str:
        """Kind of model: one of :data:`megabase.models.families.KINDS`."""
        return "token-classification" if self.per_base else "sequence-classification"

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a model's configuration."""
        return {
            "problem_type": _PROBLEMS[self.kind],
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
        }


def family_of_start(start: StartConfig, task: str = "sequence-classification") -> str:
    """Name the family of the model that a run starts from; it must have the kind of the task."""
    if start.model is not None:
        found = family_of(load_config(start.model).model_type)
        name = "" if found is None else found.name
    elif start.preset is not None:
        name = find_preset(start.preset).family
    else:
        name = start.family or ""
    if task not in FAMILIES[name].classes():
        what = "nucleotides" if task == "token-classification" else "sequences"
        fitting = [family.name for family in all_families() if task in family.classes()]
        raise ConfigError(
            f"family {name!r} has no model for labels of {what}; take one of {', '.join(fitting)}"
        )
    return name


def build_classifier(
    start: StartConfig,
    head: HeadConfig,
    lora: LoraConfig,
    family: str,
    labels: Labels,
    tokens: TokenEncoder,
    longest: int,
) -> PreTrainedModel:
    """Build a model with a head for labels, from torch's current seed.

    `longest` is the longest sequence of all splits in tokens; a new model is built for it where its
    family has such a setting and the settings do not say otherwise.
    """
    if labels.per_base and head.pooling is not None:
        raise ConfigError(
            f"head.pooling is {head.pooling}, but with labels of nucleotides every base "
            "answers for itself; leave it out"
        )
    fields: dict[str, Any] = {**labels.fields, **_head_fields(start, head, family)}
    if start.model is not None and not start.from_scratch:
        model = load_model(start.model, labels.task, new_head=True, **fields).train()
    else:
        model = _new_model(start, family, labels.task, fields, tokens, longest)
    # For whoever loads the folder: what is answered, and how the run's metrics were taken.
    model.config.label_kind = labels.kind
    model.config.strand_average = head.strand_average
    if head.freeze or head.freeze_blocks or head.freeze_embeddings:
        _freeze(model, head)
    if lora.rank:
        add_adapters(model, model.base_model, lora)
    return model


def _head_fields(start: StartConfig, head: HeadConfig, family: str) -> dict[str, Any]:
    """Give the fields of the configuration that the settings name; all must be the family's."""
    known = config_fields(next(iter(_classes(family).values())).config_class)
    unknown = sorted(str(name) for name in set(start.overrides) - known)
    if unknown:
        near = [difflib.get_close_matches(name, known, n=1) for name in unknown]
        hints = [f"did you mean {n[0]!r}?" for n in near if n]
        raise ConfigError(
            f"overrides has {', '.join(unknown)}, which the family {family} does not have"
            + (f"; {hints[0]}" if hints else "")
        )
    fields = dict(start.overrides)
    if head.pooling is not None:
        name = next((name for name in _POOLING_FIELDS if name in known), None)
        if name is None:
            raise ConfigError(
                f"head.pooling is {head.pooling}, but the family {family} has its own way "
                "from positions to a vector; leave it out"
            )
        fields[name] = head.pooling
    return fields


def _new_model(
    start: StartConfig,
    family: str,
    task: str,
    fields: Mapping[str, Any],
    tokens: TokenEncoder,
    longest: int,
) -> PreTrainedModel:
    """Build a model with fresh weights, in the shape of another one or of its own."""
    model_class = _classes(family)[task]
    shape: dict[str, Any] = {}
    if family in _LENGTH_FIELDS:
        name, extra, least = _LENGTH_FIELDS[family]
        shape[name] = max(longest + extra, least)
    if start.model is not None:
        loaded = load_config(start.model)
        known = config_fields(model_class.config_class)
        for name in known - {"architectures", "id2label", "label2id", "problem_type"}:
            shape[name] = getattr(loaded, name)
    shape.update({**named_fields(start), **fields})
    # A vocabulary that is learned or counted decides the rows of the embedding; so does one that a
    # published shape is too small for.
    too_small = shape.get("vocab_size", tokens.size) < tokens.size
    if too_small or not isinstance(tokens.tokenizer, DNATokenizer):
        shape.update(vocab_size=tokens.size, pad_token_id=tokens.pad_id)
    return new_model(model_class, shape, "model")


def _classes(family: str) -> Mapping[str, Any]:
    return FAMILIES[family].classes()


def _freeze(model: PreTrainedModel, head: HeadConfig) -> None:
    """Keep everything below the head, or the embedding and the first blocks, as it is."""
    base = model.base_model
    if base is model:
        setting = "freeze" if head.freeze else "freeze_blocks"
        raise ConfigError(
            f"head.{setting} is set, but {type(model).__name__} has no part below its head"
        )
    if head.freeze:
        base.requires_grad_(False)
        return
    if head.freeze_embeddings or head.freeze_blocks:
        model.get_input_embeddings().requires_grad_(False)
    blocks = _blocks(base)
    if head.freeze_blocks > len(blocks):
        raise ConfigError(
            f"head.freeze_blocks is {head.freeze_blocks}, but {type(model).__name__} has "
            f"{len(blocks)} blocks"
        )
    for block in blocks[: head.freeze_blocks]:
        block.requires_grad_(False)


def _blocks(base: nn.Module) -> list[nn.Module]:
    """Give the blocks of a model: the members of its first list of modules that holds any."""
    for module in base.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            return list(module)
    return []


def save_classifier(
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    state: Mapping[str, Tensor],
    lora: LoraConfig | None = None,
    start: StartConfig | None = None,
) -> None:
    """Write weights, configuration with class names and tokenizer into a folder that exists.

    `state` is the full state dict, which may differ from the model's own when it is sharded.
    Adapters are folded into the weights; where the settings ask for it, they are also written next
    to them with the head, for which `start` names what they were trained on.
    """
    whole = state
    if lora is not None and lora.rank:
        whole = merged_state(model, state)
        if lora.save == "adapter" and start is not None:
            names = ("id2label", "label2id", "problem_type", *_POOLING_FIELDS, *start.overrides)
            save_adapter(model, folder / ADAPTER_FOLDER, state, lora, start.model, names)
    write_model(folder, model, tokenizer, whole)


def balanced_weights(counts: Mapping[str, int]) -> list[float]:
    """Give every class the weight n / (classes * its examples), so that all weigh the same."""
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ConfigError(
            "head.class_weights is balanced, but no training example is of the class "
            f"{empty[0]!r}; give the weights as numbers"
        )
    total = sum(counts.values())
    return [total / (len(counts) * count) for count in counts.values()]

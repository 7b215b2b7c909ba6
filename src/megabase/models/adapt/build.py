"""From settings: language models to pretrain, classifiers to fine-tune, and their encoders."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from megabase.errors import ConfigError
from megabase.models.adapt.lora import add_adapters
from megabase.models.auto import (
    load_config,
    load_model,
    load_tokenizer,
    read_tokenizer,
    resolve_model,
)
from megabase.models.checkpoints.checks import check_config
from megabase.models.families import FAMILIES, Family, family_of
from megabase.models.heads import HEADS, label_fields
from megabase.models.presets import find_preset
from megabase.models.tokenizers.bpe import train_bpe
from megabase.models.tokenizers.character import DNATokenizer
from megabase.models.tokenizers.encoder import TokenEncoder
from megabase.models.tokenizers.kmer import DNABERTTokenizer, KmerTokenizer
from megabase.objectives.base import OBJECTIVES
from megabase.settings import HeadConfig, LoraConfig, ModelConfig, StartConfig
from megabase.untrusted import parsing

_SPECIAL_POSITIONS = 2
"""Positions beyond the bases in the published models (l_max = length + 2)."""
# Field that holds the longest input of a family, positions to add to the longest sequence, and the
# least that can be built (shorter sequences are padded).
_LENGTH_FIELDS = {
    "hyenadna": ("max_seq_len", 2, 0), "gpt": ("max_position_embeddings", 0, 1024),
    "cnn": ("max_length", 0, 57), "deepsea": ("max_length", 0, 163),
}  # fmt: skip
_BYTE_PAIRS = 4096
"""Tokens of a byte-pair vocabulary unless the settings give another number."""
_POOLING_FIELDS = ("pooling", "pooling_strategy")
"""Names that the families give to the pooling of positions into one vector."""


def build_language_model(
    spec: ModelConfig, longest: int, objective: str = "causal_lm"
) -> PreTrainedModel:
    """Build a language model with fresh weights from torch's seed, or load ``init_from``.

    `longest`, the longest input of the run in positions, decides the length of the model when
    neither preset nor ``max_length`` does. Raises :class:`ConfigError` for an unknown family,
    preset or field, or a model that cannot learn the objective.
    """
    if spec.init_from is not None:
        source = resolve_model(spec.init_from)
        masked = any("ForMaskedLM" in name for name in load_config(source).architectures or ())
        model = load_model(source, kind="masked-lm" if masked else "causal-lm")
        _check_objective(model, objective)
        return model.train()
    if spec.preset is not None:
        preset = find_preset(spec.preset)
        name, fields, length = preset.family, dict(preset.config), spec.max_length
    else:
        name, length = spec.family, spec.max_length or longest + _SPECIAL_POSITIONS
        fields = {"d_model": spec.d_model, "n_layer": spec.n_layer}
    if name not in FAMILIES or not FAMILIES[name].pretrained:
        known = ", ".join(family.name for family in FAMILIES.values() if family.pretrained)
        raise ConfigError(f"model.family is {name!r}; pretraining knows {known}")
    family = FAMILIES[name]
    if length is not None and family.length_field is not None:
        fields[family.length_field] = length
    model_class = _model_class(family, objective)
    fields.update(spec.overrides)
    unknown = set(fields) - _config_fields(model_class.config_class)
    if unknown:
        raise ConfigError(
            f"model.overrides has {', '.join(sorted(map(str, unknown)))}, which "
            f"{model_class.config_class.__name__} does not have; its fields are listed in its "
            "documentation"
        )
    model = _new_model(model_class, fields)
    _check_objective(model, objective)
    return model


def _config_fields(config_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _new_model(model_class: Any, fields: dict[str, Any]) -> Any:
    """Build a model with fresh weights, if this machine's memory can hold them."""
    check_config(fields, Path("model"), ConfigError)
    config = model_class.config_class(**fields)
    with parsing("the model", ConfigError), torch.device("meta"):
        state = model_class(config).state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ConfigError(
            f"the model takes {size / 1e9:,.0f} GB, more than the {memory / 1e9:,.0f} GB of this "
            "machine; give fewer layers, a smaller width or a shorter input"
        )
    return model_class(config)


def _model_class(family: Family, objective: str) -> Any:
    """Find the class of a family that learns an objective."""
    classes = family.classes()
    causal_only = getattr(OBJECTIVES[objective], "both_sides", None) is False
    # A family without a masked class, such as HyenaDNA, learns the masked objective with the same
    # head, when it reads both sides.
    for kind in ("causal-lm",) if causal_only else ("masked-lm", "causal-lm"):
        if kind in classes:
            return classes[kind]
    raise ConfigError(
        f"model.family {family.name} is bidirectional, so next-token prediction would see its "
        "target; set objective.name to masked_lm"
    )


def _check_objective(model: PreTrainedModel, objective: str) -> None:
    """Refuse a pair of model and objective that learns nothing, or learns to copy."""
    both_sides = getattr(model.config, "bidirectional", "none") not in ("none", False)
    wanted = getattr(OBJECTIVES[objective], "both_sides", None)  # None: any model learns it
    if both_sides and wanted is False:
        raise ConfigError(
            "the model is bidirectional, so next-token prediction would see its target; set "
            "objective.name to masked_lm, or a model.overrides.bidirectional that is causal"
        )
    if not both_sides and wanted is True:
        raise ConfigError(
            f"objective.name is {objective}, and the model reads one side only; use a model of "
            "both sides (model.family caduceus, or hyenadna with model.overrides.bidirectional "
            "two_sided), or causal_lm"
        )


def build_encoder(
    start: StartConfig, head: HeadConfig, task: str, training: Callable[[], Iterable[str]], *,
    per_base: bool,
) -> tuple[str, TokenEncoder]:  # fmt: skip
    """Give the family of the model that a run starts from, and its encoder.

    `training` gives the training sequences, for byte pairs that are learned from them; with
    `per_base` every token has to be one base. Raises
    :class:`ConfigError` when the family has no model of the kind `task`, and for an unknown
    tokenizer, or one that does not fit the other settings.
    """
    name = find_preset(start.preset).family if start.preset is not None else start.family or ""
    if start.model is not None:
        found = family_of(load_config(start.model).model_type)
        name = "" if found is None else found.name
    if task not in FAMILIES[name].classes():
        what = "nucleotides" if task == "token-classification" else "sequences"
        fitting = [family.name for family in FAMILIES.values() if task in family.classes()]
        raise ConfigError(
            f"family {name!r} has no model for labels of {what}; take one of {', '.join(fitting)}"
        )
    tokenizer = _tokenizer(start, name, training)
    if per_base and (not isinstance(tokenizer, DNATokenizer) or head.special_tokens == "yes"):
        raise ConfigError(
            "labels of nucleotides need one token for each base: the tokenizer char, and no "
            f"special tokens (head.special_tokens); this one is {type(tokenizer).__name__}"
        )
    specials = head.special_tokens == "yes" or (
        head.special_tokens == "auto" and FAMILIES[name].special_tokens
    )
    if specials and head.crop < 1:
        raise ConfigError(
            f"head.crop is {head.crop}: segments are cut out of the tokens, and would lose "
            "the special tokens around them; leave it out, or set head.special_tokens no"
        )
    return name, TokenEncoder(tokenizer, specials)


def _tokenizer(start: StartConfig, family: str, training: Callable[[], Iterable[str]]) -> Any:
    """Load, make or learn the tokenizer that the settings name."""
    wanted = start.tokenizer
    if wanted is None:
        if start.model is not None:
            return load_tokenizer(start.model)
        if family == "dnabert":
            return DNABERTTokenizer(k=int(_named_fields(start).get("k", 6)))
        pairs = f"bpe:{_named_fields(start).get('vocab_size', _BYTE_PAIRS)}"
        wanted = pairs if family == "bigbird" else "char"
    if wanted == "char":
        return DNATokenizer()
    if kmer := re.fullmatch(r"([2-8])mer", wanted):
        return KmerTokenizer(k=int(kmer.group(1)))
    if pairs := re.fullmatch(r"bpe:(\d+)", wanted):
        return train_bpe(training(), vocab_size=int(pairs.group(1)))
    if Path(wanted).is_dir():
        return read_tokenizer(Path(wanted))
    raise ConfigError(
        f"tokenizer is {wanted!r}; expected char, 2mer to 8mer, bpe:SIZE or a folder that holds one"
    )


def _named_fields(start: StartConfig) -> dict[str, Any]:
    """Give the fields of a new model that preset and overrides name."""
    fields = {} if start.preset is None else find_preset(start.preset).config
    return {**fields, **start.overrides}


def build_classifier(
    start: StartConfig, head: HeadConfig, lora: LoraConfig, family: str, kind: str,
    names: Sequence[str], tokens: TokenEncoder, longest: int,
) -> PreTrainedModel:  # fmt: skip
    """Build a model with a head for labels, from torch's current seed.

    `kind` is that of the labels, `names` one for each output, and `longest` the longest sequence of
    all splits in tokens; a new model is built for it where its family has such a setting and the
    settings do not say otherwise.
    """
    task, _ = HEADS[kind]
    if task == "token-classification" and head.pooling is not None:
        raise ConfigError(
            f"head.pooling is {head.pooling}, but with labels of nucleotides every base "
            "answers for itself; leave it out"
        )
    fields: dict[str, Any] = {**label_fields(kind, names), **_head_fields(start, head, family)}
    if start.model is not None and not start.from_scratch:
        model = load_model(start.model, task, new_head=True, **fields).train()
    else:
        model = _new_classifier(start, family, task, fields, tokens, longest)
    # For whoever loads the folder: what is answered, and how the run's metrics were taken.
    model.config.label_kind = kind
    model.config.strand_average = head.strand_average
    if head.freeze or head.freeze_blocks or head.freeze_embeddings:
        _freeze(model, head)
    if lora.rank:
        add_adapters(model, model.base_model, lora)
    return model


def _head_fields(start: StartConfig, head: HeadConfig, family: str) -> dict[str, Any]:
    """Give the fields of the configuration that the settings name; all must be the family's."""
    known = _config_fields(FAMILIES[family].config_class())
    unknown = sorted(str(name) for name in set(start.overrides) - known)
    if unknown:
        near = [close for name in unknown for close in difflib.get_close_matches(name, known, n=1)]
        raise ConfigError(
            f"overrides has {', '.join(unknown)}, which the family {family} does not have"
            + (f"; did you mean {near[0]!r}?" if near else "")
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


def _new_classifier(
    start: StartConfig, family: str, task: str, fields: Mapping[str, Any], tokens: TokenEncoder,
    longest: int,
) -> PreTrainedModel:  # fmt: skip
    """Build a model with fresh weights, in the shape of another one or of its own."""
    model_class = FAMILIES[family].classes()[task]
    shape: dict[str, Any] = {}
    if family in _LENGTH_FIELDS:
        name, extra, least = _LENGTH_FIELDS[family]
        shape[name] = max(longest + extra, least)
    if start.model is not None:
        loaded = load_config(start.model)
        known = _config_fields(model_class.config_class)
        for name in known - {"architectures", "id2label", "label2id", "problem_type"}:
            shape[name] = getattr(loaded, name)
    shape.update({**_named_fields(start), **fields})
    # A vocabulary that is learned or counted decides the rows of the embedding; so does one that a
    # published shape is too small for.
    too_small = shape.get("vocab_size", tokens.size) < tokens.size
    if too_small or not isinstance(tokens.tokenizer, DNATokenizer):
        shape.update(vocab_size=tokens.size, pad_token_id=tokens.pad_id)
    return _new_model(model_class, shape)


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
    # The blocks of a model are the members of its first list of modules that holds any.
    lists = (found for found in base.modules() if isinstance(found, nn.ModuleList) and len(found))
    blocks = list(next(lists, ()))
    if head.freeze_blocks > len(blocks):
        raise ConfigError(
            f"head.freeze_blocks is {head.freeze_blocks}, but {type(model).__name__} has "
            f"{len(blocks)} blocks"
        )
    for block in blocks[: head.freeze_blocks]:
        block.requires_grad_(False)

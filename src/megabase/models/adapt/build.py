"""From settings: language models to pretrain, classifiers to fine-tune, and their encoders.

Low-rank adapters (LoRA) of peft are trained next to frozen weights and saved with the head.
"""

import dataclasses
import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from megabase.errors import ConfigError, MissingDependencyError
from megabase.models import auto
from megabase.models.checkpoints.checks import check_config
from megabase.models.checkpoints.convert import write_model
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

_SPECIAL_POSITIONS = 2  # positions beyond the bases in the published models (l_max = length + 2)
# Field that holds the longest input of a family, positions to add to the longest sequence, and the
# least that can be built (shorter sequences are padded).
_LENGTH_FIELDS = {
    "hyenadna": ("max_seq_len", 2, 0), "gpt": ("max_position_embeddings", 0, 1024),
    "cnn": ("max_length", 0, 57), "deepsea": ("max_length", 0, 163),
}  # fmt: skip
_BYTE_PAIRS = 4096  # tokens of a byte-pair vocabulary unless the settings give another number
_POOLING_FIELDS = ("pooling", "pooling_strategy")
"""Names that the families give to the pooling of positions into one vector."""
_NAME = "default"  # name of an adapter in peft unless another is given
# Of the parameters of an adapted layer, in peft.
_PARTS = ("base_layer.", f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight")
_PREFIX = "base_model.model."  # before every name in peft's files: the model inside of two wrappers


def build_language_model(
    spec: ModelConfig, longest: int, objective: str = "causal_lm"
) -> PreTrainedModel:
    """Build a language model with fresh weights from torch's seed, or load ``init_from``.

    `longest`, the longest input of the run in positions, decides the length of the model when
    neither preset nor ``max_length`` does. Raises :class:`ConfigError` for an unknown family,
    preset or field, or a model that cannot learn the objective.
    """
    if spec.init_from is not None:
        source = auto.resolve_model(spec.init_from)
        masked = any("ForMaskedLM" in name for name in auto.load_config(source).architectures or ())
        model = auto.load_model(source, kind="masked-lm" if masked else "causal-lm")
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
        raise ConfigError(f"model.family is {name!r}; pretraining knows {known}; {FAMILIES.advice}")
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
        found = family_of(auto.load_config(start.model).model_type)
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
            return auto.load_tokenizer(start.model)
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
        return auto.read_tokenizer(Path(wanted))
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
        model = auto.load_model(start.model, task, new_head=True, **fields).train()
    else:
        model = _new_classifier(start, family, task, fields, tokens, longest)
    # For whoever loads the folder: what is answered, and how the run's metrics were taken.
    model.config.label_kind = kind
    model.config.strand_average = head.strand_average
    if head.freeze or head.freeze_blocks or head.freeze_embeddings:
        _freeze(model, head)
    if lora.rank:
        _add_adapters(model, model.base_model, lora)
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
        loaded = auto.load_config(start.model)
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


def _add_adapters(model: nn.Module, base: nn.Module, config: LoraConfig) -> None:
    """Freeze a model below its head and give its linear layers adapters, from torch's seed.

    The adapters begin as zero: nothing changes at first. The head, outside `base`, is trained as a
    whole. Raises :class:`ConfigError` when no layer has a name of the settings.
    """
    if base is model:
        raise ConfigError(
            f"lora.rank is set, but {type(model).__name__} has no part below its head"
        )
    peft: Any = MissingDependencyError.load("peft", "lora", "lora.rank")
    inside = {id(module) for module in base.modules()}
    linear = {
        name: module
        for name, module in model.named_modules()
        # The networks that compute filters do not map the sequence's vectors.
        if isinstance(module, nn.Linear) and id(module) in inside and "implicit_filter" not in name
    }
    layers = sorted({name.split(".")[-1] for name in linear})
    targets = config.targets or layers
    wanted = [name for name in linear if name.split(".")[-1] in targets]
    unknown = set(targets) - set(layers)
    if unknown or not wanted:
        raise ConfigError(
            f"lora.targets names {', '.join(sorted(unknown)) or 'nothing'}; the linear layers of "
            f"{type(model).__name__} are {', '.join(layers) or 'none'}"
        )
    head = [parameter for _, parameter in _head(model, base)]
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=_alpha(config), target_modules=wanted, bias="none"
    )
    with warnings.catch_warnings():
        # peft reads a property that transformers has renamed; users can do nothing about it.
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing`")
        peft.inject_adapter_in_model(settings, model, adapter_name=_NAME)
    first: dict[int, Any] = {}
    for _, module in _adapted(model):
        # Layers that share their weight (both directions of a caduceus) share the adapter too.
        twin = first.setdefault(id(module.get_base_layer().weight), module)
        if twin is not module:
            module.lora_A, module.lora_B = twin.lora_A, twin.lora_B
    for parameter in head:
        parameter.requires_grad_(True)


def _alpha(config: LoraConfig) -> float:
    return 2 * config.rank if config.alpha is None else config.alpha


def _head(model: nn.Module, base: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    below = {id(parameter) for parameter in base.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in below:
            yield name, parameter


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "lora_A")]


def _merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold adapters into the weights: a full state dict under the names of the plain model."""
    scales = {name: module.scaling[_NAME] for name, module in _adapted(model)}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer = next((layer for layer in scales if name.startswith(f"{layer}.")), None)
        if layer is None:
            found[name] = tensor
            continue
        part = name[len(layer) + 1 :]
        if not part.startswith(_PARTS[0]):
            continue
        if part == "base_layer.weight":
            below, above = (state[f"{layer}.{kind}"] for kind in _PARTS[1:])
            tensor = tensor + scales[layer] * (above @ below)
        found[f"{layer}.{part[len(_PARTS[0]) :]}"] = tensor
    return found


def _save_adapter(
    model: Any, folder: Path, state: Mapping[str, Tensor], config: LoraConfig, start: str | None
) -> None:
    """Write adapter and head alone, in the format of peft; the run started from `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = [name for name, _ in _head(model, model.base_model)]
    tensors = {
        f"{_PREFIX}{name.replace(f'.{_NAME}.', '.')}": tensor.clone()
        for name, tensor in state.items()
        if ".lora_A." in name or ".lora_B." in name or name in head
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    peft: Any = MissingDependencyError.load("peft", "lora", "lora.rank")
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=_alpha(config), bias="none", inference_mode=True,
        target_modules=[name for name, _ in _adapted(model)],
        modules_to_save=sorted({name.rsplit(".", 1)[0] for name in head}),
        base_model_name_or_path=str(auto.resolve_model(start)),
    )  # fmt: skip
    settings.save_pretrained(str(folder))


def save_classifier(
    model: PreTrainedModel, tokenizer: Any, folder: Path, state: Mapping[str, Tensor],
    lora: LoraConfig, start: str | None,
) -> None:  # fmt: skip
    """Write weights, configuration with class names and tokenizer into a folder that exists.

    `state` is the full state dict, which may differ from the model's own when it is sharded.
    Adapters are folded into the weights; where the settings ask for it, they are also written next
    to them with the head, for which `start` names the model they were trained on.
    """
    if lora.rank and lora.save == "adapter":
        _save_adapter(model, folder / "adapter", state, lora, start)
    write_model(folder, model, tokenizer, _merged_state(model, state) if lora.rank else state)

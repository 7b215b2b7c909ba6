"""Low-rank adapters (LoRA) of peft: trained next to frozen weights, saved with the head."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from megabase.errors import ConfigError, MissingDependencyError
from megabase.models.auto import resolve_model
from megabase.models.checkpoints.convert import write_model
from megabase.settings import LoraConfig

_NAME = "default"
"""Name of an adapter in peft unless another is given."""
# Of the parameters of an adapted layer, in peft.
_PARTS = ("base_layer.", f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight")
_PREFIX = "base_model.model."
"""Before every name in peft's files: the model inside of two wrappers."""


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingDependencyError("peft", "lora", "lora.rank") from None
    return peft


def add_adapters(model: nn.Module, base: nn.Module, config: LoraConfig) -> None:
    """Freeze a model below its head and give its linear layers adapters, from torch's seed.

    The adapters begin as zero: nothing changes at first. The head, outside `base`, is trained as a
    whole. Raises :class:`ConfigError` when no layer has a name of the settings.
    """
    if base is model:
        raise ConfigError(
            f"lora.rank is set, but {type(model).__name__} has no part below its head"
        )
    peft = _peft()
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
    settings = _peft().LoraConfig(
        r=config.rank, lora_alpha=_alpha(config), bias="none", inference_mode=True,
        target_modules=[name for name, _ in _adapted(model)],
        modules_to_save=sorted({name.rsplit(".", 1)[0] for name in head}),
        base_model_name_or_path=str(resolve_model(start)),
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

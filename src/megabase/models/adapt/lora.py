"""Low-rank adapters (LoRA) through peft: trained next to frozen weights, saved with the head.

peft puts the two small matrices of each adapted linear layer in place. Our operators read the
``weight`` of a layer directly, so an adapted layer gives the sum, weight + scale * B A, under that
name: every path through the model sees the adapter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megabase.errors import ConfigError, MissingDependencyError
from megabase.models.auto import load_model, resolve_model
from megabase.models.checkpoints.checks import check_config, weights_checksum
from megabase.models.families import family_of
from megabase.settings import LoraConfig
from megabase.untrusted import build, parsing, read_json

ADAPTER_FOLDER = "adapter"
"""Folder of the adapter inside a checkpoint."""
_NAME = "default"
"""Name of an adapter in peft unless another is given."""
# Of the parameters of an adapted layer, in peft.
_PARTS = ("base_layer.", f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight")
_PREFIX = "base_model.model."
"""Before every name in peft's files: the model inside of two wrappers."""
_RECORD = "megabase.json"
"""What peft's own configuration does not say: start, checksum, fields of the model."""


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingDependencyError("peft", "lora", "lora.rank") from None
    return peft


@cache
def _layer_class() -> type[nn.Module]:
    from peft.tuners.lora import Linear

    class AdaptedLinear(Linear):
        """A linear layer whose weight is the frozen one plus the adapter's product."""

        @property
        def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            frozen = cast("nn.Linear", self.get_base_layer()).weight
            below = cast("nn.Linear", self.lora_A[_NAME]).weight
            above = cast("nn.Linear", self.lora_B[_NAME]).weight
            return frozen + self.scaling[_NAME] * (above @ below)

        def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            return F.linear(x, self.weight, cast("nn.Linear", self.get_base_layer()).bias)

    return AdaptedLinear


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
        module.__class__ = _layer_class()
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


def merged_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def save_adapter(
    model: Any,
    folder: Path,
    state: Mapping[str, Tensor],
    config: LoraConfig,
    start: str | None,
    fields: Sequence[str],
) -> None:
    """Write adapter and head alone, in the format of peft, a few hundred kilobytes at most.

    `start` is the model that the run started from, and `fields` names settings that may differ from
    its own.
    """
    family = family_of(model.config.model_type)
    kinds = family.classes().items() if family is not None else ()
    folder.mkdir(parents=True, exist_ok=True)
    layers = [name for name, _ in _adapted(model)]
    head = [name for name, _ in _head(model, model.base_model)]
    tensors = {
        f"{_PREFIX}{name.replace(f'.{_NAME}.', '.')}": tensor.clone()
        for name, tensor in state.items()
        if ".lora_A." in name or ".lora_B." in name or name in head
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    source = resolve_model(start)
    settings = _peft().LoraConfig(
        r=config.rank,
        lora_alpha=_alpha(config),
        target_modules=layers,
        modules_to_save=sorted({name.rsplit(".", 1)[0] for name in head}),
        bias="none",
        inference_mode=True,
        base_model_name_or_path=str(source),
    )
    settings.save_pretrained(str(folder))
    record = {
        "kind": next(kind for kind, member in kinds if member is type(model)),
        "start": start or "default",
        "sha256": weights_checksum(source),
        "fields": {
            name: getattr(model.config, name) for name in fields if hasattr(model.config, name)
        },
        "lora": asdict(config),
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n")


def load_adapter(folder: str | Path, start: str | None = None) -> Any:
    """Load the model of an adapter that :func:`save_adapter` wrote, in evaluation mode.

    Needs no peft: the product is added to the weights, so its outputs are those of the merged model
    of the run. `start` names the model that was started from when it is no longer where it was; a
    model with other weights is a :class:`ConfigError`.
    """
    folder = Path(folder)
    record = read_json(folder / _RECORD, ConfigError)
    with parsing(folder / "adapter_model.safetensors", ConfigError):
        tensors = load_file(folder / "adapter_model.safetensors")
    with parsing(folder / _RECORD, ConfigError, "expected an adapter that megabase wrote"):
        saved_start, checksum, kind = (record[name] for name in ("start", "sha256", "kind"))
        if not all(isinstance(text, str) for text in (saved_start, checksum, kind)):
            raise TypeError("start, sha256 and kind must be text")
        lora = build(LoraConfig, record["lora"])
        fields = check_config(dict(record["fields"]), folder / _RECORD, ConfigError)
        if "id2label" in fields:
            fields["id2label"] = {int(key): str(name) for key, name in fields["id2label"].items()}
    spec = start or saved_start
    found = weights_checksum(resolve_model(spec))
    if found != checksum:
        raise ConfigError(
            f"{folder} belongs to the model {saved_start} (sha256 {checksum[:12]}); "
            f"{spec} has other weights ({found[:12]})"
        )
    with parsing(folder, ConfigError, "it does not fit the model"):
        model = load_model(spec, kind, new_head=True, **fields)
        _add(model, tensors, lora)
    return model.eval()


def _add(model: Any, tensors: Mapping[str, Tensor], lora: LoraConfig) -> None:
    """Add adapters to the weights, and put the head in place."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for full_name, tensor in tensors.items():
            name = full_name.removeprefix(_PREFIX)
            if name.endswith("lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                if f"{layer}.weight" not in own:
                    continue  # shares the weight of another layer, which has the same adapter
                above = tensors[f"{_PREFIX}{layer}.lora_B.weight"]
                own[f"{layer}.weight"].add_(_alpha(lora) / lora.rank * (above @ tensor))
            elif not name.endswith("lora_B.weight"):
                own[name].copy_(tensor)

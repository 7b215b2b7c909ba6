"""Checksums by which models are told apart: in outputs, prompts, adapters and run folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def model_digest(model: nn.Module) -> str:
    """Give the sha256 over a model's configuration and weights.

    The same for a model in memory, in a folder, and on any device; names of files do not matter.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        values = config.to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            values.pop(name, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):  # offloaded, which accelerate has done
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        state = get_state_dict_offloaded_model(model)
    _update(digest, state, end="\n")
    return digest.hexdigest()


def weights_hash(model: PreTrainedModel, *, next_token: bool = False) -> str:
    """Give the sha256 over the weights below a model's head: what a soft prompt belongs to.

    Parameters
    ----------
    model
        The model; a head for labels does not count.
    next_token
        Whether the next-token head counts, too.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    tensors = dict(model.base_model.state_dict())
    if next_token and (head := model.get_output_embeddings()) is not None:
        tensors |= {f"next_token.{name}": value for name, value in head.state_dict().items()}
    _update(digest, tensors, end="")
    return digest.hexdigest()


def weights_checksum(folder: Path) -> str:
    """Give the sha256 over the weight files of a model folder."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _update(digest: Any, tensors: Mapping[str, Tensor], end: str) -> None:
    """Add names, types, shapes and values, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}{end}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)

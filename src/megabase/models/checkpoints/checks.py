"""Checks of a model's numbers, that they are finite, and hashes of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megabase.errors import NotFiniteError


def require_finite_weights(model: nn.Module, name: str) -> None:
    """Refuse a model with a parameter or buffer that is not finite, naming the first such tensor.

    Tensors on the meta device have no data and pass.
    """
    for where, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        finite = torch.isfinite(tensor.detach())
        if bool(finite.all()):
            continue
        wrong = (~finite).nonzero()
        raise NotFiniteError(
            f"{name}: {len(wrong):,} of {tensor.numel():,} values of the tensor {where} are not "
            f"finite (NaN or infinite), the first at {wrong[0].tolist()}; the file is damaged or "
            "the training diverged: use another checkpoint"
        )


def require_finite(
    values: Tensor | np.ndarray[Any, Any],
    model: str,
    what: str,
    record: Callable[[int], str],
    known: Tensor | np.ndarray[Any, Any] | None = None,
) -> None:
    """Refuse outputs of a model that are not finite, naming the first such record.

    `values` has one row per record, whose name `record` gives; `what` says what they are. Values
    may be NaN where `known`, of the same shape, is False.
    """
    wrong: Any = ~(torch.isfinite(values) if isinstance(values, Tensor) else np.isfinite(values))
    if known is not None:
        wrong = wrong & known
    if not bool(wrong.any()):
        return
    row = wrong.reshape(len(wrong), -1).any(-1).tolist().index(True)
    raise NotFiniteError(
        f"{model} gave {what} that are not finite (NaN or infinite) for {record(row)}: a value "
        "inside the model overflows, although its weights are finite; use another checkpoint"
    )


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

    A head for labels does not count; the next-token head does with `next_token`.
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

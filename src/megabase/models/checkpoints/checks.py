"""Checks of a model from elsewhere: its ``config.json``, that its numbers are finite, its hashes.

Sizes in a ``config.json`` are bounded, and it cannot fetch or import code.
"""

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

from megabase.errors import MegabaseError, NotFiniteError
from megabase.untrusted import shown

_ATTENTION = (None, "eager", "sdpa")
"""Kinds of attention that are part of torch; transformers fetches code for others."""
# The library fetches, imports or runs what the values of these name.
_REFUSED = ("quantization_config", "transformers_weights", "experts_implementation",
            "kernel_config", "fusion_config", "distributed_config", "custom_generate")  # fmt: skip
# Sizes decide what is allocated, and how many modules are built, before any weight is seen.
_LARGEST = (1 << 31) - 1  # numbers are sizes or positions, which some libraries index with 32 bits
_MOST_LABELS = 100_000  # classes of a head; the largest published one has 919
# Beyond every published model, and few enough to build on any machine.
_BOUNDS = {
    "num_labels": _MOST_LABELS, "vocab_size": 1 << 20, "pad_vocab_size_multiple": 1 << 16, "k": 8,
    "n_layer": 256, "num_hidden_layers": 256, "num_inner_mlps": 256, "hyena_order": 256,
}  # fmt: skip
_MOST_VALUES, _DEPTH = 1_000_000, 16
"""Values and levels of a file: names of 100,000 classes take 200,000 values on two levels."""


def check_config(content: dict[str, Any], path: Path, error: type[MegabaseError]) -> dict[str, Any]:
    """Check a model's settings from elsewhere, and leave out those that name code.

    Raises `error` for a number beyond what any model has, and for a setting that would make
    transformers fetch or import what the file names.
    """
    left = _MOST_VALUES

    def check(name: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEPTH:
            raise error(f"{path}: holds more values or levels than a model's settings can have")
        if isinstance(value, int) and abs(value) > _BOUNDS.get(name, _LARGEST):
            raise error(
                f"{path}: {name[:60]} is {shown(value)}; expected at most "
                f"{_BOUNDS.get(name, _LARGEST):,}"
            )
        if isinstance(value, dict):
            for key, item in value.items():
                check(key, item, depth + 1)
        elif isinstance(value, list):
            for item in value:
                check(name, item, depth + 1)

    check("config", content, 0)
    for name in ("attn_implementation", "_attn_implementation"):
        if (value := content.get(name)) not in _ATTENTION:
            raise error(
                f"{path}: {name} is {shown(value)}; expected eager or sdpa (other names can make "
                "transformers fetch and import code); remove the line"
            )
    for name in _REFUSED:
        if content.get(name) is not None:
            raise error(f"{path}: {name} is not supported; remove the line")
    names = content.get("architectures")
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise error(f"{path}: architectures is {shown(names)}; expected a list of class names")
    for name in ("id2label", "label2id"):
        labels = content.get(name)
        if labels is not None and not (isinstance(labels, dict) and len(labels) <= _MOST_LABELS):
            raise error(f"{path}: {name} is {shown(labels)}; expected a table of class names")
    # Leading underscores are the library's own state; auto_map names code, and ours needs none.
    return {k: v for k, v in content.items() if not k.startswith("_") and k != "auto_map"}


def require_finite_weights(model: nn.Module, name: str) -> None:
    """Refuse a model with a parameter or buffer that is not finite, naming the first such tensor.

    Tensors on the meta device have no data and pass.
    """
    for where, tensor in chain(model.named_parameters(), model.named_buffers()):
        real = tensor.is_floating_point() or tensor.is_complex()
        if real and not tensor.is_meta and not bool(torch.isfinite(tensor.detach()).all()):
            wrong = (~torch.isfinite(tensor.detach())).nonzero()
            raise NotFiniteError(
                f"{name}: {len(wrong):,} of {tensor.numel():,} values of the tensor {where} are "
                f"not finite (NaN or infinite), the first at {wrong[0].tolist()}; the file is "
                "damaged or the training diverged: use another checkpoint"
            )


def require_finite(
    values: Tensor | np.ndarray[Any, Any], model: str, what: str, record: Callable[[int], str],
    known: Tensor | np.ndarray[Any, Any] | None = None,
) -> None:  # fmt: skip
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


def _update(digest: Any, tensors: Mapping[str, Tensor], end: str) -> None:
    """Add names, types, shapes and values, in the order of the names."""
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}{end}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)

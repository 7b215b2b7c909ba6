"""Published Mamba checkpoints into models.

Known names are those of the public state-spaces/mamba code, of Lightning checkpoints of the public
Caduceus code, which trains the baseline, and of transformers' own Mamba. Caduceus reads the shapes
of its mixers with the functions here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from megabase.errors import CheckpointError
from megabase.models.checkpoints.published import (
    HEAD_RULE,
    ConvertedModel,
    build,
    recorded_settings,
    renamed,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.mamba.configuration import MambaConfig, MixerSettings
from megabase.models.mamba.modeling import (
    MambaForCausalLM,
    MambaForSequenceClassification,
    MambaModel,
)

_RULES = (HEAD_RULE, (r"^backbone\.embeddings\.weight", "backbone.embedding.weight"))
"""The second is the name in transformers' own Mamba."""
_EMBEDDING = "backbone.embedding.weight"
"""The tied copy of the head, and what tells the width."""


def recognizes(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a Mamba model that reads in one direction."""
    return any(name.endswith(".mixer.A_log") for name in names)


def read_shapes(
    tensors: Mapping[str, Tensor], embedding: str, layers: str, mixer: str, source: object
) -> dict[str, Any]:
    """Read from the weights, by our names, the settings that they decide.

    `layers` is what the names of blocks begin with, and `mixer` what follows the number of a block
    in the names of its mixer. CheckpointError when a tensor that decides is missing.
    """
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
            "dt_rank": MixerSettings.dt_rank if rank == -(-width // 16) else rank,
            "conv_bias": f"{first}conv1d.bias" in tensors,
            "bias": f"{first}in_proj.bias" in tensors,
        },
        "rms_norm": not any(name in tensors for name in norms),
    }
    if rows != 16:  # the published vocabulary of 12, padded
        settings.update(vocab_size=rows, pad_vocab_size_multiple=1)
    if "score.weight" in tensors:
        settings["num_labels"] = tensors["score.weight"].shape[0]
        settings["head_bias"] = "score.bias" in tensors
    return settings


def without_lm_head(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give a classifier's tensors, and the names of a language-model head that it carries along."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")}
    return kept, tuple(name for name in tensors if name not in kept)


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a causal language model, classifier or bare model, by the heads of the weights."""
    tensors, dropped = renamed(weights.tensors, _RULES)
    bare = "embedding.weight" in tensors
    if bare:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    settings = recorded_settings(weights, MambaConfig, (None, MambaConfig.model_type, "mamba"))
    head = tensors.get("lm_head.weight")
    if head is not None:  # a file may hold one of two tied tensors
        tensors.setdefault(_EMBEDDING, head)
    found = read_shapes(tensors, _EMBEDDING, "backbone.layers.", "mixer.", weights.path)
    if head is not None:
        found["tie_word_embeddings"] = torch.equal(head, tensors[_EMBEDDING])
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    notes = []
    if "residual_in_fp32" not in settings:
        notes.append("residual_in_fp32 is not recorded; taken as False (it matters below float32)")
    config = MambaConfig(**{**settings, **found, **overrides})
    model_class: type[Any] = MambaForCausalLM
    if "score.weight" in tensors:
        model_class = MambaForSequenceClassification
        tensors, spare = without_lm_head(tensors)
        dropped += spare
    elif bare and head is None:
        model_class = MambaModel
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    model, _ = build(model_class, config, tensors, weights.path)
    return ConvertedModel(model, tuple(notes), dropped)

"""Published Mamba checkpoints into models.

Known names are those of the public state-spaces/mamba code, of Lightning checkpoints of the public
Caduceus code, which trains the baseline, and of transformers' own Mamba.
"""

from __future__ import annotations

from typing import Any

from megabase.models.checkpoints.published import (
    HEAD_RULE,
    ConvertedModel,
    recorded_settings,
    renamed,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.mamba import MambaConfig
from megabase.models.state_space import build_found, read_shapes

_RULES = (HEAD_RULE, (r"^backbone\.embeddings\.weight", "backbone.embedding.weight"))
"""The second is the name in transformers' own Mamba."""
_EMBEDDING = "backbone.embedding.weight"
"""The tied copy of the head, and what tells the width."""


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a causal language model, classifier or bare model, by the heads of the weights."""
    tensors, dropped = renamed(weights.tensors, _RULES)
    bare = "embedding.weight" in tensors
    if bare:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    settings = recorded_settings(weights, MambaConfig, (None, MambaConfig.model_type, "mamba"))
    head = "lm_head.weight"
    found = read_shapes(tensors, _EMBEDDING, head, "backbone.layers.", "mixer.", weights.path)
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    notes = []
    if "residual_in_fp32" not in settings:
        notes.append("residual_in_fp32 is not recorded; taken as False (it matters below float32)")
    config = MambaConfig(**{**settings, **found, **overrides})
    return build_found(
        config,
        tensors,
        weights.path,
        bare=bare and head not in tensors,
        notes=notes,
        dropped=dropped,
    )

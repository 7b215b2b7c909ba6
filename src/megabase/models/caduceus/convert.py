"""Published Caduceus checkpoints into models: Hub folders and Lightning checkpoints."""

from __future__ import annotations

from typing import Any

import torch

from megabase.models.caduceus import CaduceusConfig
from megabase.models.checkpoints.published import (
    HEAD_RULE,
    ConvertedModel,
    recorded_settings,
    renamed,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.state_space import build_found, read_shapes

_RULES = (HEAD_RULE, (r"^backbone\.", "caduceus.backbone."))
"""The bare model is published without the prefix of one with a head."""
_EMBEDDINGS = "caduceus.backbone.embeddings.word_embeddings."
"""Names of the embedding begin with this, whether it is equivariant or not."""
_LAYERS = "caduceus.backbone.layers."
"""Names of the blocks begin with this."""


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a masked language model, classifier or bare model, by the heads of the weights."""
    tensors, dropped = renamed(weights.tensors, _RULES)
    settings = recorded_settings(weights, CaduceusConfig, (None, CaduceusConfig.model_type))
    rcps = any(".mixer.submodule." in name for name in tensors)
    embedding = _EMBEDDINGS + ("embedding.weight" if rcps else "weight")
    mixer = "mixer.submodule." if rcps else "mixer."
    head = "lm_head.lm_head.weight" if rcps else "lm_head.weight"
    found = read_shapes(tensors, embedding, head, _LAYERS, f"{mixer}mamba_fwd.", weights.path)
    found["rcps"] = rcps
    found["bidirectional"] = any(".mamba_rev." in name for name in tensors)
    forward, reverse = (
        tensors.get(f"{_LAYERS}0.{mixer}mamba_{way}.in_proj.weight") for way in ("fwd", "rev")
    )
    if forward is not None and reverse is not None:
        found["bidirectional_weight_tie"] = torch.equal(forward, reverse)
    notes = []
    if rcps:
        found["fused_add_norm"] = f"{_LAYERS}0.norm.weight" in tensors
        table = tensors.get(f"{_EMBEDDINGS}complement_map")
        if table is not None:
            found["complement_map"] = table.tolist()
    if "bidirectional_strategy" not in settings and found["bidirectional"]:
        notes.append("bidirectional_strategy is not recorded; taken as add, as in all published")
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    config = CaduceusConfig(**{**settings, **found, **overrides})
    bare = head not in tensors and not config.tie_word_embeddings
    return build_found(config, tensors, weights.path, bare=bare, notes=notes, dropped=dropped)

"""Activation checkpointing of a model of any family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megabase.errors import ConfigError
from megabase.layers.backbone import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["checkpoint_activations"]


def checkpoint_activations(model: PreTrainedModel, stretch: int = 1) -> None:
    """Compute the activations of all blocks again in the backward pass instead of keeping them.

    Parameters
    ----------
    model
        Any model with blocks.
    stretch
        Blocks in a row that keep one input between them.

    Raises
    ------
    ConfigError
        When the family has no stretches and `stretch` is above 1.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if stretch != 1 and not backbones:
        raise ConfigError(
            f"{type(model).__name__} cannot checkpoint in stretches of {stretch} blocks, only "
            "HyenaDNA and GPT can; leave checkpointing_stretch at 1"
        )
    # The older name is what early versions of transformers have, and later ones warn of.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
    for backbone in backbones:
        backbone.segment = stretch

"""A trained HyenaDNA for longer inputs: the taps of the lags it knows stay as they are.

A filter is a network of the lag's positional features, times a window. Both are tables with one row
for each lag, so a longer model needs more rows. A new model with a larger ``max_seq_len`` would
stretch the old ones over the new length, and every tap would move to another lag. Here the old rows
stay, the window decays on, the cosines and sines go on with their period, and the time, which the
network has only seen from 0 to 1, stays at 1.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megabase.errors import MegabaseError
from megabase.layers.hyena_filter import PositionalFeatures

__all__ = ["lengthen"]


def lengthen(model: PreTrainedModel, longest: int) -> PreTrainedModel:
    """Give the model room for longer inputs; on those it took before it says the same.

    Parameters
    ----------
    model
        A HyenaDNA that reads left to right; not changed.
    longest
        Positions of the new longest input (``max_seq_len``).

    Returns
    -------
    transformers.PreTrainedModel
        A model of the same class with the same parameters.

    Raises
    ------
    MegabaseError
        For another family, a two-sided model, tables or positions that were learnt, or a length
        that is not above the present one.
    """
    config: Any = model.config
    if config.model_type != "hyenadna":
        raise MegabaseError(
            f"the model is of the kind {config.model_type!r}; only hyenadna is made longer this way"
        )
    if config.bidirectional != "none" or config.lr_pos_emb or config.max_position_embeddings:
        raise MegabaseError(
            "the model is two-sided or has learnt positions; only a HyenaDNA that reads left to "
            "right, with computed positions, is made longer"
        )
    if longest <= config.max_seq_len:
        raise MegabaseError(
            f"the new longest input is {longest:,}, and the model takes {config.max_seq_len:,} "
            "already; give more"
        )
    longer_config = copy.deepcopy(config)
    longer_config.max_seq_len = longest
    longer: PreTrainedModel = type(model)(longer_config)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, PositionalFeatures):
            state[f"{name}.z"], state[f"{name}.t"] = _tables(module, longest)
    longer.load_state_dict(state)
    return longer.train(model.training)


def _tables(module: PositionalFeatures, longest: int) -> tuple[Tensor, Tensor]:
    """Continue the tables of a filter: ``z`` (1, longest, features) and ``t`` (1, longest, 1)."""
    known, bands = module.l_max, (module.features - 1) // 2
    lag = torch.arange(known, longest, dtype=torch.float64)[:, None]
    time = lag / (known - 1)
    band = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    phase = band * (2 * math.pi * lag / known)
    features = torch.cat([time.clamp(max=1), phase.cos(), -phase.sin()], dim=-1)
    z, t = module.z.detach(), module.t
    return (
        torch.cat([z, features[None].to(z)], dim=1),
        torch.cat([t, time[None].to(t)], dim=1),
    )

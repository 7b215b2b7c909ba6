"""HyenaDNA as transformers models.

State-dict names are those of the published ``LongSafari/hyenadna-*-hf`` folders. One thing differs
there: the published port stores the positional table ``pos_emb.z`` as a trainable parameter. Here
it is a buffer unless ``config.lr_pos_emb`` is above 0, as in the published training runs; its
values are taken from the checkpoint either way.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megabase.errors import MegabaseError
from megabase.layers.hyena import PositionalFeatures
from megabase.models.decoder import DecoderModel, DecoderPreTrainedModel
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier
from megabase.models.hyenadna.configuration import HyenaDNAConfig


class _HyenaDNA(DecoderPreTrainedModel):
    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"
    # In bfloat16 most lags would share their times with others.
    _keep_in_fp32_modules_strict = ["pos_emb", "modulation"]  # noqa: RUF012


class HyenaDNAModel(_HyenaDNA, DecoderModel):
    """HyenaDNA without a head: one vector per position."""


class HyenaDNAForCausalLM(_HyenaDNA, CausalLM):
    """HyenaDNA with the next-token head it is pretrained with."""

    base_class = HyenaDNAModel


class HyenaDNAForSequenceClassification(_HyenaDNA, SequenceClassifier):
    """HyenaDNA with a pooled linear head, for labels of whole sequences."""

    base_class = HyenaDNAModel


class HyenaDNAForTokenClassification(_HyenaDNA, TokenClassifier):
    """HyenaDNA with a linear head at every position, for labels of nucleotides."""

    base_class = HyenaDNAModel


def lengthen(model: PreTrainedModel, longest: int) -> PreTrainedModel:
    """Give a HyenaDNA room for inputs of `longest` positions.

    On inputs it took before its output is the same. The given model is not changed; the new one has
    its class and parameters. MegabaseError for another family, a two-sided model, tables or
    positions that were learned, or a length that is not above the present one.
    """
    config: Any = model.config
    if config.model_type != "hyenadna":
        raise MegabaseError(
            f"the model is of the kind {config.model_type!r}; only hyenadna is made longer this way"
        )
    if config.bidirectional != "none" or config.lr_pos_emb or config.max_position_embeddings:
        raise MegabaseError(
            "the model is two-sided or has learned positions; only a HyenaDNA that reads left to "
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

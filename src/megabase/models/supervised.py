"""What the supervised baselines share: input lengths, parameter groups, initialisation.

Shape suffixes: B sequences, L tokens.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from megabase.errors import ConfigError, InputError

__all__ = [
    "ConvertedModel",
    "check_length",
    "fit_length",
    "grouped_parameters",
    "refuse_other_family",
    "torch_default_init",
]


class ConvertedModel(NamedTuple):
    """A model made of published weights."""

    model: PreTrainedModel
    """In evaluation mode, float32."""
    notes: tuple[str, ...]
    """What was decided that the files do not say."""
    dropped: tuple[str, ...]
    """Names of the file that are no part of the model."""


def refuse_other_family(
    config: dict[str, Any], accepted: tuple[str, ...], family: str, source: object
) -> dict[str, Any]:
    """Give the settings of a model folder back, unless it holds a model of another family.

    Parameters
    ----------
    config
        What its ``config.json`` says.
    accepted
        Values of ``model_type`` that the family loads; the last one is its own.
    family, source
        Names for the error message.

    Returns
    -------
    dict
        The settings, under the family's own ``model_type``.

    Raises
    ------
    ConfigError
        For another ``model_type``.
    """
    found = config.get("model_type", accepted[-1])
    if found not in accepted:
        raise ConfigError(
            f"{source} holds a model of the family {found!r}, not a {family}; load it with the "
            "classes of its own family, or with AutoModel, which picks them"
        )
    return {**config, "model_type": accepted[-1]}


def check_length(length: int, limit: int, model: str, advice: str) -> None:
    """Refuse an input longer than a model reads.

    Raises
    ------
    InputError
        With both lengths and what to do.
    """
    if length > limit:
        raise InputError(
            f"the input has {length:,} tokens, {model} reads {limit:,} at most; {advice}"
        )


def fit_length(
    ids_BL: Tensor,
    mask_BL: Tensor | None,
    length: int,
    *,
    pad_id: int,
    side: Literal["left", "right"],
    too_long: Literal["error", "trim"],
    model: str,
) -> Tensor:
    """Bring inputs to the one length that a model is built for.

    Where an attention mask tells the real tokens, they are laid side by side and padded on `side`,
    so the result does not depend on where and how far the batch was padded before. Without a mask
    every token is real.

    Parameters
    ----------
    ids_BL
        int64 token ids.
    mask_BL
        1 for a real token, 0 for padding; or None.
    length
        Tokens the model is built for.
    pad_id
        Id that fills up.
    side
        Side that is filled up.
    too_long
        ``"error"``: more than `length` real tokens are refused. ``"trim"``: the first `length` are
        kept.
    model
        Name for the error message.

    Returns
    -------
    Tensor
        int64 (B, length).

    Raises
    ------
    InputError
        For longer inputs, unless they are to be trimmed.
    """
    batch, given = ids_BL.shape
    if mask_BL is None:
        if given == length:
            return ids_BL
        mask_BL = torch.ones_like(ids_BL)
    mask_BL = mask_BL.bool()
    count_B1 = mask_BL.sum(dim=1, keepdim=True)
    if given > length and too_long == "error":
        # Only a batch wider than the model pays for looking at the counts.
        check_length(
            int(count_B1.max()),
            length,
            model,
            "shorten the sequences (special tokens count: add_special_tokens=False leaves them "
            'out), set too_long="trim" to keep their beginning, or build the model with a larger '
            "max_length",
        )
    kept_B1 = count_B1.clamp(max=length)
    place_BL = mask_BL.cumsum(dim=1) - 1
    wanted_BL = mask_BL & (place_BL < kept_B1)
    if side == "left":
        place_BL = place_BL + (length - kept_B1)
    # One extra column takes what is not wanted.
    place_BL = torch.where(wanted_BL, place_BL, length)
    fitted = ids_BL.new_full((batch, length + 1), pad_id)
    return fitted.scatter(1, place_BL, ids_BL)[:, :length]


def grouped_parameters(
    module: nn.Module, lr: float, weight_decay: float, *, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not.

    Biases and the weights of norms (everything of one dimension) do not decay, as in the public
    BERT and GenomicBenchmarks recipes.

    Parameters
    ----------
    module
        The model; frozen parameters are left out.
    lr, weight_decay
        The rate of both groups; the decay of the first.
    decay_embeddings
        Whether embedding tables decay.

    Returns
    -------
    list[dict]
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``; empty ones left out.
    """
    spared: set[int] = set()
    if not decay_embeddings:
        tables = (m for m in module.modules() if isinstance(m, nn.Embedding))
        spared = {id(table.weight) for table in tables}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in spared]
    others = [p for p in trained if p.ndim <= 1 or id(p) in spared]
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay, "name": "decay"},
        {"params": others, "lr": lr, "weight_decay": 0.0, "name": "no decay"},
    ]
    return [group for group in groups if group["params"]]


def torch_default_init(module: nn.Module) -> bool:
    """Initialise a linear, convolution, embedding or batch norm layer the way torch does.

    transformers would draw all of them from a normal distribution of width 0.02. Tensors that were
    loaded are left alone.

    Returns
    -------
    bool
        Whether the module was of a kind known here.
    """
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight)
    elif isinstance(module, nn.BatchNorm1d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        if module.running_mean is not None and module.running_var is not None:
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        if module.num_batches_tracked is not None:
            init.zeros_(module.num_batches_tracked)
    else:
        return False
    return True

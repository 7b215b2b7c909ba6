"""The probabilities that a language model gives to bases, computed here for every verb.

What a model may see when it predicts a base is named by a masking rule: ``"causal"``, the tokens
before it; ``"single"``, everything but the base itself, in a pass of its own (the default for
masked models, a pseudo-log-likelihood); ``"seventh"``, every seventh position hidden at a time, a
share of 0.15 as in training, in seven passes; ``"together"``, all positions to predict hidden at
once. The rules give different numbers for the same base; docs/scoring.md lists which verb uses
which. Causal HyenaDNA models read long sequences in about two copies of their hidden vectors
(:mod:`megabase.layers.incremental`).

Shape suffixes: B batch, L positions, V columns of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megabase.data.vocabulary import MASK_ID
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.layers.backbone import Backbone
from megabase.layers.incremental import can_stream, stream_backbone
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode, language_model_kind

Masking = Literal["causal", "single", "seventh", "together"]
"""Which positions are hidden when a base is predicted; see the module."""

_FIRST, _LAST = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]
_PASSES = 7
"""Passes of the rule ``"seventh"``: 1 / 7 is the share nearest to the 0.15 hidden in training."""
_HEAD_POSITIONS = 1 << 15
"""Positions whose logits exist at a time: the temporaries of a million would exceed the model."""
_STREAMED = 1 << 15
"""Length from which causal HyenaDNA models read sequences one by one, with little memory."""

_Index = tuple[Any, Any]
_Predictions = Iterator[tuple[_Index, Tensor]]


def token_log_probs(
    model: nn.Module | Loaded, input_ids: Tensor, *, masking: Masking | None = None,
    batch_tokens: int = 1 << 16, record: Callable[[int], str] = lambda row: f"row {row}",
) -> Tensor:  # fmt: skip
    """Give the natural log-probability of every base among A, C, G, T: (batch, length), float32 up.

    NaN where there is no value: at N and special tokens, and at the first token of a row in a
    causal model, which has nothing before it; sum with :func:`torch.nansum`. The model is run in
    evaluation mode and without gradients; its mode is restored. `input_ids` (batch, length) have no
    padding on the left and lie on its device; `masking` is by default ``"causal"`` for causal
    models and ``"single"`` for masked ones, which reads about `batch_tokens` positions at a time;
    `record` names a row for messages.

    InputError when the model has not one token for each base or cannot follow the rule, ids are not
    (batch, length), or longer than the model takes; NotFiniteError for NaN or infinity.
    """
    name = model.name if isinstance(model, Loaded) else type(model).__name__
    module: nn.Module = model.model if isinstance(model, Loaded) else model
    causal = language_model_kind(module) == "causal"
    masking = masking or ("causal" if causal else "single")
    if (masking == "causal") != causal:
        kind, rules = ("causal", "causal") if causal else ("masked", "single, seventh or together")
        raise InputError(f"{name} is {kind}, so masking is {rules}; found {masking!r}")
    if input_ids.dim() != 2:
        raise InputError(f"expected ids (batch, length), found {tuple(input_ids.shape)}")
    wanted_BL = (input_ids >= _FIRST) & (input_ids <= _LAST)
    if causal:
        wanted_BL[:, :1] = False
    with inference_mode(module):
        found_BL = predict_tokens(
            module, input_ids, masking, look_up, wanted_BL=wanted_BL, batch_tokens=batch_tokens
        )
        require_finite(found_BL, name, "log-probabilities", record, wanted_BL)
    # Not an inference tensor: what is returned may be used where gradients are taken.
    return torch.where(wanted_BL, found_BL.clone(), torch.nan)


def predict_tokens(
    model: nn.Module, ids_BL: Tensor, masking: Masking, read: Callable[[Tensor, Tensor], Tensor], *,
    columns: slice | None = None, wanted_BL: Tensor | None = None, batch_tokens: int = 1 << 16,
) -> Tensor:  # fmt: skip
    """Predict tokens under a masking rule; the core of all verbs, for models in inference mode.

    `read` turns logits (..., V) and the ids (...) that they predict into values (..., K) or (...).
    Gives (batch, length, K) or (batch, length): 0 elsewhere, and in the first column under
    ``"causal"``. With `columns` only these are predicted, and a causal model is not given what
    stands after the second last of them. `wanted_BL` are the positions to hide, for ``"single"``
    and ``"together"``.
    """
    if masking == "causal":
        found = _next_tokens(model, ids_BL, columns)
    elif masking == "seventh":
        found = _every_seventh(model, ids_BL, columns or slice(0, ids_BL.shape[1]))
    else:
        assert wanted_BL is not None
        hidden = wanted_BL.nonzero()
        rows = max(1, batch_tokens // max(1, ids_BL.shape[1]))
        apart = masking == "single"
        found = _hide(model, ids_BL, hidden.split(rows) if apart else (hidden,), apart)
    out: Tensor | None = None
    for at, logits in found:
        values = read(logits, ids_BL[at])
        if out is None:
            out = values.new_zeros(*ids_BL.shape, *values.shape[ids_BL[at].dim() :])
        out[at] = values
    if out is None:  # nothing to predict: the shape is that of no answers
        values = read(torch.zeros(0, _LAST + 1, device=ids_BL.device), ids_BL.new_zeros(0))
        out = values.new_zeros(*ids_BL.shape, *values.shape[1:])
    return out


def look_up(logits: Tensor, ids: Tensor, over: Literal["bases", "all"] = "bases") -> Tensor:
    """Give the log-probability of each token, in float32 at least; over bases only bases count."""
    if over == "bases":
        scores, ids = base_logits(logits), (ids - _FIRST).clamp(0, _LAST - _FIRST)
    else:
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return scores.gather(-1, ids[..., None])[..., 0] - scores.logsumexp(-1)


def base_logits(logits: Tensor) -> Tensor:
    """Give the logits of A, C, G, T in float32 at least, (..., 4)."""
    return logits[..., _FIRST : _LAST + 1].to(torch.promote_types(logits.dtype, torch.float32))


def _logits(model: nn.Module, ids_BL: Tensor) -> Tensor:
    """Run the model; refuse logits that do not answer for each position."""
    logits: Tensor = model(input_ids=ids_BL).logits
    if logits.shape[:2] != ids_BL.shape or logits.shape[-1] <= _LAST:
        raise InputError(
            f"the model gave logits of shape {tuple(logits.shape)} for ids of shape "
            f"{tuple(ids_BL.shape)}; expected one row of more than {_LAST} columns for each "
            "position (one token for each base)"
        )
    return logits


def _next_tokens(model: nn.Module, ids_BL: Tensor, columns: slice | None) -> _Predictions:
    """Predict every token but the first from those before it, in blocks of rows and positions."""
    batch, length = ids_BL.shape
    if length < 2:
        return
    base: Any = getattr(model, "base_model", model)
    head: Any = getattr(model, "lm_head", None)
    backbone: Any = getattr(base, "backbone", None)
    # A model that shares whole sequences with other processes does so when it is called itself.
    shared = getattr(model, "takes_whole_sequences", False)
    split = base is not model and isinstance(head, nn.Linear) and not shared
    config: Any = getattr(model, "config", None)
    limit: int = config.max_length if isinstance(backbone, Backbone) else 0
    if columns is not None:
        low, stop = columns.start - 1, columns.stop - 1
        logits = _logits(model, ids_BL[:, :stop])
        yield (slice(None), columns), logits[:, low:]
    elif split and _STREAMED <= length <= limit and can_stream(backbone):
        for row in range(batch):
            for at, hidden in stream_backbone(backbone, ids_BL[row : row + 1]):
                count = min(at.stop, length - 1) - at.start
                if count > 0:
                    part = slice(at.start + 1, at.start + 1 + count)
                    yield (slice(row, row + 1), part), head(hidden[:, :count])
    elif split:
        hidden: Tensor = base(input_ids=ids_BL, return_dict=True).last_hidden_state
        rows = max(1, _HEAD_POSITIONS // length)
        for begin in range(0, batch, rows):
            b = slice(begin, begin + rows)
            for start in range(0, length - 1, _HEAD_POSITIONS):
                stop = min(start + _HEAD_POSITIONS, length - 1)
                yield (b, slice(start + 1, stop + 1)), head(hidden[b, start:stop])
    else:
        yield (slice(None), slice(1, None)), _logits(model, ids_BL)[:, :-1]


def _hide(model: nn.Module, ids_BL: Tensor, parts: tuple[Tensor, ...], apart: bool) -> _Predictions:
    """Hide each position in a row of its own (`apart`), or all; `parts` are (row, column) pairs."""
    for part in parts:
        row, column = part.unbind(1)
        place = torch.arange(len(row), device=row.device) if apart else row
        hidden = ids_BL[row] if apart else ids_BL.clone()
        hidden[place, column] = MASK_ID
        yield (row, column), _logits(model, hidden)[place, column]


def _every_seventh(model: nn.Module, ids_BL: Tensor, columns: slice) -> _Predictions:
    for turn in range(min(_PASSES, columns.stop - columns.start)):
        part = slice(columns.start + turn, columns.stop, _PASSES)
        hidden = ids_BL.clone()
        hidden[:, part] = MASK_ID
        yield (slice(None), part), _logits(model, hidden)[:, part]

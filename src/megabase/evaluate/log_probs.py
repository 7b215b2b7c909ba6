"""Log-probability of every base of a sequence, under a causal or a masked language model.

A causal model reads a sequence once and gives each base from the bases before it. A masked model
gives each base from both sides, itself hidden: one reading for each base; the sum is a
pseudo-log-likelihood, comparable only with others of its kind.

Long sequences are read by causal HyenaDNA models in about two copies of their hidden vectors
(:mod:`megabase.layers.incremental`); nothing of their context is cut.

Shape suffixes: B batch, L positions, V columns of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megabase.data.vocabulary import MASK_ID
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.layers.backbone import Backbone
from megabase.layers.incremental import can_stream, stream_backbone
from megabase.models.checkpoints.finite import require_finite
from megabase.models.scored_model import inference_mode, language_model_kind

__all__ = ["token_log_probs"]

_FIRST, _LAST = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]
_HEAD_POSITIONS = 1 << 15
"""Positions whose logits exist at a time."""
_STREAMED = 1 << 15
"""Length from which causal HyenaDNA models read sequences one by one, with little memory."""


def token_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    over: Literal["bases", "all"] = "bases",
    first: Literal["uniform", "nan"] = "uniform",
    mask_id: int = MASK_ID,
    batch_tokens: int = 1 << 16,
    name: str | None = None,
    record: Callable[[int], str] = lambda row: f"row {row}",
) -> Tensor:
    """Give the natural log-probability of every token.

    Parameters
    ----------
    model
        A causal or masked language model with one token for each base. It is run in evaluation
        mode and without gradients; its mode is restored.
    input_ids
        Token ids, shape (batch, length), on the device of the model.
    attention_mask
        1 at real tokens, shape (batch, length). With right padding a causal model gives a sequence
        the values it has alone. All tokens are real when None.
    over
        ``"bases"``: probabilities are renormalised over A, C, G, T, and only these have a value.
        ``"all"``: over all columns of the logits, specials and unused rows included; every real
        token has a value.
    first
        Value of the first real token of a row in a causal model, which has nothing before it:
        ``"uniform"`` (-ln 4 over bases, -ln of the columns over all), with which the sum is the
        log-probability of the whole sequence; or ``"nan"``.
    mask_id
        Token that hides a base from a masked model.
    batch_tokens
        About how many positions a masked model reads at a time; time and memory, not the result.
    name, record
        Name of the model (its class when None), and that of a row, for messages.

    Returns
    -------
    Tensor
        Shape (batch, length), float32 at least. NaN where there is no value: padding and, over
        bases, N and special tokens; sum with :func:`torch.nansum`.

    Raises
    ------
    InputError
        When the model is no language model over bases, or the shapes do not fit.
    InputError
        When the input is longer than the model takes.
    NotFiniteError
        When a token has a log-probability that is NaN or infinite.
    """
    kind = language_model_kind(model)
    if over not in ("bases", "all") or first not in ("uniform", "nan"):
        raise InputError(
            f"over is bases or all, first is uniform or nan; found {over!r} and {first!r}"
        )
    if input_ids.dim() != 2 or (
        attention_mask is not None and attention_mask.shape != input_ids.shape
    ):
        raise InputError(
            "expected ids (batch, length) and a mask of the same shape, found "
            f"{tuple(input_ids.shape)} and "
            f"{None if attention_mask is None else tuple(attention_mask.shape)}"
        )
    real_BL = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        real_BL = attention_mask.bool()
    wanted_BL = real_BL
    if over == "bases":
        wanted_BL = wanted_BL & (input_ids >= _FIRST) & (input_ids <= _LAST)
    with inference_mode(model):
        if kind == "masked":
            found_BL = _masked(
                model, input_ids, attention_mask, wanted_BL, over, mask_id, batch_tokens
            )
        else:
            found_BL = _causal(model, input_ids, attention_mask, real_BL, over, first)
        asked_BL = wanted_BL
        if kind == "causal" and first == "nan":
            asked_BL = wanted_BL & (real_BL.cumsum(1) > 1)
        require_finite(
            found_BL, name or type(model).__name__, "log-probabilities", record, asked_BL
        )
    # Not an inference tensor: what is returned may be used where gradients are taken.
    return torch.where(wanted_BL, found_BL.clone(), torch.nan)


def _causal(
    model: nn.Module,
    ids_BL: Tensor,
    mask_BL: Tensor | None,
    real_BL: Tensor,
    over: str,
    first: str,
) -> Tensor:
    batch, length = ids_BL.shape
    columns = _LAST + 1
    found_BL: Tensor | None = None
    if length > 1:
        for b, part, logits in _next_logits(model, ids_BL, mask_BL):
            if found_BL is None:
                wide = torch.promote_types(logits.dtype, torch.float32)
                found_BL = torch.zeros(batch, length, dtype=wide, device=logits.device)
            columns = logits.shape[-1]
            later = slice(part.start + 1, part.stop + 1)
            found_BL[b, later] = _look_up(logits, ids_BL[b, later], over)
    elif (logits := getattr(model, "lm_head", None)) is not None:
        columns = logits.out_features
    if found_BL is None:
        found_BL = torch.zeros(batch, length, device=ids_BL.device)
    nothing_before_BL = real_BL & (real_BL.cumsum(1) == 1)
    start = -math.log(4 if over == "bases" else columns) if first == "uniform" else math.nan
    return torch.where(nothing_before_BL, start, found_BL)


def _next_logits(
    model: nn.Module, ids_BL: Tensor, mask_BL: Tensor | None
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Give the logits of all positions but the last, in blocks of rows and positions."""
    batch, length = ids_BL.shape
    arguments: dict[str, Any] = {"input_ids": ids_BL}
    if mask_BL is not None:
        arguments["attention_mask"] = mask_BL
    base, head = getattr(model, "base_model", model), getattr(model, "lm_head", None)
    backbone = getattr(base, "backbone", None)
    if length >= _STREAMED and isinstance(head, nn.Linear) and isinstance(backbone, Backbone):
        limit = model.config.max_length  # pyright: ignore[reportAttributeAccessIssue]
        before = mask_BL is not None and not bool((mask_BL[:, :-1] >= mask_BL[:, 1:]).all())
        if length <= limit and not before and can_stream(backbone):  # pyright: ignore[reportOperatorIssue]
            yield from _streamed(backbone, head, ids_BL)
            return
    if base is model or not isinstance(head, nn.Linear):
        logits: Tensor = model(**arguments).logits
        if tuple(logits.shape[:2]) != (batch, length) or logits.shape[-1] <= _LAST:
            raise InputError(
                f"the model gave logits of shape {tuple(logits.shape)} for ids of shape "
                f"{(batch, length)}; expected one row of more than {_LAST} columns a position"
            )
        yield slice(0, batch), slice(0, length - 1), logits[:, :-1]
        return
    hidden: Tensor = base(**arguments, return_dict=True).last_hidden_state
    rows = max(1, _HEAD_POSITIONS // length)
    for begin in range(0, batch, rows):
        b = slice(begin, min(begin + rows, batch))
        for start in range(0, length - 1, _HEAD_POSITIONS):
            part = slice(start, min(start + _HEAD_POSITIONS, length - 1))
            yield b, part, head(hidden[b, part])


def _streamed(
    backbone: Backbone, head: nn.Linear, ids_BL: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Give the logits of all positions but the last, holding little of any sequence."""
    for row in range(len(ids_BL)):
        b = slice(row, row + 1)
        for at, hidden in stream_backbone(backbone, ids_BL[b]):
            end = min(at.stop, ids_BL.shape[1] - 1)
            if at.start < end:
                yield b, slice(at.start, end), head(hidden[:, : end - at.start])


def _look_up(logits_BLV: Tensor, ids_BL: Tensor, over: str) -> Tensor:
    """Give the log-probabilities of `ids_BL`, in float32 at least; rubbish for non-bases."""
    scores = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))
    if over == "all":
        return scores.gather(-1, ids_BL[..., None])[..., 0] - scores.logsumexp(-1)
    own = scores[..., _FIRST : _LAST + 1]
    base = (ids_BL - _FIRST).clamp(0, _LAST - _FIRST)
    return own.gather(-1, base[..., None])[..., 0] - own.logsumexp(-1)


def _masked(
    model: nn.Module,
    ids_BL: Tensor,
    mask_BL: Tensor | None,
    wanted_BL: Tensor,
    over: str,
    mask_id: int,
    batch_tokens: int,
) -> Tensor:
    places = wanted_BL.nonzero()
    rows = max(1, batch_tokens // max(1, ids_BL.shape[1]))
    found_BL: Tensor | None = None
    for part in places.split(rows):
        row, column = part.unbind(1)
        hidden = ids_BL[row]
        number = torch.arange(len(row), device=row.device)
        hidden[number, column] = mask_id
        arguments: dict[str, Any] = {"input_ids": hidden}
        if mask_BL is not None:
            arguments["attention_mask"] = mask_BL[row]
        logits: Tensor = model(**arguments).logits[number, column]
        scores = _look_up(logits[:, None], ids_BL[row, column][:, None], over)[:, 0]
        if found_BL is None:
            found_BL = torch.zeros(ids_BL.shape, dtype=scores.dtype, device=scores.device)
        found_BL[row, column] = scores
    return torch.zeros(ids_BL.shape, device=ids_BL.device) if found_BL is None else found_BL

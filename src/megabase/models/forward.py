"""What the forward passes of all families share: arguments, losses, outputs.

transformers hands every model the same keyword arguments, whether a family has a use for them or
not. They are taken apart here, so that none is lost in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput, TransformersKwargs

from megabase.errors import ConfigError

__all__ = [
    "IGNORE_INDEX",
    "LossOptions",
    "add_loss",
    "binary_loss",
    "collects",
    "finish",
    "given_once",
    "library_arguments",
    "loss_options",
    "next_token_loss",
    "refuse_rest",
    "sequence_loss",
    "token_loss",
]

IGNORE_INDEX = -100
"""Label that takes no part in a loss."""

_STANDARD = frozenset(TransformersKwargs.__annotations__) | {
    "cache_params",
    "cache_position",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "head_mask",
    "labels",
    "logits_to_keep",
    "past_key_values",
    "shift_labels",
    "token_type_ids",
    "use_cache",
}
"""Arguments that callers of transformers models pass, whatever the model."""

_Output = TypeVar("_Output", bound=ModelOutput)


class LossOptions(NamedTuple):
    """How the caller wants a loss to be taken."""

    num_items_in_batch: Tensor | int | None = None
    """Labels in all the batches and processes of one step, which the sum is divided by; the mean
    over this batch's own labels when None."""
    shift_labels: Tensor | None = None
    """Labels of a next-token head that are aligned with the logits already."""


_NO_OPTIONS = LossOptions()


def refuse_rest(model: nn.Module, rest: dict[str, Any], allowed: Iterable[str] = ()) -> None:
    """Refuse arguments that a forward pass has no parameter for and does not know how to honor.

    Standard arguments of transformers may be there as None, False or 0, and ``use_cache`` without a
    cache asks for nothing.

    Parameters
    ----------
    model
        The model, for the message.
    rest
        The keyword arguments left over.
    allowed
        Names that the caller does honor.

    Raises
    ------
    ConfigError
        Naming the first argument that is unknown, or asks for what the family does not have.
    """
    for name, value in rest.items():
        if name in allowed or name == "use_cache":
            continue
        kind = type(model).__name__
        if name not in _STANDARD:
            taken = [p for p in inspect.signature(model.forward).parameters if p != "rest"]
            raise ConfigError(
                f"{kind} has no argument {name!r}; its forward pass takes {', '.join(taken)}"
            )
        # is_causal=False asks for something; the others do not when they are false.
        asks_nothing = value is None or (
            name != "is_causal" and type(value) in (bool, int) and not value
        )
        if not asks_nothing:
            raise ConfigError(
                f"{kind} cannot honor {name}: it has nothing of the kind; leave the argument out"
            )


def loss_options(
    model: nn.Module, rest: dict[str, Any], *, next_token: bool = False
) -> LossOptions:
    """Take what concerns the loss out of the arguments left over, and refuse what is unknown.

    Parameters
    ----------
    model
        The model, for messages.
    rest
        The keyword arguments that the forward pass has no parameter for.
    next_token
        Whether its labels are those of next tokens, which may be shifted already.

    Returns
    -------
    LossOptions

    Raises
    ------
    ConfigError
        As :func:`refuse_rest`.
    """
    if not rest:
        return _NO_OPTIONS
    allowed = ("num_items_in_batch", "shift_labels") if next_token else ("num_items_in_batch",)
    refuse_rest(model, rest, allowed)
    return LossOptions(rest.get("num_items_in_batch"), rest.get("shift_labels"))


def _per_item(loss: Tensor, options: LossOptions) -> Tensor:
    number = options.num_items_in_batch
    if number is None:
        return loss
    return loss / (number.to(loss.device) if isinstance(number, Tensor) else number)


def _reduction(options: LossOptions) -> str:
    return "mean" if options.num_items_in_batch is None else "sum"


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def token_loss(
    logits: Tensor,
    labels: Tensor,
    options: LossOptions = _NO_OPTIONS,
    loss_weights: Tensor | None = None,
    pad_id: int | None = None,
) -> Tensor:
    """Cross entropy of tokens, in float32 at least.

    Parameters
    ----------
    logits
        Shape (batch, length, rows).
    labels
        Token ids, shape (batch, length). The value -100 and `pad_id` take no part.
    options
        What the sum is divided by: the labels that take part, unless this says otherwise.
    loss_weights
        Weights of the sum and of the mean, shape (batch, length); all one when None.
    pad_id
        Second value that takes no part.

    Returns
    -------
    Tensor
        0-d; the mean is not a number when no label takes part.
    """
    wide = _wide(logits).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    if pad_id is not None:
        labels = torch.where(labels == pad_id, IGNORE_INDEX, labels)
    if loss_weights is None:
        reduction = _reduction(options)
        loss = F.cross_entropy(wide, labels, ignore_index=IGNORE_INDEX, reduction=reduction)
        return _per_item(loss, options)
    losses = F.cross_entropy(wide, labels, ignore_index=IGNORE_INDEX, reduction="none")
    weights = loss_weights.to(losses).flatten() * (labels != IGNORE_INDEX)
    if options.num_items_in_batch is None:
        weights = weights / weights.sum()
    return _per_item((losses * weights).sum(), options)


def next_token_loss(
    logits: Tensor, labels: Tensor | None, options: LossOptions = _NO_OPTIONS
) -> Tensor | None:
    """Cross entropy of next tokens.

    Parameters
    ----------
    logits
        Shape (batch, length, rows).
    labels
        Shape (batch, length), aligned with the inputs: they are shifted by one here.
    options
        Its ``shift_labels``, aligned with the logits, take the place of `labels`.

    Returns
    -------
    Tensor or None
        As :func:`token_loss`; None without labels of either kind.
    """
    if options.shift_labels is not None:
        return token_loss(logits, options.shift_labels, options)
    return None if labels is None else token_loss(logits[:, :-1], labels[:, 1:], options)


def _problem_of(config: PreTrainedConfig, labels: Tensor) -> str:
    """Tell the kind of task, from the configuration or else from the labels.

    One label means regression, integer labels mean one class out of several, others several
    labels at once: the rule of transformers.
    """
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return (
        "multi_label_classification"
        if labels.is_floating_point()
        else "single_label_classification"
    )


def sequence_loss(
    logits: Tensor,
    labels: Tensor,
    config: PreTrainedConfig,
    options: LossOptions = _NO_OPTIONS,
) -> Tensor:
    """Loss of a batch of sequence predictions, in float32 at least.

    Parameters
    ----------
    logits
        (batch, labels).
    labels
        (batch,) class numbers, or (batch, labels) or (batch,) numbers.
    config
        Its ``problem_type`` and ``num_labels`` decide: cross entropy, binary cross entropy over
        all labels, or squared error.
    options
        What the sum is divided by: the number of labels, unless this says otherwise.

    Returns
    -------
    Tensor
        0-d.
    """
    logits, labels, reduction = _wide(logits), labels.to(logits.device), _reduction(options)
    match _problem_of(config, labels):
        case "regression":
            targets = labels.reshape(-1).to(logits.dtype)
            loss = F.mse_loss(logits.reshape(-1), targets, reduction=reduction)
        case "single_label_classification":
            loss = F.cross_entropy(logits, labels.reshape(-1).long(), reduction=reduction)
        case _:
            return binary_loss(logits, labels, options)
    return _per_item(loss, options)


def binary_loss(logits: Tensor, labels: Tensor, options: LossOptions = _NO_OPTIONS) -> Tensor:
    """Binary cross entropy of logits and labels of one shape, in float32 at least."""
    logits = _wide(logits)
    targets = labels.to(logits)
    reduction = _reduction(options)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)
    return _per_item(loss, options)


def given_once(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Give the one that is there.

    Raises
    ------
    ConfigError
        When not exactly one is.
    """
    given = input_ids if input_ids is not None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ConfigError("give exactly one of input_ids and inputs_embeds")
    return given


def collects(config: PreTrainedConfig, output_hidden_states: bool | None) -> bool:
    """Whether hidden states are returned: what the caller says, or else the configuration."""
    wanted = output_hidden_states
    return bool(config.output_hidden_states if wanted is None else wanted)


def finish(
    model: PreTrainedModel, output: _Output, return_dict: bool | None
) -> _Output | tuple[Any, ...]:
    """Give an output as an object or, where the caller or the configuration asks, as a tuple."""
    wanted = model.config.return_dict if return_dict is None else return_dict
    return output if wanted else output.to_tuple()


def library_arguments(model: nn.Module, own: type[nn.Module], rest: dict[str, Any]) -> Any:
    """Give the arguments that a class of transformers takes, and refuse the others.

    Its own forward pass takes any argument, and loses those it does not know.

    Parameters
    ----------
    model
        The model, for messages.
    own
        The class of transformers.
    rest
        Keyword arguments for its forward pass.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        As :func:`refuse_rest`.
    """
    taken = set(inspect.signature(own.forward).parameters)
    taken |= {"output_attentions", "output_hidden_states", "return_dict"}
    refuse_rest(model, rest, taken)
    return {name: value for name, value in rest.items() if name in taken}


def add_loss(result: Any, loss: Callable[[Tensor], Tensor]) -> Any:
    """Put a loss of its logits into the output of a class of transformers."""
    if isinstance(result, tuple):
        return (loss(result[0]), *result)
    result.loss = loss(result.logits)
    return result

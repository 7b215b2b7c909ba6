"""The heads of all families for tokens, labels of sequences and labels of nucleotides; losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from megabase.layers.pooling import pool
from megabase.models.base import (
    DNAModel,
    LetterGenerationMixin,
    finish,
    refuse_rest,
)

IGNORE_INDEX = -100
"""Label that takes no part in a loss: the convention of torch and transformers."""


class LossOptions(NamedTuple):
    """How the caller wants a loss to be taken."""

    num_items_in_batch: Tensor | int | None = None
    """Labels in all the batches and processes of one step, which the sum is divided by; the mean
    over this batch's own labels when None."""
    shift_labels: Tensor | None = None
    """Labels of a next-token head that are aligned with the logits already."""


_NO_OPTIONS = LossOptions()
"""The mean over the labels of one batch, the usual case."""


def _loss_options(
    model: nn.Module, rest: Mapping[str, Any], allowed: tuple[str, ...] = ()
) -> LossOptions:
    """Take the loss's arguments, ``num_items_in_batch`` and those in `allowed`, out of the rest.

    Unknown ones are a ConfigError.
    """
    if not rest:
        return _NO_OPTIONS
    refuse_rest(model, rest, ("num_items_in_batch", *allowed))
    return LossOptions(rest.get("num_items_in_batch"), rest.get("shift_labels"))


def _per_item(loss: Tensor, options: LossOptions) -> Tensor:
    """Divide a sum by the number that the caller gave; leave a mean alone."""
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
    """Cross entropy of logits (batch, length, rows), in float32 at least.

    The labels -100 and `pad_id` take no part, and without any other the mean is NaN.
    `loss_weights` (batch, length) weigh the sum and the mean.
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


def _problem_of(config: PreTrainedConfig, labels: Tensor) -> str:
    """Name the kind of task, from the configuration or else from the labels, as transformers."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    several = labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"


def sequence_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, options: LossOptions = _NO_OPTIONS
) -> Tensor:
    """Loss of logits (batch, labels), in float32 at least.

    ``config.problem_type``, else ``num_labels`` and the type of the labels, decides: cross entropy
    of class numbers (batch,), binary cross entropy over all labels (batch, labels), or squared
    error.
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


@dataclass
class LanguageModelOutput(ModelOutput):
    """Predictions of a language model."""

    loss: Tensor | None = None
    """Mean cross entropy, when labels were given."""
    logits: Tensor | None = None
    """Shape (batch, length, rows of the vocabulary)."""
    cache: Any = None
    """What the next position needs, when it was requested of a model that has one."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Input of every block and the final output, when they were requested."""
    attentions: tuple[Tensor, ...] | None = None
    """Attention weights of the blocks that have them, when they were requested."""


class Strand(NamedTuple):
    """Hidden vectors of one strand, in its own direction."""

    hidden: Tensor
    """Shape (batch, length, width)."""
    mask: Tensor | None
    """True at real tokens, shape (batch, length)."""


class Head(DNAModel):
    """A base model with something on top; a family adds its configuration and its base model."""

    base_class: ClassVar[type[PreTrainedModel]]
    """The family's model without a head, which is kept under ``base_model_prefix``."""
    encoder_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of the base model beyond those that all families have."""

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.base_class(config))
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: Any) -> None:
        """Add the layer on top; a linear classifier unless a subclass has another."""
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)

    def _encode(self, rest: Mapping[str, Any], **inputs: Any) -> Any:
        """Run the base model, with what it takes of the arguments left over."""
        extra = {name: rest[name] for name in self.encoder_options if name in rest}
        return self.base_model(**inputs, **extra, return_dict=True)

    def _real_tokens(
        self, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor | None:
        """Give the mask of real tokens for pooling: the one given, or else all but padding."""
        pad = self.config.pad_token_id
        if attention_mask is not None or input_ids is None or pad is None:
            return attention_mask
        return input_ids != pad

    def _strands(
        self, rest: Mapping[str, Any], input_ids: Tensor | None, **inputs: Any
    ) -> tuple[list[Strand], dict[str, Any]]:
        """Give the strands that a classifier scores, and the hidden states and attentions."""
        encoded = self._encode(rest, input_ids=input_ids, **inputs)
        mask = self._real_tokens(input_ids, inputs["attention_mask"])
        return [Strand(encoded.last_hidden_state, mask)], _states(encoded)


def _states(encoded: Any) -> dict[str, Any]:
    """Give what the output of a head hands on from the base model's."""
    names = ("cache", "hidden_states", "attentions")
    found = {name: getattr(encoded, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


class _LanguageModel(Head):
    """The base model with scores of tokens at every position."""

    lm_head: nn.Module
    loss_arguments: ClassVar[tuple[str, ...]]
    """Arguments that concern the loss alone."""

    def _add_head(self, config: Any) -> None:
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """Give the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> LanguageModelOutput | tuple[Any, ...]:
        """Predict tokens: logits (batch, length, config.vocab_rows), and the loss of `labels`.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict
            As for the base model.
        labels
            Token ids to predict, shape (batch, length), aligned with `input_ids`; next-token
            models shift them by one inside, the library's habit. The value -100 takes no part; pad
            tokens do in next-token models unless they are set to it, and do not in masked ones.
        **rest
            Further arguments of the base model (``encoder_options``); ``num_items_in_batch`` of
            transformers; of next-token models ``shift_labels`` of transformers; of masked ones
            ``loss_weights``, the weights of labels in the mean, shape (batch, length).
        """
        options = _loss_options(self, rest, (*self.loss_arguments, *self.encoder_options))
        encoded = self._encode(
            rest,
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = self._loss(logits, labels, options, rest)
        output = LanguageModelOutput(loss=loss, logits=logits, **_states(encoded))
        return finish(self, output, return_dict)

    def _loss(
        self, logits: Tensor, labels: Tensor | None, options: LossOptions, rest: Mapping[str, Any]
    ) -> Tensor | None:
        raise NotImplementedError


class CausalLM(LetterGenerationMixin, _LanguageModel):
    """The base model with the next-token head it is pretrained with."""

    loss_arguments = ("shift_labels",)

    def _loss(
        self, logits: Tensor, labels: Tensor | None, options: LossOptions, rest: Mapping[str, Any]
    ) -> Tensor | None:
        if options.shift_labels is not None:
            return token_loss(logits, options.shift_labels, options)
        return None if labels is None else token_loss(logits[:, :-1], labels[:, 1:], options)


class MaskedLM(_LanguageModel):
    """The base model with a head for hidden tokens, each predicted at its own position."""

    loss_arguments = ("loss_weights",)

    def _loss(
        self, logits: Tensor, labels: Tensor | None, options: LossOptions, rest: Mapping[str, Any]
    ) -> Tensor | None:
        if labels is None:
            return None
        pad_id = self.config.pad_token_id
        return token_loss(logits, labels, options, rest.get("loss_weights"), pad_id)


class _Classifier(Head):
    """The base model with a linear head for labels."""

    output_class: ClassVar[Any]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput | TokenClassifierOutput | tuple[Any, ...]:
        """Classify sequences or nucleotides.

        Logits are (batch, num_labels) or (batch, length, num_labels), the mean over the strands
        that are scored.

        Parameters
        ----------
        input_ids, inputs_embeds, output_hidden_states, return_dict
            As for the base model. A Caduceus that conjoins strands takes ids (batch, length, 2),
            as given and of the reverse complement; or (batch, length), whose tokens it reverses
            and complements itself; or embeddings (batch, length, width, 2). The hidden states are
            those of the strand as given.
        attention_mask
            1 at real tokens; of a conjoined input, one mask holds for both strands when ids of both
            are given. When it is missing, tokens other than ``config.pad_token_id`` are real.
            In a decoder, pooling ``hf`` looks at pad tokens only, never at the mask.
        labels
            Of sequences: class numbers (batch,), floats (batch,) or (batch, 1) for regression, or
            0/1 vectors (batch, num_labels), by ``config.problem_type`` or else by their number and
            type. Of nucleotides: class numbers (batch, length), in the direction of the strand as
            given; -100 takes no part.
        **rest
            Further arguments of the base model, and ``num_items_in_batch`` of transformers.
        """
        options = _loss_options(self, rest, self.encoder_options)
        strands, states = self._strands(
            rest,
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        logits = self._logits(strands)
        loss = None if labels is None else self._loss(logits, labels, options)
        return finish(self, self.output_class(loss=loss, logits=logits, **states), return_dict)

    def _logits(self, strands: list[Strand]) -> Tensor:
        """Score every strand, and average."""
        raise NotImplementedError

    def _loss(self, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        raise NotImplementedError


class SequenceClassifier(_Classifier):
    """The base model, pooled over positions, with a linear head for labels of sequences."""

    output_class = SequenceClassifierOutput

    def _logits(self, strands: list[Strand]) -> Tensor:
        scores = [self.score(pool(hidden, self.config.pooling, mask)) for hidden, mask in strands]
        return scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)

    def _loss(self, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        return sequence_loss(logits, labels, self.config, options)


class TokenClassifier(_Classifier):
    """The base model with a linear head at every position, for labels of nucleotides."""

    output_class = TokenClassifierOutput

    def _logits(self, strands: list[Strand]) -> Tensor:
        scores = [self.score(hidden) for hidden, _ in strands]
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1].flip(1)) / 2

    def _loss(self, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        return token_loss(logits, labels, options)


class SupervisedClassifier(PreTrainedModel):
    """A network for labels of whole sequences of one length, without pretraining."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    prediction_options: ClassVar[tuple[str, ...]] = ()
    """Arguments of :meth:`predict` beyond ids and mask."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the way torch does; transformers would draw everything with width 0.02."""
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, value in (
                ("running_mean", 0),
                ("running_var", 1),
                ("num_batches_tracked", 0),
            ):
                init.constant_(getattr(module, name), value)

    def predict(self, input_ids: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
        """Give logits (batch, labels)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Give the loss of logits (batch, labels)."""
        return sequence_loss(logits, labels, self.config, options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Score sequences: ``logits`` (batch, labels), and the ``loss`` of `labels`.

        Parameters
        ----------
        input_ids
            int64 (batch, length), brought to ``config.max_length`` tokens; InputError for more,
            unless ``config.too_long`` is ``"trim"``.
        attention_mask
            (batch, length), 1 for real tokens; only tells padding from tokens.
        labels
            Class numbers (batch,), or numbers (batch, labels); see ``config.problem_type``.
        **rest
            What :meth:`predict` takes, and ``num_items_in_batch`` of transformers.
        """
        options = _loss_options(self, rest, self.prediction_options)
        own = {name: rest[name] for name in self.prediction_options if name in rest}
        logits: Any = self.predict(input_ids, attention_mask, **own)
        loss: Any = None if labels is None else self.loss(logits, labels, options)
        return finish(self, SequenceClassifierOutput(loss=loss, logits=logits), return_dict)

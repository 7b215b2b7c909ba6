"""The heads of all families for tokens, labels of sequences and of nucleotides; losses; BERTs."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedConfig,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
)
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import ModelOutput, can_return_tuple

from megabase.data.vocabulary import VOCABULARY
from megabase.errors import ConfigError
from megabase.layers.pooling import pool
from megabase.models.base import DNAModel, check_length, grouped_parameters, refuse_rest

IGNORE_INDEX = -100
"""Label that takes no part in a loss: the convention of torch and transformers."""
_SPECIAL = [number for token, number in VOCABULARY.items() if token.startswith("[")]
"""Ids that generation never draws: only letters are DNA."""
HEADS = {
    "classes": ("sequence-classification", "single_label_classification"),
    "multi_label": ("sequence-classification", "multi_label_classification"),
    "regression": ("sequence-classification", "regression"),
    "nucleotides": ("token-classification", "single_label_classification"),
    "tracks": ("token-classification", "regression"),
}
"""Kind of labels -> kind of model, and the name that transformers has for its problem."""
Strand = tuple[Tensor, Tensor | None]
"""Hidden vectors of one strand, in its own direction, (batch, length, width), and a mask that is
True at real tokens, (batch, length), or None."""


def label_fields(kind: str, names: Sequence[str]) -> dict[str, Any]:
    """Give the fields of a configuration that say what a head answers."""
    return {
        "problem_type": HEADS[kind][1],
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _share(loss: Tensor, items: Tensor | int) -> Tensor:
    """Divide a sum by the number of labels in all the batches and processes of one step."""
    return loss / (items.to(loss.device) if isinstance(items, Tensor) else items)


def _average(
    loss: Callable[..., Tensor], logits: Tensor, targets: Tensor, items: Tensor | int | None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Give the mean of a loss over this batch's labels, or its sum over `items` labels."""
    if items is None:
        return loss(logits, targets, **options)
    return _share(loss(logits, targets, reduction="sum", **options), items)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _token_loss(
    logits: Tensor, labels: Tensor, items: Tensor | int | None = None,
    loss_weights: Tensor | None = None, pad_id: int | None = None,
) -> Tensor:  # fmt: skip
    """Cross entropy of logits (batch, length, rows), in float32 at least.

    The labels -100 and `pad_id` take no part, and without any other the mean is NaN. `items` is the
    number that a sum is divided by, in place of the mean over this batch's labels. `loss_weights`
    (batch, length) weigh the sum and the mean.
    """
    wide = _wide(logits).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    if pad_id is not None:
        labels = torch.where(labels == pad_id, IGNORE_INDEX, labels)
    if loss_weights is None:
        return _average(F.cross_entropy, wide, labels, items, ignore_index=IGNORE_INDEX)
    losses = F.cross_entropy(wide, labels, ignore_index=IGNORE_INDEX, reduction="none")
    weights = loss_weights.to(losses).flatten() * (labels != IGNORE_INDEX)
    if items is None:
        return (losses * (weights / weights.sum())).sum()
    return _share((losses * weights).sum(), items)


def sequence_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, items: Tensor | int | None = None,
    problem: str | None = None,
) -> Tensor:  # fmt: skip
    """Loss of logits (batch, labels), in float32 at least; `items` as for the loss of tokens.

    `problem`, else ``config.problem_type``, else ``num_labels`` and the type of the labels, chooses
    cross entropy of class numbers (batch,), binary cross entropy over all labels (batch, labels),
    or squared error.
    """
    logits, labels = _wide(logits), labels.to(logits.device)
    usual = "multi_label" if labels.is_floating_point() else "single_label_classification"
    usual = "regression" if config.num_labels == 1 else usual
    problem = problem or config.problem_type or usual
    if problem == "regression":
        targets = labels.reshape(-1).to(logits.dtype)
        return _average(F.mse_loss, logits.reshape(-1), targets, items)
    if problem == "single_label_classification":
        return _average(F.cross_entropy, logits, labels.reshape(-1).long(), items)
    return _average(F.binary_cross_entropy_with_logits, logits, labels.to(logits), items)


@dataclass
class _LanguageModelOutput(ModelOutput):
    """Predictions of a language model; the last three when they were requested."""

    loss: Tensor | None = None  # mean cross entropy, when labels were given
    logits: Tensor | None = None  # (batch, length, rows of the vocabulary)
    cache: Any = None  # what the next position needs
    hidden_states: tuple[Tensor, ...] | None = None  # input of every block and the final output
    attentions: tuple[Tensor, ...] | None = None  # weights of the blocks that attend


class _Head(DNAModel):
    """A base model with something on top; a family adds its configuration and its base model.

    `encoder_options` are arguments of the base model beyond those that all families have, and
    `loss_arguments` those that concern the loss alone, beyond the number of items.
    """

    encoder_options: ClassVar[tuple[str, ...]] = ()
    loss_arguments: ClassVar[tuple[str, ...]] = ()
    output_class: ClassVar[Any]

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.base_class(config))
        self._add_head(config)
        self.post_init()

    def _add_head(self, config: Any) -> None:
        """Add the layer on top; a linear classifier unless a subclass has another."""
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
        """Predict tokens, or classify sequences or nucleotides.

        Logits are (batch, length, config.vocab_rows) of a language model, rows past the vocabulary
        included; (batch, num_labels) or (batch, length, num_labels) of a classifier, the mean over
        the strands that are scored. With `labels` there is a loss.

        Parameters
        ----------
        input_ids, inputs_embeds, output_hidden_states
            As for the base model. A Caduceus classifier that conjoins strands takes ids (batch,
            length, 2), as given and of the reverse complement; or (batch, length), whose tokens it
            reverses and complements itself; or embeddings (batch, length, width, 2). The hidden
            states are those of the strand as given.
        attention_mask
            1 at real tokens; by default those other than ``config.pad_token_id`` are real. Of a
            conjoined input, one mask holds for both strands when ids of both are given. In a
            decoder, pooling ``hf`` looks at pad tokens only, never at the mask.
        labels
            Of a language model: token ids (batch, length), aligned with `input_ids`; next-token
            models shift them by one inside, and pad tokens take part in them unless they are set to
            -100, in masked ones not.
            Of sequences: class numbers (batch,), floats (batch,) or (batch, 1) for regression, or
            0/1 vectors (batch, num_labels), by ``config.problem_type`` or else by their number and
            type. Of nucleotides: class numbers (batch, length), in the direction of the strand as
            given. Where they are per position, -100 takes no part.
        **rest
            Further arguments of the base model (``encoder_options``); ``num_items_in_batch`` of
            transformers; of next-token models ``shift_labels`` of transformers; of masked ones
            ``loss_weights``, the weights of labels in the mean, shape (batch, length).
        """
        refuse_rest(self, rest, ("num_items_in_batch", *self.loss_arguments, *self.encoder_options))
        strands, states = self._strands(
            rest, input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits, items = self._logits(strands), rest.get("num_items_in_batch")
        needed = labels is not None or rest.get("shift_labels") is not None
        loss = self._loss(logits, cast("Any", labels), items, rest) if needed else None
        return self.output_class(loss=loss, logits=logits, **states)

    def _strands(
        self, rest: Mapping[str, Any], input_ids: Tensor | None, **inputs: Any
    ) -> tuple[list[Strand], dict[str, Any]]:
        """Give the strands that are scored, and what an output hands on from the base model's."""
        extra = {name: rest[name] for name in self.encoder_options if name in rest}
        encoded = self.base_model(input_ids=input_ids, **inputs, **extra, return_dict=True)
        mask = self._real_tokens(input_ids, inputs["attention_mask"])
        states = {k: encoded.get(k) for k in ("cache", "hidden_states", "attentions")}
        states = {name: value for name, value in states.items() if value is not None}
        return [(encoded.last_hidden_state, mask)], states

    def _real_tokens(
        self, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor | None:
        """Give the mask of real tokens for pooling: the one given, or else all but padding."""
        pad = self.config.pad_token_id
        if attention_mask is not None or input_ids is None or pad is None:
            return attention_mask
        return input_ids != pad

    def _logits(self, strands: list[Strand]) -> Tensor:
        """Score every strand, and average."""
        raise NotImplementedError

    def _loss(self, logits: Tensor, labels: Tensor, items: Any, rest: dict[str, Any]) -> Tensor:
        """Give the loss."""
        raise NotImplementedError


class _LanguageModel(_Head):
    """The base model with scores of tokens at every position."""

    lm_head: nn.Module
    output_class = _LanguageModelOutput

    def _add_head(self, config: Any) -> None:
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """Give the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def _logits(self, strands: list[Strand]) -> Tensor:
        return self.lm_head(strands[0][0])


class CausalLM(GenerationMixin, _LanguageModel):
    """The base model with the next-token head it is pretrained with.

    ``generate()`` draws letters only. Each token is that of a full pass over everything so far,
    unless the family hands on a cache; the verb ``generate`` gives the same sequences at the cost
    of one pass.
    """

    loss_arguments = ("shift_labels",)
    # What was read cannot be taken back, as assisted decoding would have to.
    _is_stateful = True

    def _loss(self, logits: Tensor, labels: Tensor, items: Any, rest: dict[str, Any]) -> Tensor:
        if (aligned := rest.get("shift_labels")) is not None:
            return _token_loss(logits, aligned, items)
        return _token_loss(logits[:, :-1], labels[:, 1:], items)

    def generate(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Generate sequences; see transformers.

        Special tokens and rows of the embedding past the vocabulary are never drawn. The end token
        that the tokenizer puts behind a prompt stays in the result and is not read: what follows an
        end does not depend on the prompt. ConfigError when only some prompts of a batch end with
        it, or a prompt is nothing else.
        """
        config: Any = self.config
        prompt = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        end = config.eos_token_id
        if prompt is not None and end is not None:
            ends = prompt[:, -1] == end
            if bool(ends.any()) and (not bool(ends.all()) or prompt.shape[1] == 1):
                raise ConfigError(
                    "some prompts end with the end token and others do not, or a prompt holds no "
                    "letter; tokenize them with add_special_tokens=False and left padding"
                )
        unused = [*_SPECIAL, *range(config.vocab_size, config.vocab_rows)]
        processors = LogitsProcessorList(logits_processor or [])
        processors.append(SuppressTokensLogitsProcessor(unused, device=str(self.device)))
        library: Any = super()
        return library.generate(*args, logits_processor=processors, **kwargs)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        """Give the library's criteria, with the longest input that the model really has.

        The library takes ``max_position_embeddings`` for it, which published HyenaDNA sets to 0.
        """
        library: Any = super()
        found = library._get_stopping_criteria(*args, **kwargs)
        for one in found:
            if isinstance(one, MaxLengthCriteria):
                one.max_position_embeddings = self.config.max_length
        return found

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Give everything read so far, as the forward pass takes it."""
        names = ("output_attentions", "output_hidden_states")
        inputs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        end = self.config.eos_token_id
        if inputs_embeds is None and end is not None:
            read = (input_ids != end).any(dim=0)
            if attention_mask is not None and attention_mask.shape == input_ids.shape:
                attention_mask = attention_mask[:, read]
            input_ids = input_ids[:, read]
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if inputs_embeds is None:
            return {**inputs, "input_ids": input_ids}
        # The mask grows with every token that is generated after the given vectors.
        length = inputs_embeds.shape[1] if attention_mask is None else attention_mask.shape[1]
        drawn = input_ids[:, input_ids.shape[1] - (length - inputs_embeds.shape[1]) :]
        vectors = torch.cat([inputs_embeds, self.get_input_embeddings()(drawn)], dim=1)
        return {**inputs, "inputs_embeds": vectors}


class MaskedLM(_LanguageModel):
    """The base model with a head for hidden tokens, each predicted at its own position."""

    loss_arguments = ("loss_weights",)

    def _loss(self, logits: Tensor, labels: Tensor, items: Any, rest: dict[str, Any]) -> Tensor:
        weights = rest.get("loss_weights")
        return _token_loss(logits, labels, items, weights, self.config.pad_token_id)


class SequenceClassifier(_Head):
    """The base model, pooled over positions, with a linear head for labels of sequences."""

    output_class = SequenceClassifierOutput

    def _logits(self, strands: list[Strand]) -> Tensor:
        mode = self.config.pooling
        scores = [self.score(pool(hidden, mode, mask)) for hidden, mask in strands]
        return scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)

    def _loss(self, logits: Tensor, labels: Tensor, items: Any, rest: dict[str, Any]) -> Tensor:
        return sequence_loss(logits, labels, self.config, items)


class TokenClassifier(_Head):
    """The base model with a linear head at every position, for labels of nucleotides."""

    output_class = TokenClassifierOutput

    def _logits(self, strands: list[Strand]) -> Tensor:
        scores = [self.score(hidden) for hidden, _ in strands]
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1].flip(1)) / 2

    def _loss(self, logits: Tensor, labels: Tensor, items: Any, rest: dict[str, Any]) -> Tensor:
        return _token_loss(logits, labels, items)


class SupervisedClassifier(PreTrainedModel):
    """A network for labels of whole sequences of one length, without pretraining.

    `prediction_options` are arguments of :meth:`predict` beyond ids and mask.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    prediction_options: ClassVar[tuple[str, ...]] = ()
    shown_name: ClassVar[str]

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
            for name in ("weight", "running_var", "bias", "running_mean", "num_batches_tracked"):
                init.constant_(getattr(module, name), int(name in ("weight", "running_var")))

    def predict(self, input_ids: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
        """Give logits (batch, labels)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """Give the loss of logits (batch, labels)."""
        return sequence_loss(logits, labels, self.config, items)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases, norms and the embedding do not decay."""
        return grouped_parameters(self, lr, weight_decay, decay_embeddings=False)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
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
        refuse_rest(self, rest, ("num_items_in_batch", *self.prediction_options))
        items = rest.pop("num_items_in_batch", None)
        logits: Any = self.predict(input_ids, attention_mask, **rest)
        loss: Any = None if labels is None else self.loss(logits, labels, items)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _fit_length(self, ids_BL: Tensor, mask_BL: Tensor | None, side: str) -> Tensor:
        """Lay real tokens side by side, and pad them on `side` to ``config.max_length``.

        The result does not depend on where and how far the batch was padded before.
        """
        config: Any = self.config
        length: int = config.max_length
        batch, given = ids_BL.shape
        if mask_BL is None:
            if given == length:
                return ids_BL
            mask_BL = torch.ones_like(ids_BL)
        mask_BL = mask_BL.bool()
        count_B1 = mask_BL.sum(dim=1, keepdim=True)
        if given > length and config.too_long == "error":
            # Only a batch wider than the model pays for looking at the counts.
            advice = (
                "shorten the sequences (special tokens count: add_special_tokens=False leaves them "
                'out), set too_long="trim" to keep their beginning, or build the model with a '
                "larger max_length"
            )
            check_length(int(count_B1.max()), length, self.shown_name, advice)
        kept_B1 = count_B1.clamp(max=length)
        position_BL = mask_BL.cumsum(dim=1) - 1
        wanted_BL = mask_BL & (position_BL < kept_B1)
        if side == "left":
            position_BL = position_BL + (length - kept_B1)
        # One extra column takes what is not wanted.
        position_BL = torch.where(wanted_BL, position_BL, length)
        fitted = ids_BL.new_full((batch, length + 1), config.pad_token_id or 0)
        return fitted.scatter(1, position_BL, ids_BL)[:, :length]


class BertLike(nn.Module):
    """What DNABERT and BigBird add to the classes of transformers: checks and optimizer groups."""

    config: Any
    library_class: ClassVar[type[nn.Module]]
    """Class of transformers, whose forward pass takes any argument and loses the unknown ones."""

    def _describe_limit(self) -> tuple[str, str]:
        """Name the model, and the remedy for a longer input, for the error message."""
        raise NotImplementedError

    def _ready(self, tokens: int) -> AbstractContextManager[None]:
        """Get ready for inputs of a length, and give what the forward pass runs in."""
        return nullcontext()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Run the class of transformers, which takes the other arguments; the loss is ours.

        Ids, mask and types are (batch, tokens); InputError for more tokens than
        ``config.max_position_embeddings``, ConfigError for an argument that cannot be honored.
        Labels of a classifier are class numbers (batch,), or numbers (batch, labels), see
        ``config.problem_type``; of a masked language model ids (batch, tokens), where -100 takes no
        part.
        """
        items = None
        if "labels" in inspect.signature(self.library_class.forward).parameters:
            items = kwargs.pop("num_items_in_batch", None)
        else:
            refuse_rest(self, {"labels": labels})
        output = self._run(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return output
        if output.logits.dim() == 3:
            loss = _token_loss(output.logits, labels, items)
        else:
            loss = sequence_loss(output.logits, labels, self.config, items)
        return type(output)(**{**output, "loss": loss})

    def _run(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, **kwargs: Any
    ) -> Any:
        """Give the output without a loss."""
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        tokens = 0 if given is None else given.shape[1]  # transformers refuses the lack of both
        check_length(tokens, self.config.max_position_embeddings, *self._describe_limit())
        taken = set(inspect.signature(self.library_class.forward).parameters)
        taken |= {"output_attentions", "output_hidden_states", "return_dict"}
        refuse_rest(self, kwargs, taken)
        kwargs = {name: value for name, value in kwargs.items() if name in taken}
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        parent: Any = super()
        with self._ready(tokens):
            return parent.forward(**given, **kwargs, return_dict=True)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases and layer norms do not decay, as published."""
        return grouped_parameters(self, lr, weight_decay)

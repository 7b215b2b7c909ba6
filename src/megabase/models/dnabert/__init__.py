"""DNABERT (Ji et al. 2021): the BERT of transformers, with what k-mers need around it.

The classes are transformers' own, under a configuration that knows its k-mers, so the published
weights and key names load unchanged. Added: an honest limit on the input length, long inputs in
pieces, and parameter groups.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from megabase.models.base import OwnFamilyConfig, Problems, refuse_rest
from megabase.models.checkpoints.reader import ConvertedModel, Weights, build
from megabase.models.heads import BertLike

_UNUSED = ("num_rnn_layer", "rnn", "rnn_dropout", "rnn_hidden", "split", "auto_map")
"""Settings of a recurrent classifier that the released weights do not hold, and of foreign code."""


class DNABERTConfig(OwnFamilyConfig, BertConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """BERT-base over k-mers; the defaults are the published 6-mer model.

    Names are those of ``zhihan1996/DNA_bert_{3,4,5,6}``, whose folders load as they are. Their
    settings for a recurrent classifier (``rnn``, ``num_rnn_layer``, ``rnn_hidden``, ``split``),
    which the released weights do not hold, are left out.

    Parameters
    ----------
    k
        Bases in a k-mer; follows from `vocab_size` (4**k + 5) when None, and decides it when given.
    long_inputs
        ``"error"`` refuses inputs of more than ``max_position_embeddings`` tokens. ``"pieces"``:
        the classifier reads them as pieces of that many tokens, the form
        ``DNABERTTokenizer(long_inputs="pieces")`` gives them, and averages the pooled vectors of
        the pieces. (The published long-input model ran a recurrent network over them instead; its
        weights were not released.)
    **kwargs
        Everything that :class:`transformers.BertConfig` takes.
    """

    model_type = "dnabert"
    family_title = "DNABERT"
    other_model_types = ("bert",)

    vocab_size: int = 4101
    k: int | None = None
    long_inputs: str = "error"
    max_length: int | None = None  # always max_position_embeddings; published folders hold a 20

    def __post_init__(self, **kwargs: Any) -> None:
        for key in _UNUSED:
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)
        self.max_length = self.max_position_embeddings
        problems = Problems("DNABERT configuration", self)
        if self.k is None:
            self.k = next((k for k in range(1, 9) if 4**k + 5 == self.vocab_size), None)
            problems.demand(
                self.k is not None,
                f"vocab_size must be 4**k + 5 (69, 261, 1029 or 4101 for k = 3 to 6), found "
                f"{self.vocab_size}: this is a BERT of another vocabulary",
            )
        else:
            problems.whole("k")
            self.vocab_size = 4**self.k + 5
        problems.one_of("long_inputs", ("error", "pieces"))
        problems.report()

    @property
    def max_bases(self) -> int:
        """Longest sequence in bases: two tokens are special, the k-mers overlap."""
        return self.max_position_embeddings + int(self.k or 0) - 3


class _DNABERT(BertLike):
    config_class = DNABERTConfig
    config: DNABERTConfig

    def _describe_limit(self) -> tuple[str, str]:
        config = self.config
        return (
            f"this {config.k}-mer DNABERT",
            f"shorten the sequences to {config.max_bases} bases (truncation=True does), or "
            "classify with long_inputs='pieces' in configuration and tokenizer",
        )

    def _run(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, **kwargs: Any
    ) -> Any:
        known = getattr(self.base_model, "padded_side", None) is not None
        if mask is not None and known and self.config._attn_implementation == "sdpa":
            # transformers looks at a mask of tokens, but takes one of pairs of them as it is.
            mask = mask.bool()[:, None, None].expand(-1, -1, mask.shape[1], -1)
        return super()._run(ids, mask, types, **kwargs)


class DNABERTModel(_DNABERT, BertModel):  # pyright: ignore
    """Encoder and pooler."""

    library_class = BertModel


class DNABERTForMaskedLM(_DNABERT, BertForMaskedLM):  # pyright: ignore
    """Encoder with a head that predicts hidden k-mers."""

    library_class = BertForMaskedLM


class DNABERTForSequenceClassification(_DNABERT, BertForSequenceClassification):  # pyright: ignore
    """Encoder with a linear head on the pooled ``[CLS]``.

    With ``config.long_inputs == "pieces"`` an input may have any number of tokens: every
    ``config.max_position_embeddings`` of them are one piece.
    """

    library_class = BertForSequenceClassification

    def _run(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, **kwargs: Any
    ) -> Any:
        room = self.config.max_position_embeddings
        if self.config.long_inputs != "pieces" or ids is None or ids.shape[1] <= room:
            return super()._run(ids, mask, types, **kwargs)
        refuse_rest(self, kwargs)
        logits = cast("torch.FloatTensor", self._score_pieces(ids, mask, room))
        return SequenceClassifierOutput(logits=logits)

    def _score_pieces(self, ids: Tensor, mask: Tensor | None, room: int) -> Tensor:
        """Average the pooled vectors of pieces of `room` tokens; empty pieces do not count."""
        batch, length = ids.shape
        missing = -length % room
        mask = torch.ones_like(ids) if mask is None else mask
        ids = F.pad(ids, (0, missing), value=self.config.pad_token_id or 0).reshape(-1, room)
        mask = F.pad(mask, (0, missing)).reshape(-1, room)
        real = mask.any(dim=1)
        # An empty piece attends to its first position, so that nothing is divided by zero.
        first = torch.arange(room, device=mask.device) == 0
        seen = torch.where(real[:, None], mask, first.to(mask.dtype))
        pooled = self.bert(ids, attention_mask=seen, return_dict=True).pooler_output
        weight = real.to(pooled.dtype).reshape(batch, -1, 1)
        mean = (pooled.reshape(batch, -1, pooled.shape[-1]) * weight).sum(1) / weight.sum(1)
        return self.classifier(self.dropout(mean))


_HEAD_SIZE = 64  # width of an attention head in every BERT of the published sizes


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a masked language model, a classifier or the bare model, by the heads of the weights.

    ConfigError when the vocabulary is not one of k-mers.
    """
    tensors = dict(weights.tensors)
    embeddings = "embeddings."
    prefix = "bert." if f"bert.{embeddings}word_embeddings.weight" in tensors else ""
    embeddings, layer = f"{prefix}{embeddings}", f"{prefix}encoder.layer."
    rows, width = tensors[f"{embeddings}word_embeddings.weight"].shape
    numbers = {int(name[len(layer) :].split(".")[0]) for name in tensors if name.startswith(layer)}
    settings: dict[str, Any] = {"num_attention_heads": max(width // _HEAD_SIZE, 1)}
    settings |= weights.config or {}
    settings |= {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": max(numbers) + 1,
        "intermediate_size": len(tensors[f"{layer}0.intermediate.dense.weight"]),
        "max_position_embeddings": len(tensors[f"{embeddings}position_embeddings.weight"]),
    }
    settings.pop("model_type", None)
    settings |= {name: value for name, value in overrides.items() if value is not None}
    notes: list[str] = []
    model_class: type[PreTrainedModel] = DNABERTModel
    if "classifier.weight" in tensors:
        model_class = DNABERTForSequenceClassification
        settings.setdefault("num_labels", tensors["classifier.weight"].shape[0])
    elif any(name.startswith("cls.predictions.") for name in tensors):
        model_class = DNABERTForMaskedLM
        if f"{prefix}pooler.dense.weight" in tensors:
            notes.append(
                "the pooler is left out: masked prediction never trained it; a classifier made of "
                "this model starts with a new one"
            )
    config = DNABERTConfig(**settings)
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    dropped = tuple(name for name in tensors if name not in expected)
    kept = {name: tensor for name, tensor in tensors.items() if name in expected}
    model, _ = build(model_class, config, kept, weights.path)
    return ConvertedModel(model, tuple(notes), dropped)

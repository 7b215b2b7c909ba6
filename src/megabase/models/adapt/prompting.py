"""Soft prompts: learnable vectors beside a sequence, and a language model that stays as it is.

:class:`PromptedModel` puts the vectors before, after or on both sides of the embedded tokens and
reads an answer off the model: the next token after a separator (label tokens, the published way) or
a small linear head over hidden vectors. :mod:`.prompt_files` saves and loads it.

Source: arXiv 2306.15794v2, section 4.3, and ``evals/soft_prompting_genomics.py`` of
HazyResearch/hyena-dna, which puts the vectors first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from megabase.errors import ModelError
from megabase.layers.pooling import pool
from megabase.models.adapt.prompt_spec import PROMPTED_FAMILIES, PromptSpec
from megabase.models.families import family_of

__all__ = ["PromptedModel", "PromptedOutput"]

_PAD, _PROMPT, _TOKEN, _END = 0, 1, 2, 3
_NOISE = 0.02


@dataclass
class PromptedOutput:
    """What a prompted model says."""

    logits: Tensor
    """(n, K), or (n, length, K) for nucleotides. With label tokens these are the log-probabilities
    of the letters among all tokens, or with ``restricted`` their bare logits."""
    token_logits: Tensor | None = None
    """Label tokens: all logits (n, vocabulary) after the separator, or (n, m, vocabulary) after
    each of the places asked for."""


class PromptedModel(nn.Module):
    """A frozen model with a prompt.

    Parameters
    ----------
    model
        Of the families in :data:`PROMPTED_FAMILIES`; with a next-token head for label tokens. No
        weight of it gets a gradient, and it is no part of the state dict, which holds the prompt
        and the head alone.
    spec
        What the prompt is.
    start
        Initial vectors (length, width); by default noise N(0, 0.02^2), as published.
    dropout
        Dropout of the prompt vectors in training (published: 0.1).

    Raises
    ------
    ModelError
        For a model that cannot be prompted this way.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: PromptSpec,
        *,
        start: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_model(model, spec)
        model.requires_grad_(False)
        # In a tuple it is no submodule: it is neither saved nor synchronised with the prompt.
        self._frozen = (model,)
        self.spec = spec
        self.dropout = dropout
        table = model.get_input_embeddings().weight
        if not isinstance(table, Tensor):
            raise ModelError(f"{type(model).__name__} has no table of token embeddings")
        width, options = table.shape[1], {"dtype": table.dtype, "device": table.device}
        if start is None:
            start = torch.randn(spec.length, width, dtype=torch.float32) * _NOISE
        if start.shape != (spec.length, width):
            raise ModelError(
                f"initial vectors of shape {tuple(start.shape)}; expected {(spec.length, width)}"
            )
        self.vectors: nn.Parameter | None = None
        if spec.length:
            self.vectors = nn.Parameter(start.detach().clone().to(**options))
        self.head: nn.Linear | None = None
        if spec.answer == "head":
            self.head = nn.Linear(width, len(spec.classes), **options)
        self.config = self._describe()
        self.train(model.training)

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self._frozen[0]

    @property
    def max_length(self) -> int | None:
        """Most tokens of a sequence: the model's longest input without the prompt's positions."""
        longest = getattr(self.model.config, "max_length", None)
        if self.spec.examples:
            return self.spec.block
        return None if longest is None else int(longest) - self.spec.extra

    @property
    def trained_parameters(self) -> int:
        """Numbers of the prompt and the head."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def _describe(self) -> Any:
        """Give the model's configuration with the names of the answers in it."""
        config: Any = copy.deepcopy(self.model.config)
        names = self.spec.classes
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        config.problem_type = {
            "classes": "single_label_classification",
            "multi_label": "multi_label_classification",
            "regression": "regression",
            "nucleotides": None,
        }[self.spec.kind]
        return config

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off, in the frozen model too."""
        self.model.train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # What moves the prompt (to, cuda, half) moves the model it belongs to.
        self.model._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> PromptedOutput:
        """Answer for sequences.

        Parameters
        ----------
        input_ids
            int64 (n, length) tokens of the sequences, without separator.
        attention_mask
            1 at real tokens, (n, length); padding may lie on either side. Padding after the
            sequence is moved behind the prompt and the separator; padding before it stays between
            prompt and sequence, as published.
        places
            Label tokens only, int64 (n, m): positions in `input_ids` whose next token is asked for.
            The ids then bring solved examples and separators of their own.

        Returns
        -------
        PromptedOutput

        Raises
        ------
        ModelError
            When prompt and sequence are longer than the model's input.
        """
        if places is not None:
            return self._at(input_ids, places)
        if self.spec.examples:
            input_ids, attention_mask = self._behind_examples(input_ids, attention_mask), None
        hidden, kinds = self._encode(input_ids, attention_mask)
        if self.spec.answer == "label_tokens":
            place = (kinds == _END).int().argmax(dim=1)
            asked = hidden[torch.arange(len(hidden), device=hidden.device), place]
            return self._letters(self._token_logits(asked))
        head = cast("nn.Linear", self.head)
        if self.spec.kind == "nucleotides":
            first = self.spec.sides[0]
            return PromptedOutput(head(hidden[:, first : first + input_ids.shape[1]]))
        return PromptedOutput(head(self._pooled(hidden, kinds)))

    def _at(self, input_ids: Tensor, places: Tensor) -> PromptedOutput:
        before, after = self.spec.sides
        if after or self.spec.answer == "head":
            raise ModelError(
                "solved examples are answered by label tokens, behind a prompt that stands before "
                "them"
            )
        hidden, _ = self._encode(input_ids, None, closed=False)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        return self._letters(self._token_logits(hidden[rows, places + before]))

    def _behind_examples(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Put the solved examples before sequences that are padded on the left to their length."""
        spec, (rows, length) = self.spec, input_ids.shape
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        longest = int(real.sum(dim=1).max())
        if longest > spec.block:
            raise ModelError(
                f"a sequence has {longest:,} tokens, but the prompt's solved examples have "
                f"{spec.block:,}; cut it"
            )
        order = real.bool().long().argsort(dim=1, stable=True)  # padding first
        padded = torch.where(real.bool(), input_ids, spec.pad_id).gather(1, order)
        block = padded.new_full((rows, spec.block), spec.pad_id)
        kept = min(length, spec.block)
        block[:, spec.block - kept :] = padded[:, length - kept :]
        examples = padded.new_tensor(spec.examples).expand(rows, -1)
        return torch.cat([examples, block], dim=1)

    def _letters(self, token_logits: Tensor) -> PromptedOutput:
        ids = list(self.spec.label_ids)
        wide = token_logits.to(torch.promote_types(token_logits.dtype, torch.float32))
        scores = wide if self.spec.restricted else F.log_softmax(wide, dim=-1)
        return PromptedOutput(scores[..., ids], wide)

    def _token_logits(self, hidden: Tensor) -> Tensor:
        return cast("nn.Module", self.model.get_output_embeddings())(hidden)

    def _pooled(self, hidden: Tensor, kinds: Tensor) -> Tensor:
        mask = {
            "sequence": kinds == _TOKEN,
            "prompt": kinds == _PROMPT,
            "all": kinds != _PAD,
        }[self.spec.over]
        return pool(hidden, cast("Any", self.spec.pooling), mask)

    def _encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, closed: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Give the hidden vectors (n, T, width) and what each position is (n, T)."""
        embeddings, kinds = self._assemble(input_ids, attention_mask, closed)
        longest = getattr(self.model.config, "max_length", None)
        if longest is not None and embeddings.shape[1] > longest:
            raise ModelError(
                f"the sequence has {input_ids.shape[1]:,} tokens and the prompt takes "
                f"{self.spec.extra} positions, but the model reads {int(longest):,}; shorten the "
                f"sequence to {int(longest) - self.spec.extra:,} tokens or take a shorter prompt"
            )
        mask = None if attention_mask is None else (kinds != _PAD).long()
        base = self.model.base_model
        output = base(inputs_embeds=embeddings, attention_mask=mask, return_dict=True)
        return output.last_hidden_state, kinds

    def _assemble(
        self, input_ids: Tensor, attention_mask: Tensor | None, closed: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Put prompt, embedded sequence and separator together."""
        table = self.model.get_input_embeddings()
        rows, length = input_ids.shape
        before, after = self.spec.sides
        end = closed and self.spec.answer == "label_tokens"
        parts: list[Tensor] = [table(input_ids)]
        if self.vectors is not None:
            # Each sequence of a batch drops its own numbers.
            vectors = F.dropout(self.vectors.expand(rows, -1, -1), self.dropout, self.training)
            parts = [vectors[:, :before], *parts, vectors[:, before:]]
        if end:
            separator = torch.full_like(input_ids[:, :1], cast("int", self.spec.end_id))
            parts.append(table(separator))
        joined = torch.cat(parts, dim=1)
        kinds = torch.full(joined.shape[:2], _PROMPT, dtype=torch.long, device=joined.device)
        kinds[:, before : before + length] = _TOKEN
        if end:
            kinds[:, -1] = _END
        if attention_mask is None:
            return joined, kinds
        real = attention_mask.bool()
        kinds[:, before : before + length] = torch.where(real, _TOKEN, _PAD)
        if not after and not end:
            return joined, kinds
        # Padding behind the last token goes to the end of the row, everything else keeps its order.
        place = torch.arange(length, device=real.device)
        last = torch.where(real, place, -1).amax(dim=1, keepdim=True)
        trailing = torch.zeros_like(kinds)
        trailing[:, before : before + length] = (place > last).long()
        order = trailing.argsort(dim=1, stable=True)
        gathered = joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2]))
        return gathered, kinds.gather(1, order)


def _check_model(model: PreTrainedModel, spec: PromptSpec) -> None:
    name, family = type(model).__name__, family_of(model.config.model_type)
    if family is None or family.name not in PROMPTED_FAMILIES:
        raise ModelError(
            f"{name} cannot read a soft prompt; models of the families "
            f"{', '.join(PROMPTED_FAMILIES)} can"
        )
    causal = bool(getattr(model.config, "is_causal_model", True))
    if spec.answer == "label_tokens":
        if model.get_output_embeddings() is None:
            raise ModelError(
                f"{name} has no next-token head to answer with label tokens; take a language "
                "model, or answer with the head"
            )
        if not causal:
            raise ModelError(
                "label tokens are the next token of a model that reads left to right, and "
                "this one looks ahead; answer with the head"
            )
    elif causal and spec.length:
        last_only = spec.position == "after"
        if last_only and (spec.kind == "nucleotides" or spec.over == "sequence"):
            raise ModelError(
                "a prompt after the sequence cannot change the sequence's own positions in a model "
                "that reads left to right; put it before, or let the head read the prompt's "
                "positions too"
            )
        if spec.position == "before" and spec.over == "prompt":
            raise ModelError(
                "a prompt before the sequence does not see it in a model that reads left to right, "
                "so its own positions say nothing; let the head read the sequence"
            )
    longest = getattr(model.config, "max_length", None)
    if longest is not None and spec.extra >= longest:
        raise ModelError(
            f"a prompt of {spec.length:,} vectors leaves no room for a sequence in a model that "
            f"reads {int(longest):,} tokens"
        )

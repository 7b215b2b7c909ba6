"""The generation of transformers, for next-token models of every family."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    SuppressTokensLogitsProcessor,
)

from megabase.data.vocabulary import VOCABULARY
from megabase.errors import ConfigError

__all__ = ["LetterGenerationMixin"]

_SPECIAL = [number for token, number in VOCABULARY.items() if token.startswith("[")]


class LetterGenerationMixin(GenerationMixin):
    """``generate()``, which draws letters only.

    Each token is that of a full pass over everything so far, unless the family hands on a cache.
    :func:`megabase.inference.generate` writes the same sequences at the cost of one pass.
    """

    # What was read cannot be taken back, as assisted decoding would have to.
    _is_stateful = True

    def generate(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """Write sequences; see transformers.

        Special tokens and rows of the embedding past the vocabulary are never drawn. The end token
        that the tokenizer puts behind a prompt stays in the result, and is not read: what follows
        an end would say nothing about the prompt.

        Raises
        ------
        ConfigError
            When only some prompts of a batch end with the end token, or a prompt is nothing else.
        """
        model: Any = self
        prompt = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        end = model.config.eos_token_id
        if prompt is not None and end is not None:
            ends = prompt[:, -1] == end
            if bool(ends.any()) and (not bool(ends.all()) or prompt.shape[1] == 1):
                raise ConfigError(
                    "some prompts end with the end token and others do not, or a prompt holds no "
                    "letter; tokenize them with add_special_tokens=False and left padding"
                )
        unused = [*_SPECIAL, *range(model.config.vocab_size, model.config.vocab_rows)]
        processors = LogitsProcessorList(logits_processor or [])
        processors.append(SuppressTokensLogitsProcessor(unused, device=str(model.device)))
        library: Any = super()
        return library.generate(*args, logits_processor=processors, **kwargs)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        """Give the criteria of the library, with the longest input that the model really has.

        The library takes ``max_position_embeddings`` for it, which published HyenaDNA sets to 0.
        """
        model: Any = self
        library: Any = super()
        found = library._get_stopping_criteria(*args, **kwargs)
        for one in found:
            if isinstance(one, MaxLengthCriteria):
                one.max_position_embeddings = model.config.max_length
        return found

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Give everything read so far, as the forward pass takes it."""
        model: Any = self
        names = ("output_attentions", "output_hidden_states")
        inputs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        end = model.config.eos_token_id
        if inputs_embeds is None and end is not None:
            read = (input_ids != end).any(dim=0)
            if attention_mask is not None and attention_mask.shape == input_ids.shape:
                attention_mask = attention_mask[:, read]
            input_ids = input_ids[:, read]
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if inputs_embeds is None:
            return {**inputs, "input_ids": input_ids}
        # The mask grows with every token that is written after the given vectors.
        length = inputs_embeds.shape[1] if attention_mask is None else attention_mask.shape[1]
        written = input_ids[:, input_ids.shape[1] - (length - inputs_embeds.shape[1]) :]
        vectors = torch.cat([inputs_embeds, model.get_input_embeddings()(written)], dim=1)
        return {**inputs, "inputs_embeds": vectors}

"""BigBird (Zaheer et al. 2020) for DNA: the classes of transformers, made steady.

transformers' model changes itself when it meets an input too short for sparse attention: from then
on it attends fully at every length. Here the kind of attention is chosen anew for every batch, by
its length alone. transformers also seeds numpy's global random numbers in every training step;
here they are left as they were. The random blocks of training are used in evaluation too, see
``config.random_blocks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BigBirdForMaskedLM, BigBirdForSequenceClassification, BigBirdModel
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from megabase.models.bigbird.configuration import GenomicBigBirdConfig
from megabase.models.forward import (
    LossOptions,
    add_loss,
    library_arguments,
    sequence_loss,
    token_loss,
)
from megabase.models.supervised import check_length, grouped_parameters

__all__ = [
    "GenomicBigBirdForMaskedLM",
    "GenomicBigBirdForSequenceClassification",
    "GenomicBigBirdModel",
]


@contextmanager
def _numpy_random_state_kept() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002 (the global state is what is at stake)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


class _Steady(nn.Module):
    """Length check, kind of attention and parameter groups, for every class below."""

    config: GenomicBigBirdConfig
    library_class: type[nn.Module]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the BigBird of transformers.

        Parameters
        ----------
        input_ids
            int64 (batch, tokens); or give ``inputs_embeds``. Attention is sparse for
            ``config.shortest_sparse`` tokens and more, full below.
        attention_mask
            (batch, tokens), 1 for real tokens.
        token_type_ids
            (batch, tokens), all 0 for single sequences.
        **kwargs
            What else transformers' class takes.

        Returns
        -------
        ModelOutput
            As the class of transformers gives it.

        Raises
        ------
        InputError
            For more tokens than ``config.max_position_embeddings``.
        ConfigError
            For an argument that transformers' class cannot honor.
        """
        given = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if given is not None:
            check_length(
                given.shape[1],
                self.config.max_position_embeddings,
                "this BigBird",
                "shorten the sequences (truncation=True does), or build the model with more "
                "max_position_embeddings",
            )
            self._choose_attention(given.shape[1])
        arguments = library_arguments(self, self.library_class, kwargs)
        sparse = self._backbone.attention_type == "block_sparse"  # what draws random blocks
        with _numpy_random_state_kept() if sparse else nullcontext():
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                **arguments,
            )

    @property
    def _backbone(self) -> BigBirdModel:
        return cast("BigBirdModel", self if isinstance(self, BigBirdModel) else self.bert)

    def _choose_attention(self, length: int) -> None:
        sparse = (
            self.config.attention_type == "block_sparse" and length >= self.config.shortest_sparse
        )
        wanted = "block_sparse" if sparse else "original_full"
        if self._backbone.attention_type != wanted:
            # transformers builds new layers and then throws their weights away; the random numbers
            # that costs are given back.
            with torch.random.fork_rng(devices=[]):
                self._backbone.set_attention_type(wanted)
            self._set_random_blocks()

    def _set_random_blocks(self) -> None:
        # Nothing but the choice of random blocks looks at the flag of this layer.
        always = self.config.random_blocks == "always"
        for layer in self._backbone.encoder.layer:
            attention = cast("Any", layer).attention.self
            if isinstance(attention, BigBirdBlockSparseAttention):
                attention.training = always or self.training

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""
        super().train(mode)
        self._set_random_blocks()
        return self

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases and layer norms do not decay."""
        return grouped_parameters(self, lr, weight_decay)


class GenomicBigBirdModel(_Steady, BigBirdModel):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Encoder and pooler."""

    library_class = BigBirdModel
    config_class = GenomicBigBirdConfig
    config: GenomicBigBirdConfig  # pyright: ignore[reportIncompatibleVariableOverride]


class GenomicBigBirdForMaskedLM(_Steady, BigBirdForMaskedLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Encoder with a head that predicts hidden tokens."""

    library_class = BigBirdForMaskedLM
    config_class = GenomicBigBirdConfig
    config: GenomicBigBirdConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict hidden tokens; see :class:`GenomicBigBirdModel` for the inputs.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, **kwargs
            As for the model.
        labels
            Token ids (batch, tokens); -100 takes no part.

        Returns
        -------
        MaskedLMOutput
        """
        options = LossOptions(kwargs.pop("num_items_in_batch", None))
        result = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return result
        return add_loss(result, partial(token_loss, labels=labels, options=options))


class GenomicBigBirdForSequenceClassification(_Steady, BigBirdForSequenceClassification):
    """Encoder with transformers' head (dense, activation, linear) on the first token."""

    library_class = BigBirdForSequenceClassification
    config_class = GenomicBigBirdConfig
    config: GenomicBigBirdConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score sequences; see :class:`GenomicBigBirdModel` for the inputs.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, **kwargs
            As for the model.
        labels
            Class numbers (batch,), or numbers (batch, labels); see ``config.problem_type``.

        Returns
        -------
        SequenceClassifierOutput

        Raises
        ------
        InputError
            For more tokens than ``config.max_position_embeddings``.
        """
        options = LossOptions(kwargs.pop("num_items_in_batch", None))
        result = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return result
        loss = partial(sequence_loss, labels=labels, config=self.config, options=options)
        return add_loss(result, loss)

"""The CNN of GenomicBenchmarks (Gresova et al. 2023) as a transformers model.

Embedding, three times (convolution of 8, batch norm, pooling by 2), two dense layers. Only the
first convolution is followed by a ReLU, and there is nothing between the dense layers, as in the
public code. State-dict names are the published ones: ``embeddings.weight``,
``cnn_model.{0,1,4,5,7,8}.*``, ``dense_model.{0,1}.*``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from megabase.models.cnn.configuration import (
    CHANNELS,
    DENSE,
    KERNEL,
    GenomicCNNConfig,
    flatten_size,
)
from megabase.models.forward import binary_loss, finish, loss_options, sequence_loss
from megabase.models.supervised import fit_length, grouped_parameters, torch_default_init

__all__ = ["GenomicCNNForSequenceClassification"]


class GenomicCNNForSequenceClassification(PreTrainedModel):
    """Class scores of whole sequences.

    Parameters
    ----------
    config
        Shape and published habits.

    Notes
    -----
    With two classes the original has one output z. Its logits are given as (0, z), whose softmax
    is (1 - sigmoid(z), sigmoid(z)) and whose cross entropy is the binary cross entropy of z: one
    form for every classifier here.
    """

    config_class = GenomicCNNConfig
    config: GenomicCNNConfig
    main_input_name = "input_ids"
    base_model_prefix = ""

    def __init__(self, config: GenomicCNNConfig) -> None:
        super().__init__(config)
        width, (first, second, third) = config.embedding_dim, CHANNELS
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.cnn_model = nn.Sequential(
            nn.Conv1d(width, first, KERNEL),
            nn.BatchNorm1d(first),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(first, second, KERNEL),
            nn.BatchNorm1d(second),
            nn.MaxPool1d(2),
            nn.Conv1d(second, third, KERNEL),
            nn.BatchNorm1d(third),
            nn.MaxPool1d(2),
            nn.Flatten(),
        )
        self.dense_model = nn.Sequential(
            nn.Linear(flatten_size(config.max_length), DENSE), nn.Linear(DENSE, config.outputs)
        )
        self.post_init()
        if config.published_statistics and self.device.type != "meta":
            self._move_statistics()

    @torch.no_grad()
    def _move_statistics(self) -> None:
        self.train()
        self.scores(torch.zeros(1, self.config.max_length, dtype=torch.long, device=self.device))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        torch_default_init(module)

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embeddings = cast("nn.Embedding", value)

    def scores(self, input_ids: Tensor) -> Tensor:
        """Give the output of the last dense layer.

        Parameters
        ----------
        input_ids
            int64 (batch, ``config.max_length``).

        Returns
        -------
        Tensor
            (batch, ``config.outputs``), before any sigmoid.
        """
        embedded = self.embeddings(input_ids).transpose(1, 2)  # (B, D, L)
        return self.dense_model(self.cnn_model(embedded))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Score sequences.

        Parameters
        ----------
        input_ids
            int64 (batch, length). Brought to ``config.max_length`` tokens: padded on
            ``config.padding_side`` with ``config.pad_token_id``.
        attention_mask
            (batch, length), 1 for real tokens; only tells padding from tokens.
        labels
            Class numbers (batch,), or numbers (batch, labels); see ``config.problem_type``.
        return_dict
            Whether to return an object instead of a tuple.
        **rest
            Standard arguments of transformers; what they ask for must be nothing, but for
            ``num_items_in_batch``.

        Returns
        -------
        SequenceClassifierOutput
            ``loss`` with labels, ``logits`` (batch, labels).

        Raises
        ------
        InputError
            For more tokens than ``config.max_length``, unless ``config.too_long`` is ``"trim"``.
        ConfigError
            For an argument that the family cannot honor.
        """
        options = loss_options(self, rest)
        config = self.config
        ids = fit_length(
            input_ids,
            attention_mask,
            config.max_length,
            pad_id=config.pad_token_id or 0,
            side=cast("Any", config.padding_side),
            too_long=cast("Any", config.too_long),
            model="this CNN",
        )
        scores = self.scores(ids)
        single = config.outputs == 1 and config.num_labels == 2
        logits = torch.cat([torch.zeros_like(scores), scores], dim=1) if single else scores
        loss = None
        if labels is not None and config.double_sigmoid:
            loss = binary_loss(torch.sigmoid(scores), labels.reshape(-1, 1), options)
        elif labels is not None:
            loss = sequence_loss(logits, labels, config, options)
        output = SequenceClassifierOutput(
            loss=cast("Any", loss), logits=cast("torch.FloatTensor", logits)
        )
        return finish(self, output, return_dict)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases, batch norms and the embedding do not decay."""
        return grouped_parameters(self, lr, weight_decay, decay_embeddings=False)

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

from megabase.models.cnn.configuration import (
    CHANNELS,
    DENSE,
    KERNEL,
    GenomicCNNConfig,
    flatten_size,
)
from megabase.models.heads import SupervisedClassifier, sequence_loss


class GenomicCNNForSequenceClassification(SupervisedClassifier):
    """Class scores of whole sequences.

    With two classes the original has one output z. Its logits are given as (0, z), whose softmax
    is (1 - sigmoid(z), sigmoid(z)) and whose cross entropy is the binary cross entropy of z: one
    form for every classifier here.
    """

    config_class = GenomicCNNConfig
    shown_name = "this CNN"
    config: GenomicCNNConfig  # pyright: ignore[reportIncompatibleVariableOverride]

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

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embeddings = cast("nn.Embedding", value)

    def scores(self, input_ids: Tensor) -> Tensor:
        """Give the last dense layer's output (batch, ``config.outputs``), before any sigmoid.

        Ids are (batch, ``config.max_length``).
        """
        embedded = self.embeddings(input_ids).transpose(1, 2)  # (B, D, L)
        return self.dense_model(self.cnn_model(embedded))

    def predict(self, input_ids: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
        """Give logits (batch, labels), padded on ``config.padding_side``."""
        side = cast("str", self.config.padding_side)
        scores = self.scores(self._fit_length(input_ids, attention_mask, side))
        if self.config.outputs == 1 and self.config.num_labels == 2:
            return torch.cat([torch.zeros_like(scores), scores], dim=1)
        return scores

    def loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """Give the loss of logits (batch, labels), the published one of a sigmoid on request."""
        if self.config.double_sigmoid:
            binary, labels = torch.sigmoid(logits[:, 1:]), labels.reshape(-1, 1)
            problem = "multi_label_classification"
            return sequence_loss(binary, labels, self.config, items, problem)
        return super().loss(logits, labels, items)

"""The CNN of GenomicBenchmarks (Gresova et al. 2023) as a transformers model.

Embedding, three times (convolution of 8, batch norm, pooling by 2), two dense layers. Only the
first convolution is followed by a ReLU, and there is nothing between the dense layers, as in the
public code. State-dict names are the published ones: ``embeddings.weight``,
``cnn_model.{0,1,4,5,7,8}.*``, ``dense_model.{0,1}.*``.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from megabase.errors import ConfigError
from megabase.models.base import OwnFamilyConfig, Problems, positions_left
from megabase.models.checkpoints.reader import ConvertedModel, Weights, build
from megabase.models.heads import SupervisedClassifier, sequence_loss

# Width and filters of the convolutions, poolings behind them, width between the dense layers: those
# of the public code; weights of other ones are of another model.
_KERNEL, _CHANNELS, _POOLS, _DENSE = 8, (16, 8, 4), (2, 2, 2), 512
SHORTEST = 57
"""Fewest tokens that three convolutions of 8 and three poolings by 2 leave anything of."""


class GenomicCNNConfig(OwnFamilyConfig, PreTrainedConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Shape and published habits of the GenomicBenchmarks CNN.

    Parameters
    ----------
    variant
        ``"genomic-benchmarks"``: one output for two classes, padding on the right, as in the
        GenomicBenchmarks repository. ``"caduceus"``: one output for each class, padding on the
        left, as in the Caduceus repository.
    max_length, too_long
        Tokens of every input: the first dense layer has a weight for each position. Shorter inputs
        are padded; of longer ones ``"trim"`` keeps the beginning, and ``"error"`` refuses them.
    padding_side
        Side that shorter inputs are padded on; None: as the variant does.
    vocab_size, pad_token_id, embedding_dim
        Those of the tokenizer, by default of characters; width of the token embedding.
    double_sigmoid
        True: two classes are trained as published, with the loss for logits applied to the output
        of a sigmoid. The loss then lies between 0.31 and 1.31 and its gradient is damped;
        predictions are the same function of the weights. Only for ``"genomic-benchmarks"``.
    **kwargs
        ``num_labels``, ``id2label``, ``problem_type`` and the rest of transformers' configuration.
    """

    model_type = "genomic-cnn"
    family_title = "GenomicBenchmarks CNN"

    variant: str = "genomic-benchmarks"
    max_length: int = 1024
    too_long: str = "error"
    padding_side: str | None = None
    vocab_size: int = 12
    pad_token_id: int | None = 4
    embedding_dim: int = 100
    double_sigmoid: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.padding_side is None:
            self.padding_side = "left" if self.variant == "caduceus" else "right"
        problems = Problems("CNN configuration", self)
        problems.one_of("variant", ("genomic-benchmarks", "caduceus"))
        problems.one_of("padding_side", ("left", "right"))
        problems.one_of("too_long", ("error", "trim"))
        problems.whole("vocab_size", "embedding_dim")
        problems.demand(
            self.max_length >= SHORTEST,
            f"max_length={self.max_length} leaves nothing after three convolutions of width "
            f"{_KERNEL} and three poolings by 2; give {SHORTEST} or more",
        )
        problems.demand(
            not self.double_sigmoid
            or (self.variant == "genomic-benchmarks" and self.num_labels == 2),
            'double_sigmoid belongs to variant="genomic-benchmarks" with two classes',
        )
        problems.report()

    @property
    def outputs(self) -> int:
        """Width of the last layer: 1 for two classes in the original, else one for each label."""
        binary = self.problem_type in (None, "single_label_classification") and self.num_labels == 2
        return 1 if binary and self.variant == "genomic-benchmarks" else int(self.num_labels or 1)


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
        width = config.embedding_dim
        self.embeddings = nn.Embedding(config.vocab_size, width)
        layers: list[nn.Module] = []
        for filters, pool in zip(_CHANNELS, _POOLS, strict=True):
            layers += [nn.Conv1d(width, filters, _KERNEL), nn.BatchNorm1d(filters)]
            layers += [nn.MaxPool1d(pool)] if len(layers) > 2 else [nn.ReLU(), nn.MaxPool1d(pool)]
            width = filters
        self.cnn_model = nn.Sequential(*layers, nn.Flatten())
        flat = nn.Linear(_flat(config.max_length), _DENSE)
        self.dense_model = nn.Sequential(flat, nn.Linear(_DENSE, config.outputs))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embeddings = cast("nn.Embedding", value)

    def scores(self, input_ids: Tensor) -> Tensor:
        """Map ids (batch, ``config.max_length``) to (batch, ``config.outputs``), no sigmoid."""
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


def _flat(length: int) -> int:
    """Give the width of the first dense layer's input."""
    return _CHANNELS[-1] * positions_left(length, _KERNEL, _POOLS)


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights; a leading ``model.`` of their names is allowed.

    ``variant`` and ``num_labels`` follow the last layer when left out (one output: the original
    with two classes). ``max_length`` is needed unless the ``config.json`` beside the weights has it
    (ConfigError): the weights tell the input length only up to 7 tokens.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in weights.tensors.items()}
    settings = {name: value for name, value in overrides.items() if value is not None}
    beside = weights.config or {}
    length = settings.pop("max_length", beside.get("max_length", beside.get("input_len")))
    flatten = tensors["dense_model.0.weight"].shape[1]
    known = [n for n in range(SHORTEST, flatten * 2 + 128) if _flat(n) == flatten]
    fits = f"of {known[0]} to {known[-1]} tokens" if known else "of no length"
    if length is None:
        raise ConfigError(
            f"{weights.path}: nothing tells the input length of this CNN; pass max_length: it is "
            f"for inputs {fits}"
        )
    if flatten != _flat(int(length)):
        raise ConfigError(
            f"the weights are of a CNN for inputs {fits}, not {int(length):,}; pass the max_length "
            "it was trained with"
        )
    outputs = tensors["dense_model.1.weight"].shape[0]
    notes: tuple[str, ...] = ()
    if "variant" not in settings:
        settings["variant"] = "genomic-benchmarks" if outputs != 2 else "caduceus"
        notes = (f"read as the variant {settings['variant']!r}, by the width of its last layer",)
    settings.setdefault("num_labels", 2 if outputs == 1 else outputs)
    vocab_size, embedding_dim = tensors["embeddings.weight"].shape
    settings.setdefault("pad_token_id", 4 if vocab_size >= 12 else vocab_size - 1)
    config = GenomicCNNConfig(
        max_length=int(length), vocab_size=vocab_size, embedding_dim=embedding_dim, **settings
    )
    model, _ = build(GenomicCNNForSequenceClassification, config, tensors, weights.path)
    return ConvertedModel(model, notes, ())

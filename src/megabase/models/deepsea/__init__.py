"""DeepSEA (Zhou and Troyanskaya 2015) as a transformers model, on token ids.

Three convolutions over one-hot bases with a floored rectifier, two poolings, two dense layers. The
channel order inside is A, G, C, T; reversing it complements. The layers are those of the weights
released through Kipoi, see :func:`convert`.

Shape suffixes: B sequences, L bases, C channels (A, G, C, T).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from megabase.errors import ConfigError
from megabase.genome import alphabet
from megabase.models.base import OwnFamilyConfig, Problems, positions_left
from megabase.models.checkpoints.reader import ConvertedModel, Weights, build
from megabase.models.heads import SupervisedClassifier


class DeepSEAConfig(OwnFamilyConfig, PreTrainedConfig):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Shape of a DeepSEA network; the defaults are the published one (52,843,119 parameters).

    Parameters
    ----------
    channels, dropout
        Filters of the three convolutions, and dropout after each.
    kernel, pool
        Width of the convolutions, and of the pooling after the first two.
    hidden
        Width of the dense layer before the output.
    floor
        What a rectified unit gives where its input is not positive.
    max_length, too_long
        Bases of every input: the dense layer has a weight for each position. Shorter inputs are
        padded on the right with positions that are not a base; of longer ones ``"trim"`` keeps the
        beginning, and ``"error"`` refuses them.
    unknown_value
        Value of all four channels at an N. 0, as the code that made DeepSEA's data did; some later
        loaders used 0.25. Padding and special tokens are always 0.
    strand_average
        Average the probabilities of both strands in evaluation mode, as the published prediction
        model does (its variant model does not). Training mode reads the forward strand: the other
        one is its own sample.
    **kwargs
        ``num_labels`` (919), ``problem_type`` (``"multi_label_classification"``) and the rest of
        transformers' configuration.
    """

    model_type = "deepsea"
    family_title = "DeepSEA network"

    channels: tuple[int, ...] | list[int] = (320, 480, 960)
    kernel: int = 8
    pool: int = 4
    hidden: int = 925
    dropout: tuple[float, ...] | list[float] = (0.2, 0.2, 0.5)
    floor: float = 1e-6
    max_length: int = 1000
    too_long: str = "error"
    unknown_value: float = 0.0
    strand_average: bool = True
    vocab_size: int = 12
    pad_token_id: int | None = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None:
            kwargs.setdefault("num_labels", 919)
        if self.problem_type is None:
            self.problem_type = "multi_label_classification"
        super().__post_init__(**kwargs)
        self.channels, self.dropout = list(self.channels), list(self.dropout)
        problems = Problems("DeepSEA configuration", self)
        problems.demand(
            len(self.channels) == 3 and min(self.channels) >= 1,
            f"channels must be three positive numbers, found {self.channels}",
        )
        problems.demand(
            len(self.dropout) == 3 and all(0 <= share < 1 for share in self.dropout),
            f"dropout must be three shares from 0 to below 1, found {self.dropout}",
        )
        problems.one_of("too_long", ("error", "trim"))
        problems.whole("kernel", "pool", "hidden", "max_length", "vocab_size")
        if not problems.found:
            least = ((self.kernel * self.pool) + self.kernel - 1) * self.pool + self.kernel - 1
            problems.demand(
                self.positions > 0,
                f"max_length={self.max_length} leaves nothing after three convolutions; "
                f"give {least} or more",
            )
        problems.report()

    @property
    def positions(self) -> int:
        """Positions that the convolutions and poolings leave."""
        return positions_left(self.max_length, self.kernel, (self.pool, self.pool, 1))

    def to_diff_dict(self) -> dict[str, Any]:
        """Give what is saved; labels always, since transformers leaves out two of them as usual."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return {**super().to_diff_dict(), **labels}


_CHANNEL_ORDER = "AGCT"
"""Order of the one-hot channels in the released weights; reversing it complements."""


def _channel_table(config: DeepSEAConfig) -> Tensor:
    """One row for each token id: its value in the channels A, G, C, T."""
    table = torch.zeros(max(config.vocab_size, 12), 4)
    for letter, token in zip(alphabet.BASES, alphabet.BASE_TOKEN_IDS, strict=True):
        table[token, _CHANNEL_ORDER.index(letter)] = 1.0
    table[int(alphabet.TOKEN_ID_OF_CODE[alphabet.N])] = config.unknown_value
    return table


def _average_logits(first: Tensor, second: Tensor, problem_type: str | None) -> Tensor:
    """Give the logits (batch, labels) of the mean probabilities, or the mean in regression."""
    if problem_type == "regression":
        return (first + second) / 2
    if problem_type == "single_label_classification":
        both = torch.logaddexp(first.log_softmax(-1), second.log_softmax(-1))
        return both - torch.log(first.new_tensor(2.0))
    # logit of (s(a) + s(b)) / 2, where 1 - s(a) = s(-a); logarithms keep full precision.
    yes = torch.logaddexp(F.logsigmoid(first), F.logsigmoid(second))
    no = torch.logaddexp(F.logsigmoid(-first), F.logsigmoid(-second))
    return yes - no


class DeepSEAForSequenceClassification(SupervisedClassifier):
    """Chromatin features, or any labels, of sequences."""

    config_class = DeepSEAConfig
    config: DeepSEAConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    shown_name = "this DeepSEA network"
    prediction_options = ("strand_average",)

    def __init__(self, config: DeepSEAConfig) -> None:
        super().__init__(config)
        first, second, third = config.channels
        self.conv1 = nn.Conv1d(4, first, config.kernel)
        self.conv2 = nn.Conv1d(first, second, config.kernel)
        self.conv3 = nn.Conv1d(second, third, config.kernel)
        self.hidden = nn.Linear(third * config.positions, config.hidden)
        self.output = nn.Linear(config.hidden, int(config.num_labels or 1))
        self.register_buffer("channels_of_id", _channel_table(config), persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            # Built without storage when loading; this is where transformers has it filled.
            init.copy_(cast("Tensor", self.channels_of_id), _channel_table(self.config))
        else:
            super()._init_weights(module)

    def one_hot(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Turn ids (A 7, C 8, G 9, T 10, N 11) into (batch, 4, ``config.max_length``).

        Channels are A, G, C, T. InputError for more bases, unless they are to be trimmed.
        """
        ids = self._fit_length(input_ids, attention_mask, "right")
        return F.embedding(ids, cast("Tensor", self.channels_of_id)).transpose(1, 2)

    def _opposite(self, bases_BCL: Tensor, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """Reverse and complement the real positions; padding stays on the right."""
        length = bases_BCL.shape[-1]
        complement_BCL = bases_BCL.flip(1)  # A, G, C, T backwards is T, C, G, A
        if mask is None and input_ids.shape[1] >= length:
            return complement_BCL.flip(2)
        real = torch.ones_like(input_ids) if mask is None else mask
        count_B1 = real.bool().sum(dim=1, keepdim=True).clamp(max=length)
        position_L = torch.arange(length, device=input_ids.device)
        position_BL = torch.where(position_L < count_B1, count_B1 - 1 - position_L, position_L)
        return complement_BCL.gather(2, position_BL[:, None].expand_as(complement_BCL))

    def scores(self, bases_BCL: Tensor) -> Tensor:
        """Give the logits (batch, labels) of one strand, one-hot as by :meth:`one_hot`."""
        config, x = self.config, bases_BCL
        for conv, drop in zip((self.conv1, self.conv2, self.conv3), config.dropout, strict=True):
            x = F.threshold(conv(x), 0.0, config.floor)
            x = x if conv is self.conv3 else F.max_pool1d(x, config.pool)
            x = F.dropout(x, drop, self.training)
        return self.output(F.threshold(self.hidden(x.flatten(1)), 0.0, config.floor))

    def predict(
        self, input_ids: Tensor, attention_mask: Tensor | None, strand_average: bool | None = None,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        """Give logits (batch, labels), those of the mean probability where strands are averaged.

        That is in evaluation mode, where ``config.strand_average``, unless `strand_average` says.
        """
        bases = self.one_hot(input_ids, attention_mask)
        logits = self.scores(bases)
        default = self.config.strand_average and not self.training
        if not (default if strand_average is None else strand_average):
            return logits
        opposite = self.scores(self._opposite(bases, input_ids, attention_mask))
        return _average_logits(logits, opposite, self.config.problem_type)


KIPOI_NAMES = {"0": "conv1", "4": "conv2", "8": "conv3", "12.1": "hidden", "14.1": "output"}
"""Layer of the stand-alone file released through Kipoi -> layer here. In the prediction model the
names begin with ``2.``, in the variant-effect model with ``1.``."""


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from Kipoi weights, which give its shape, but for ``max_length`` (1000 bases).

    ConfigError when the weights are of another model or another input length.
    """
    last = next(name for name in weights.tensors if name.endswith("14.1.bias"))
    prefix = last.removesuffix("14.1.bias")  # of the prediction and the variant-effect model
    tensors = {}
    for name, tensor in weights.tensors.items():
        layer, _, kind = name.removeprefix(prefix).rpartition(".")
        flat = tensor.ndim == 4 and tensor.shape[2] == 1
        tensors[f"{KIPOI_NAMES.get(layer, layer)}.{kind}"] = tensor.squeeze(2) if flat else tensor
    needed = ("conv1.weight", "conv2.weight", "conv3.weight", "hidden.weight", "output.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise ConfigError(f"{weights.path}: a DeepSEA network has {', '.join(missing)} too")
    settings = {name: value for name, value in overrides.items() if value is not None}
    first, second, third = (tensors[f"conv{index}.weight"] for index in (1, 2, 3))
    kernel, length = first.shape[-1], settings.setdefault("max_length", DeepSEAConfig.max_length)
    flat = tensors["hidden.weight"].shape[1]
    pool = settings.get("pool", DeepSEAConfig.pool)
    if flat != third.shape[0] * positions_left(length, kernel, (pool, pool, 1)):
        raise ConfigError(
            f"the weights have {flat:,} inputs to the dense layer, which is not what "
            f"{length:,} bases leave; pass the max_length the model was trained with"
        )
    notes: tuple[str, ...] = ()
    if prefix == "1." and "strand_average" not in settings:
        # The published variant model reads the forward strand alone.
        settings["strand_average"] = False
        notes = ("this is the variant-effect model: strands are not averaged, as published",)
    config = DeepSEAConfig(
        channels=[first.shape[0], second.shape[0], third.shape[0]],
        kernel=kernel,
        hidden=tensors["hidden.weight"].shape[0],
        **{"num_labels": tensors["output.weight"].shape[0], **settings},
    )
    model, _ = build(DeepSEAForSequenceClassification, config, tensors, weights.path)
    return ConvertedModel(model, notes, ())

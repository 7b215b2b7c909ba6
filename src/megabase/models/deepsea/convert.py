"""Names of the DeepSEA weights released through Kipoi.

The stand-alone file numbers its layers (``0.weight``, ``4.*``, ``8.*``, ``12.1.*``, ``14.1.*``);
in the prediction model they sit under ``2.``, in the variant-effect model under ``1.``. Its
convolutions are two-dimensional with a height of one.
"""

from __future__ import annotations

from typing import Any

from megabase.errors import ConfigError
from megabase.models.base import positions_left
from megabase.models.checkpoints.published import ConvertedModel, build
from megabase.models.checkpoints.reader import Weights
from megabase.models.deepsea import DeepSEAConfig, DeepSEAForSequenceClassification

KIPOI_NAMES = {"0": "conv1", "4": "conv2", "8": "conv3", "12.1": "hidden", "14.1": "output"}
"""Layer of the stand-alone file -> layer here."""


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

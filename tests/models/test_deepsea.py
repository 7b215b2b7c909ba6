"""DeepSEA: size, channel order, strands, Kipoi names, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.errors import MegabaseError
from megabase.models.checkpoints.reader import Weights
from megabase.models.deepsea import (
    KIPOI_NAMES,
    DeepSEAConfig,
    DeepSEAForSequenceClassification,
    _average_logits,
    convert,
)
from megabase.models.families import FAMILIES

_LENGTH = 200
_IDS = torch.randint(7, 12, (3, _LENGTH), generator=torch.Generator().manual_seed(0))


def _model(**settings: object) -> DeepSEAForSequenceClassification:
    torch.manual_seed(0)
    shape = {"channels": (6, 8, 10), "hidden": 12, "max_length": _LENGTH, "num_labels": 5}
    return DeepSEAForSequenceClassification(DeepSEAConfig(**{**shape, **settings})).eval()


def _to_kipoi(model: DeepSEAForSequenceClassification, prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights under the names of the Kipoi files, convolutions two-dimensional."""
    theirs = {ours: name for name, ours in KIPOI_NAMES.items()}
    result = {}
    for name, tensor in model.state_dict().items():
        layer, kind = name.split(".")
        wide = tensor.unsqueeze(2) if tensor.ndim == 3 else tensor
        result[f"{prefix}{theirs[layer]}.{kind}"] = wide
    return result


def _reverse_complement(ids: torch.Tensor) -> torch.Tensor:
    return torch.tensor(COMPLEMENT_TOKEN_IDS)[ids].flip(1)


def test_channels_are_a_g_c_t_and_unknown_bases_are_zero() -> None:
    ids = torch.tensor([[7, 8, 9, 10, 11, 4]])
    shown = _model().one_hot(ids)[0, :, :6]
    assert shown.T.tolist() == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert _model(unknown_value=0.25).one_hot(ids)[0, :, 4].tolist() == [0.25] * 4


def test_scores_are_those_of_the_two_dimensional_layers() -> None:
    model = _model()
    weights = _to_kipoi(model)
    x = model.one_hot(_IDS)[:, :, None]
    for layer, pooled in (("0", True), ("4", True), ("8", False)):
        x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        x = torch.where(x > 0, x, 1e-6)
        x = F.max_pool2d(x, (1, 4)) if pooled else x
    x = F.linear(x.flatten(1), weights["12.1.weight"], weights["12.1.bias"])
    x = F.linear(torch.where(x > 0, x, 1e-6), weights["14.1.weight"], weights["14.1.bias"])
    torch.testing.assert_close(model.scores(model.one_hot(_IDS)), x)


@pytest.mark.parametrize("length", [_LENGTH, 150])
def test_averaged_predictions_do_not_know_the_strand(length: int) -> None:
    model = _model()
    ids = _IDS[:, :length]
    forward = model(ids).logits
    torch.testing.assert_close(model(_reverse_complement(ids)).logits, forward)
    padded, mask = F.pad(ids, (7, 5), value=4), F.pad(torch.ones_like(ids), (7, 5))
    torch.testing.assert_close(model(padded, mask).logits, forward)
    one = model(ids, strand_average=False).logits
    other = model(_reverse_complement(ids), strand_average=False).logits
    torch.testing.assert_close(forward.sigmoid(), (one.sigmoid() + other.sigmoid()) / 2)
    model.train()
    assert model.config.strand_average  # training reads one strand all the same
    torch.manual_seed(1)
    trained = model(ids).logits
    torch.manual_seed(1)
    assert torch.equal(trained, model(ids, strand_average=False).logits)


def test_averages_of_other_tasks() -> None:
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    mean = _average_logits(first, second, "single_label_classification").softmax(-1)
    torch.testing.assert_close(mean, (first.softmax(-1) + second.softmax(-1)) / 2)
    assert torch.equal(_average_logits(first, second, "regression"), (first + second) / 2)
    extreme = _average_logits(torch.tensor([[80.0]]), torch.tensor([[80.0]]), None)
    torch.testing.assert_close(extreme, torch.tensor([[80.0]]))


@pytest.mark.parametrize("prefix", ["", "1.", "2."])
def test_kipoi_names_load(prefix: str, tmp_path: Path) -> None:
    model = _model()
    weights = _to_kipoi(model, prefix)
    assert weights[f"{prefix}0.weight"].shape == (6, 4, 1, 8)
    assert FAMILIES["deepsea"].recognizes(weights)
    converted = convert(Weights(tmp_path, weights), max_length=_LENGTH)
    again = convert(Weights(tmp_path, weights), max_length=_LENGTH, strand_average=True).model
    assert torch.equal(again(_IDS).logits, model(_IDS).logits)
    assert converted.model.config.strand_average == (prefix != "1.")


def test_a_model_survives_saving(tmp_path: Path) -> None:
    model = _model(unknown_value=0.25, num_labels=2, problem_type="single_label_classification")
    model.save_pretrained(tmp_path)
    again = DeepSEAForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(_IDS).logits, model(_IDS).logits)
    assert again(_IDS, labels=torch.tensor([0, 1, 1])).loss.ndim == 0


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MegabaseError, match="201 tokens, this DeepSEA network reads 200"):
        _model()(F.pad(_IDS, (0, 1), value=7))
    with pytest.raises(MegabaseError, match=r"channels must be.*dropout must be"):
        DeepSEAConfig(channels=(1, 2), dropout=(2, 0, 0))
    with pytest.raises(MegabaseError, match="give 163 or more"):
        DeepSEAConfig(max_length=162)
    DeepSEAConfig(max_length=163)
    assert not FAMILIES["deepsea"].recognizes(["a"])
    with pytest.raises(MegabaseError, match="not what 1,000 bases leave"):
        convert(Weights(tmp_path, _to_kipoi(_model())))

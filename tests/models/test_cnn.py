"""The GenomicBenchmarks CNN: size, input lengths, published habits, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megabase.errors import InputError, MegabaseError
from megabase.models.checkpoints.reader import Weights
from megabase.models.cnn import (
    SHORTEST,
    GenomicCNNConfig,
    GenomicCNNForSequenceClassification,
    convert,
)
from megabase.models.families import FAMILIES
from megabase.models.tokenizers.table import LetterTokenizer

_IDS = torch.randint(7, 11, (3, 60), generator=torch.Generator().manual_seed(0))


def _model(**settings: object) -> GenomicCNNForSequenceClassification:
    torch.manual_seed(0)
    config = GenomicCNNConfig(**{"max_length": 64, "embedding_dim": 6, **settings})
    return GenomicCNNForSequenceClassification(config).eval()


@pytest.mark.parametrize("variant", ["genomic-benchmarks", "caduceus"])
def test_padding_of_the_batch_makes_no_difference(variant: str) -> None:
    model = _model(variant=variant)
    alone = model(_IDS).logits
    for left, right in ((0, 4), (3, 0), (2, 9)):
        ids = F.pad(_IDS, (left, right), value=4)
        mask = F.pad(torch.ones_like(_IDS), (left, right))
        torch.testing.assert_close(model(ids, mask).logits, alone)


def test_longer_inputs_are_refused_or_trimmed() -> None:
    ids = torch.cat([_IDS, _IDS], 1)
    with pytest.raises(InputError, match="120 tokens, this CNN reads 64 at most"):
        _model()(ids)
    trimmed = _model(too_long="trim")
    torch.testing.assert_close(trimmed(ids).logits, trimmed(ids[:, :64]).logits)


def test_two_classes_have_one_form_of_logits() -> None:
    labels = torch.tensor([0, 1, 1])
    model = _model()
    result = model(_IDS, labels=labels)
    padded = F.pad(_IDS, (0, 4), value=4)
    z = model.scores(padded)
    torch.testing.assert_close(result.logits.softmax(-1)[:, 1:], z.sigmoid())
    expected = F.binary_cross_entropy_with_logits(z, labels[:, None].float())
    torch.testing.assert_close(result.loss, expected)
    published = _model(double_sigmoid=True)(_IDS, labels=labels)
    torch.testing.assert_close(published.logits, result.logits)
    twice = F.binary_cross_entropy_with_logits(z.sigmoid(), labels[:, None].float())
    torch.testing.assert_close(published.loss, twice)


def test_other_tasks() -> None:
    three = _model(num_labels=3)
    assert three(_IDS, labels=torch.tensor([0, 2, 1])).logits.shape == (3, 3)
    several = _model(num_labels=2, problem_type="multi_label_classification")
    assert several(_IDS, labels=torch.rand(3, 2)).logits.shape == (3, 2)
    number = _model(num_labels=1, problem_type="regression")
    assert number(_IDS, labels=torch.rand(3)).loss.ndim == 0


def test_a_model_survives_saving_and_published_names(tmp_path: Path) -> None:
    model = _model(variant="caduceus")
    model.save_pretrained(tmp_path)
    again = GenomicCNNForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(_IDS).logits, model(_IDS).logits)
    renamed = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert FAMILIES["cnn"].recognizes(renamed)
    converted = convert(Weights(tmp_path, renamed), max_length=64)
    assert torch.equal(converted.model(_IDS).logits, model(_IDS).logits)
    assert converted.model.config.variant == "caduceus"


def test_bad_settings_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MegabaseError, match=r"variant must be.*leaves nothing.*57 or more"):
        GenomicCNNConfig(variant="x", max_length=SHORTEST - 1)
    with pytest.raises(MegabaseError, match="double_sigmoid"):
        GenomicCNNConfig(double_sigmoid=True, num_labels=3)
    state = _model().state_dict()
    with pytest.raises(MegabaseError, match="for inputs of 57 to 64 tokens, not 500"):
        convert(Weights(tmp_path, dict(state)), max_length=500)
    with pytest.raises(MegabaseError, match="nothing tells the input length"):
        convert(Weights(tmp_path, dict(state)))
    assert not FAMILIES["cnn"].recognizes(["backbone.x"])
    (tmp_path / "config.json").write_text('{"model_type": "hyenadna"}')
    with pytest.raises(MegabaseError, match="'hyenadna', not a GenomicBenchmarks CNN"):
        GenomicCNNConfig.from_pretrained(tmp_path)


def test_letters_are_numbered_in_order_of_appearance(tmp_path: Path) -> None:
    tokenizer = LetterTokenizer.from_sequences(["TGA", "CN"], padding=True)
    assert tokenizer("tgx")["input_ids"] == [1, 2, 3, 0, 5]
    assert tokenizer(["T", "TG"], padding=True)["input_ids"][0] == [1, 2, 5, 8]
    tokenizer.save_pretrained(tmp_path)
    assert LetterTokenizer.from_pretrained(tmp_path)("TGA")["input_ids"] == [1, 2, 3, 4, 5]
    with pytest.raises(MegabaseError, match="distinct tokens"):
        LetterTokenizer(["A", "A"])


def test_groups_hold_every_parameter_once() -> None:
    model = _model()
    groups = model.parameter_groups(1e-3, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}

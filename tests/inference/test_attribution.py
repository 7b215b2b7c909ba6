"""Attribution: gradients by finite differences, and integrated gradients that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyBigWig
import pytest
import torch

from megabase.data.sources import SequenceInput
from megabase.errors import InputError, MegabaseError, OutputError
from megabase.genome.alphabet import encode
from megabase.inference.attribution import _Attributor, attribute, attribute_file
from megabase.models.deepsea import DeepSEAConfig, DeepSEAForSequenceClassification
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
)
from megabase.models.tokenizers.character import DNATokenizer

TEXT = "ACGTTGCATNGACCA"
HEADS = {
    "sequence": HyenaDNAForSequenceClassification,
    "token": HyenaDNAForTokenClassification,
    "lm": HyenaDNAForCausalLM,
}


def _model(head: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    config = HyenaDNAConfig(
        d_model=16, n_layer=1, max_seq_len=66, initializer_range=0.3, **names, **settings
    )
    return HEADS[head](config).double().eval()


def _output(model: Any, one_hot: torch.Tensor, head: str) -> torch.Tensor:
    """The function of (length, 5) one-hot rows, written out with embeddings as input."""
    table = model.get_input_embeddings().weight
    logits = model(inputs_embeds=(one_hot @ table[7:12])[None]).logits[0]
    if head == "sequence":
        return logits[1]
    if head == "token":
        return logits[:, 1].mean()
    total = torch.zeros((), dtype=torch.float64)
    for i, base in enumerate(TEXT[1:]):
        if base != "N":
            total = total + logits[i, 7:11].float().log_softmax(-1)["ACGT".index(base)]
    return total


def _one_hot() -> torch.Tensor:
    rows = torch.tensor(["ACGTN".index(base) for base in TEXT])
    return torch.nn.functional.one_hot(rows, 5).double()


@pytest.mark.parametrize("head", list(HEADS))
def test_gradients_are_finite_differences(head: str) -> None:
    model = _model(head)
    target = None if head == "lm" else "yes"
    (found,) = attribute(model, [TEXT], target=target, method="gradient_input")
    x, step = _one_hot(), 1e-3
    with torch.no_grad():
        assert found.output == pytest.approx(float(_output(model, x, head)), abs=1e-5)
        for place in (0, 4, 9, 14):
            for letter in range(4):
                moved = [x.clone(), x.clone()]
                moved[0][place, letter] += step
                moved[1][place, letter] -= step
                up, down = (float(_output(model, m, head)) for m in moved)
                slope = (up - down) / (2 * step)
                assert found.letters[place, letter] == pytest.approx(slope, abs=2e-3)
            own = "ACGTN".index(TEXT[place])
            if own < 4:
                assert found.values[place] == pytest.approx(found.letters[place, own])


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("baseline", ["uniform", "n"])
def test_integrated_gradients_add_up_to_the_difference(head: str, baseline: Any) -> None:
    model = _model(head)
    target = None if head == "lm" else 1
    (found,) = attribute(model, [TEXT], target=target, baseline=baseline, steps=100)
    start = torch.zeros_like(_one_hot())
    start[:, :4] = 0.25 if baseline == "uniform" else 0.0
    start[:, 4] = float(baseline == "n")
    with torch.no_grad():
        difference = float(_output(model, _one_hot(), head) - _output(model, start, head))
    assert abs(difference) > 1e-3
    assert found.output - found.baseline_output == pytest.approx(difference, abs=1e-5)
    assert float(found.values.sum()) == pytest.approx(difference, abs=5e-3 * (1 + abs(difference)))
    assert found.gap == pytest.approx(float(found.values.sum()) - difference, abs=1e-4)


def test_weights_and_modes_are_as_before() -> None:
    model = _model("sequence").train()
    attribute(model, [TEXT], target="yes", steps=4)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_base_that_the_model_cannot_see_gets_nothing() -> None:
    model = _model("sequence", pooling="first")
    (found,) = attribute(model, [TEXT], target="yes", steps=8)
    assert found.values[0] != 0
    np.testing.assert_allclose(found.values[1:], 0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name one as the target: no, yes"),
        ({"target": "maybe"}, "no output 'maybe'"),
        ({"target": "yes", "method": "shap"}, "method is one of"),
        ({"target": "yes", "baseline": "zero"}, "baseline is one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _Attributor(_model("sequence"), **options)


def test_models_without_an_embedding_are_refused() -> None:
    model = DeepSEAForSequenceClassification(DeepSEAConfig(max_length=200, hidden=8, num_labels=1))
    with pytest.raises(InputError, match="attribut"):
        attribute(model, ["ACGT" * 50], steps=2)


def test_a_next_token_head_that_sees_both_sides_is_refused() -> None:
    with pytest.raises(MegabaseError, match="is bidirectional"):
        _Attributor(_model("lm", bidirectional="two_sided"))


def test_a_sequence_that_is_too_long_or_empty_is_refused() -> None:
    ready = _Attributor(_model("lm"), steps=2)
    with pytest.raises(InputError, match="67 bases, more than"):
        ready(encode("A" * 67))
    with pytest.raises(InputError, match="no base"):
        ready(encode(""))


# -- files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _model("lm").float().save_pretrained(tmp_path / "model")
    DNATokenizer(model_max_length=66).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(1)
    (tmp_path / "genome.fa").write_text(">chr1\n" + "".join(rng.choice(list("ACGT"), 300)) + "\n")
    (tmp_path / "places.bed").write_text("chr1\t10\t40\ta\t0\t+\nchr1\t100\t130\tb\t0\t-\n")
    return tmp_path


def test_every_format_holds_the_same_numbers(folder: Path) -> None:
    source = SequenceInput(str(folder / "places.bed"), str(folder / "genome.fa"))
    table, arrays, track = (
        attribute_file(str(folder / "model"), source, folder / f"out{s}", steps=4, workers=1)
        for s in (".parquet", ".npz", ".bw")
    )
    frame = pl.read_parquet(table)
    values = [np.array(v, dtype=np.float32) for v in frame["values"].to_list()]
    assert [len(v) for v in values] == [30, 30]
    with np.load(arrays) as found:
        np.testing.assert_array_equal(found["values"], np.concatenate(values))
        np.testing.assert_allclose(found["letters"][:30].sum(1), values[0], atol=1e-5)
        assert found["offsets"].tolist() == [0, 30, 60]
    with pyBigWig.open(str(track)) as opened:
        np.testing.assert_array_equal(np.float32(opened.values("chr1", 10, 40)), values[0])
        # The second place is on the reverse strand: its first base lies at the right end.
        np.testing.assert_array_equal(np.float32(opened.values("chr1", 100, 130)), values[1][::-1])


def test_a_track_needs_places(folder: Path) -> None:
    (folder / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(OutputError, match="needs positions"):
        attribute_file(str(folder / "model"), folder / "a.fa", folder / "a.bw")

"""DNABERT: sizes, limits, pieces, published folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from megabase.errors import MegabaseError
from megabase.models.auto import load_model, load_tokenizer
from megabase.models.checkpoints.reader import Weights
from megabase.models.dnabert import (
    DNABERTConfig,
    DNABERTForMaskedLM,
    DNABERTForSequenceClassification,
    DNABERTModel,
    convert,
)
from megabase.models.families import FAMILIES
from megabase.models.tokenizers.kmer import DNABERTTokenizer

_SHAPE = {
    "k": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}


def _config(**settings: object) -> DNABERTConfig:
    return DNABERTConfig(**{**_SHAPE, **settings})


def test_pieces_are_averaged_and_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    model = DNABERTForSequenceClassification(_config(long_inputs="pieces")).eval()
    tokenizer = DNABERTTokenizer(k=3, model_max_length=16, long_inputs="pieces")
    long, short = "ACGTTGCAACGTAGCTAGCTAGCATCG", "ACGTTGCA"
    batch = tokenizer([long, short], padding=True, return_tensors="pt")
    logits = model(**batch).logits
    alone = torch.cat([model(**tokenizer(s, return_tensors="pt")).logits for s in (long, short)])
    torch.testing.assert_close(logits, alone)
    pieces = [batch["input_ids"][:1, start : start + 16] for start in (0, 16)]
    masks = [batch["attention_mask"][:1, start : start + 16] for start in (0, 16)]
    pooled = [model.bert(ids, mask).pooler_output for ids, mask in zip(pieces, masks, strict=True)]
    torch.testing.assert_close(logits[:1], model.classifier(sum(pooled) / 2))
    loss = model(**batch, labels=torch.tensor([0, 1])).loss
    assert loss.ndim == 0


@pytest.mark.parametrize(
    "model_class", [DNABERTModel, DNABERTForMaskedLM, DNABERTForSequenceClassification]
)
def test_longer_inputs_are_refused(model_class: type) -> None:
    model = model_class(_config())
    with pytest.raises(MegabaseError, match=r"17 tokens, this 3-mer DNABERT reads 16.*16 bases"):
        model(torch.full((1, 17), 5))
    model(torch.full((1, 16), 5))


def test_a_vocabulary_that_is_no_kmers_is_refused() -> None:
    with pytest.raises(MegabaseError, match=r"vocab_size must be 4\*\*k \+ 5.*30522"):
        DNABERTConfig(vocab_size=30522)
    with pytest.raises(MegabaseError, match="long_inputs must be"):
        _config(long_inputs="cut")


def test_a_published_folder_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DNABERTForMaskedLM(_config())
    model.save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text())
    del published["k"], published["long_inputs"]
    published |= {"model_type": "bert", "max_length": 20, "num_beams": 1, "do_sample": False,
                  "num_rnn_layer": 1, "rnn": "lstm", "rnn_hidden": 768, "split": 10,
                  "rnn_dropout": 0.0, "eos_token_ids": 0}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    again = DNABERTForMaskedLM.from_pretrained(tmp_path)
    assert (again.config.k, again.config.max_length) == (3, 16)
    assert not hasattr(again.config, "rnn")
    ids = torch.randint(0, 69, (2, 12))
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    # The weights are BERT's own: transformers alone reads them too.
    plain = BertForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_published_weights_are_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DNABERTForMaskedLM(_config()).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {"bert.pooler.dense.weight": torch.zeros(32, 32), "extra": torch.zeros(1)}
    state.pop("cls.predictions.decoder.weight")
    config = {"num_attention_heads": 2, "model_type": "bert", "max_length": 20}
    assert FAMILIES["dnabert"].recognizes(state)
    found = convert(Weights(tmp_path, state, config))
    ids = torch.randint(0, 69, (2, 12))
    assert torch.equal(found.model(ids).logits, model(ids).logits)
    assert set(found.dropped) == {"bert.pooler.dense.weight", "extra"}
    assert "pooler" in found.notes[0]
    state.pop("bert.embeddings.LayerNorm.bias")
    with pytest.raises(MegabaseError, match=r"missing: bert\.embeddings\.LayerNorm\.bias"):
        convert(Weights(tmp_path, state, config))


def test_the_tokenizer_of_a_configuration() -> None:
    tokenizer = DNABERTTokenizer.for_config(_config(k=4, long_inputs="pieces"))
    assert (tokenizer.k, tokenizer.model_max_length) == (4, 16)
    assert tokenizer.long_inputs == "pieces"


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "caduceus"}')
    with pytest.raises(MegabaseError, match="'caduceus', not a DNABERT"):
        DNABERTConfig.from_pretrained(tmp_path)


def test_norms_and_biases_do_not_decay() -> None:
    model = DNABERTForSequenceClassification(_config())
    decayed = {id(p) for g in model.parameter_groups(1e-4, 0.01) if g["weight_decay"]
               for p in g["params"]}  # fmt: skip
    spared = {name for name, p in model.named_parameters() if id(p) not in decayed}
    assert spared == {
        name for name, _ in model.named_parameters() if "LayerNorm" in name or "bias" in name
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as published: transformers' BERT with a pooler, k-mers, and the misleading flag."""
    torch.manual_seed(1)
    shape = {name: value for name, value in _SHAPE.items() if name != "k"}
    bert = BertForPreTraining(BertConfig(vocab_size=69, **shape))
    folder = tmp_path / "DNA_bert_3"
    bert.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config))
    tokens = list(DNABERTTokenizer(k=3).get_vocab())
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def test_a_published_folder_loads_as_it_is(published: Path) -> None:
    model, tokenizer = load_model(published), load_tokenizer(published)
    assert isinstance(model, DNABERTForMaskedLM)
    assert isinstance(tokenizer, DNABERTTokenizer)
    batch = tokenizer("acgTTGCAAC", return_tensors="pt")
    assert int(batch["input_ids"].min()) >= 2
    assert 1 not in batch["input_ids"]  # no k-mer is unknown, whatever do_lower_case says
    theirs = BertForMaskedLM.from_pretrained(published).eval()
    torch.testing.assert_close(model(**batch).logits, theirs(**batch).logits)
    encoder = load_model(published, "base")
    assert isinstance(encoder, DNABERTModel)


def test_a_classifier_starts_from_a_masked_language_model(published: Path, tmp_path: Path) -> None:
    with pytest.raises(MegabaseError, match="new_head=True"):
        load_model(published, "sequence-classification")
    model = load_model(published, "sequence-classification", new_head=True, num_labels=3)
    want = load_file(published / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, want)
    # A folder without the pooler, as megabase writes a masked language model, is no obstacle.
    load_model(published).save_pretrained(tmp_path / "ours")
    again = load_model(tmp_path / "ours", "sequence-classification", new_head=True, num_labels=2)
    assert again.config.num_labels == 2


def test_another_bert_is_named(published: Path) -> None:
    (published / "vocab.txt").write_text("\n".join(["[PAD]", "the", "a"]) + "\n")
    with pytest.raises(MegabaseError, match="model_type is 'bert'"):
        load_model(published)

"""Recorded cases of DNABERT and BigBird."""

from __future__ import annotations

from typing import Any

import torch
from harness import Case, covers
from span_masking import SPAN_OFFSETS, mask_kmer_spans

from megabase.models.bigbird import (
    GenomicBigBirdConfig,
    GenomicBigBirdForMaskedLM,
    GenomicBigBirdForSequenceClassification,
)
from megabase.models.dnabert import (
    DNABERTConfig,
    DNABERTForMaskedLM,
    DNABERTForSequenceClassification,
)
from megabase.models.tokenizers.kmer import DNABERTTokenizer, _split_kmers


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": config["d_inner"],
        "max_position_embeddings": config["max_positions"],
        "hidden_act": config["activation"],
        "layer_norm_eps": config["layer_norm_eps"],
    }
    if "num_labels" in config:
        settings["num_labels"] = config["num_labels"]
    return settings


def _check(case: Case, model: Any) -> None:
    weights = {name: torch.from_numpy(array) for name, array in case.weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing
    assert not unexpected
    model.eval()
    batch = {
        name: torch.from_numpy(case.inputs[name]).long() for name in ("input_ids", "attention_mask")
    }
    labels = torch.from_numpy(case.inputs["labels"]).long()
    result = model(**batch, labels=labels)
    result.loss.backward()
    got = {"logits": result.logits, "loss": result.loss}
    for key in case.expected:
        kind, _, name = key.partition("/")
        if kind == "grad_norm":
            gradient = model.get_parameter(name).grad
            got[key] = torch.zeros(()) if gradient is None else gradient.norm()
        elif kind == "grad":
            got[key] = model.get_parameter(name).grad
    double = model.double()(**batch, labels=labels)
    got |= {"f64/logits": double.logits, "f64/loss": double.loss}
    case.check({key: value for key, value in got.items() if key in case.expected})


@covers("bert")
def bert(case: Case) -> None:
    config = DNABERTConfig(**_shape(case.config))
    heads = "num_labels" in case.config
    _check(case, DNABERTForSequenceClassification(config) if heads else DNABERTForMaskedLM(config))


@covers("bigbird")
def bigbird(case: Case) -> None:
    config = GenomicBigBirdConfig(
        **_shape(case.config),
        attention_type=case.config["attention_type"],
        block_size=case.config["block_size"],
        num_random_blocks=case.config["num_random_blocks"],
        random_blocks="training-only",
    )
    heads = "num_labels" in case.config
    model = GenomicBigBirdForSequenceClassification if heads else GenomicBigBirdForMaskedLM
    _check(case, model(config))


@covers("dnabert_kmer_tokenizer")
def dnabert_kmer_tokenizer(case: Case) -> None:
    recorded = case.output_json
    assert case.config["mask_offsets"] == {str(k): list(v) for k, v in SPAN_OFFSETS.items()}
    published = {
        k: DNABERTTokenizer(k=k, strict=False, upper_case=False, long_inputs="published-pieces")
        for k in case.config["k"]
    }
    for name, vocabulary in recorded["vocabularies"].items():
        tokenizer = published[int(name)]
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        assert len(tokens) == vocabulary["size"]
        assert tokens[: len(vocabulary["first"])] == vocabulary["first"]
        assert tokens[-len(vocabulary["last"]) :] == vocabulary["last"]
        assert str(tokenizer.k) == vocabulary["kmer_attribute"]
        for kmer, index in vocabulary["id_of"].items():
            unknown = tokenizer.unk_token_id if index is None else index
            assert tokenizer.convert_tokens_to_ids(kmer) == unknown, kmer
        for count, layout in vocabulary["long_inputs"].items():
            ids = tokenizer.build_inputs_with_special_tokens([5] * int(count))
            assert len(ids) == layout["total"]
            assert [i for i, x in enumerate(ids) if x == 2] == layout["cls_positions"]
            assert [i for i, x in enumerate(ids) if x == 3] == layout["sep_positions"]
            mask = tokenizer.get_special_tokens_mask([5] * int(count))
            assert mask == [int(x in (2, 3)) for x in ids]
    for row in recorded["cases"]:
        _check_text(row, published[row["k"]])
    ignored = DNABERTTokenizer(k=6, strict=False, upper_case=False, do_lower_case=True)
    assert ignored("ACGTAC CGTACG")["input_ids"] == recorded["do_lower_case_true_6mer"]
    for row in recorded["mlm"]:
        ids = torch.tensor(row["ids"])
        special = (ids == 0) | (ids == 2) | (ids == 3)
        hidden = mask_kmer_spans(
            ids,
            special,
            k=row["k"],
            seed=row["torch_seed"],
            probability=row["mlm_probability"],
        )
        assert hidden.input_ids.tolist() == row["result"]["inputs"]
        assert hidden.labels.tolist() == row["result"]["labels"]


def _check_text(row: dict[str, Any], tokenizer: DNABERTTokenizer) -> None:
    text, k = row["text"], row["k"]
    line = text.replace("\n", "")
    sentence = " ".join(_split_kmers(text, k))
    assert sentence == row["seq2kmer"]
    assert " ".join(_split_kmers(line, k, drop_last=True)) == row["get_kmer_sentence"]
    side_by_side = " ".join(_split_kmers(line, k, stride=k, drop_last=True))
    assert side_by_side == row["get_kmer_sentence_stride_k"]
    # The published function gives what there is of a sequence shorter than k.
    assert (_split_kmers(line, k) or [line]) == row["get_kmer_sequence"]
    # The recorded ids are those of the sentence of k-mers.
    assert tokenizer(sentence)["input_ids"] == row["ids"]
    assert tokenizer(sentence, add_special_tokens=False)["input_ids"] == row["ids_no_special"]
    padded = tokenizer(sentence, padding="max_length", max_length=16, truncation=True)
    assert dict(padded) == row["ids_padded_16"]
    if len(line) >= k and line == text:
        assert tokenizer(text)["input_ids"] == row["ids"]

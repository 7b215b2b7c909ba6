"""Recorded cases of the GenomicBenchmarks CNN and its Caduceus variant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Case, covers

from megabase.errors import ConfigError
from megabase.models.checkpoints.reader import Weights
from megabase.models.cnn import (
    SHORTEST,
    GenomicCNNConfig,
    GenomicCNNForSequenceClassification,
    _flat,
    convert,
)
from megabase.models.tokenizers.table import _letter_tokens


def _tensors(case: Case) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    weights = {name: torch.from_numpy(array) for name, array in case.weights.items()}
    return weights, torch.from_numpy(case.inputs["input_ids"]).long()


@covers("genomic_benchmarks_cnn")
def genomic_benchmarks_cnn(case: Case) -> None:
    weights, ids = _tensors(case)
    labels = torch.from_numpy(case.inputs["labels"]).reshape(-1).long()
    binary = case.config["number_of_classes"] == 2

    def build() -> GenomicCNNForSequenceClassification:
        return convert(
            Weights(case.path, weights),
            max_length=case.config["input_len"],
            variant="genomic-benchmarks",
            num_labels=case.config["number_of_classes"],
            double_sigmoid=binary,
        ).model

    model = build()
    assert model.config.vocab_size == case.config["vocab_size"]
    assert model.config.embedding_dim == case.config["embedding_dim"]
    assert _flat(case.config["input_len"]) == case.config["flatten_size"]

    def output(net: GenomicCNNForSequenceClassification) -> torch.Tensor:
        logits = net(ids).logits
        return logits.softmax(-1)[:, 1:] if binary else logits

    result = model(ids, labels=labels)
    result.loss.backward()
    got = {"output": output(model), "loss": result.loss}
    for key in case.expected:
        kind, _, name = key.partition("/")
        if kind == "grad_norm":
            got[key] = model.get_parameter(name).grad.norm()
        elif kind == "grad":
            got[key] = model.get_parameter(name).grad
    if binary:
        got["pre_sigmoid"] = model.scores(ids)
        corrected = F.cross_entropy(result.logits, labels)
        got["loss_on_logits_instead"] = corrected
    double = build().double()
    got["f64/output"] = output(double)
    got["f64/loss"] = double(ids, labels=labels).loss

    trained = build().train()
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    losses = []
    for _ in range(len(case.expected["train_mode_loss_3_adam_steps"])):
        loss = trained(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    got["train_mode_loss_3_adam_steps"] = torch.stack(losses)
    case.check(got)


@covers("genomic_benchmarks_cnn_logits")
def genomic_benchmarks_cnn_logits(case: Case) -> None:
    weights, ids = _tensors(case)
    read = Weights(case.path, weights)
    model = convert(read, max_length=case.config["input_len"], variant="caduceus").model
    assert model.config.num_labels == case.config["number_of_classes"]
    assert model.config.vocab_size == case.config["vocab_size"]
    case.check({"logits": model(ids).logits, "f64/logits": model.double()(ids).logits})


@covers("cnn_behaviours")
def cnn_behaviors(case: Case) -> None:
    recorded = case.output_json
    for text, tokens in recorded["letter_tokenizer"].items():
        assert _letter_tokens(text) == tokens, text
    for length, counts in recorded["parameter_counts_embedding100_vocab8"].items():
        assert _flat(int(length)) == counts["flatten"]
        for name, classes in (("binary", 2), ("three_class", 3)):
            with torch.device("meta"):
                config = GenomicCNNConfig(
                    max_length=int(length), vocab_size=8, pad_token_id=7, num_labels=classes
                )
                model = GenomicCNNForSequenceClassification(config)
            assert sum(p.numel() for p in model.parameters()) == counts[name], (length, name)
    for length, outcome in recorded["too_short_input"].items():
        if outcome == "ok":
            assert int(length) >= SHORTEST
            config = GenomicCNNConfig(max_length=int(length), vocab_size=8, pad_token_id=7)
            logits = (
                GenomicCNNForSequenceClassification(config)
                .eval()(torch.zeros(2, int(length), dtype=torch.long))
                .logits
            )
            assert logits.shape == (2, 2)
        else:
            try:
                GenomicCNNConfig(max_length=int(length))
            except ConfigError:
                continue
            raise AssertionError(f"a CNN for {length} tokens was built; recorded: {outcome}")

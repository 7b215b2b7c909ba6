"""Caduceus: language models of every kind, classifiers, conjoining, counts and behaviors."""

from __future__ import annotations

from typing import Any

import torch
from harness import Case, covers
from shell_cases import Results, ids, load_weights, run
from torch import Tensor, nn

from kinds.mamba import settings
from megabase.layers.mamba import add_norm
from megabase.layers.pooling import pool
from megabase.models.caduceus import (
    CaduceusConfig,
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
)
from megabase.models.mamba import MambaConfig, MambaForCausalLM


def _config(case: Case, **more: Any) -> CaduceusConfig:
    config = case.config
    return CaduceusConfig(
        **settings(config),
        fused_add_norm=config["fused_add_norm"],
        bidirectional=config["bidirectional"],
        bidirectional_strategy=config["bidirectional_strategy"],
        bidirectional_weight_tie=config["bidirectional_weight_tie"],
        rcps=config["rc_equivariant"],
        complement_map=config["complement_map"],
        pad_token_id=config["pad_token_id"],
        mask_token_id=config["mask_token_id"],
        **more,
    )


@covers("caduceus_mlm")
def caduceus_mlm(case: Case) -> None:
    model = CaduceusForMaskedLM(_config(case))
    load_weights(model, case.weights, "")
    tokens, labels, other = ids(case), ids(case, "labels"), ids(case, "rc_input_ids")
    weights = torch.from_numpy(case.inputs["loss_weights"])

    def forward(model: nn.Module) -> Results:
        output = model(tokens, labels=labels, output_hidden_states=True)
        turned = model(other, output_hidden_states=True)
        embedding = model.caduceus.backbone.embeddings["word_embeddings"](tokens)
        first, residual = model.caduceus.backbone.layers[0](embedding)
        return {
            "logits": output.logits,
            "hidden": output.hidden_states[-1],
            "loss": output.loss,
            "weighted_loss": model(tokens, labels=labels, loss_weights=weights).loss,
            "embedding": embedding,
            "layer0_hidden": first,
            "layer0_residual": residual,
            "rc_logits": turned.logits,
            "rc_hidden": turned.hidden_states[-1],
        }

    run(case, model, forward, "")


@covers("caduceus_classifier")
def caduceus_classifier(case: Case) -> None:
    config = _config(
        case,
        num_labels=case.config["num_labels"],
        pooling=case.config["pooling"],
        conjoin_train=case.config.get("conjoin_train", False),
        conjoin_eval=case.config["conjoin_eval"],
    )
    model = CaduceusForSequenceClassification(config)
    load_weights(model, case.weights, "")
    tokens, labels = ids(case), torch.from_numpy(case.inputs["labels"])
    labels = labels if labels.is_floating_point() else labels.long()
    # The published classifier pools over padding too: every position is real.
    everything = torch.ones_like(tokens)

    def forward(model: nn.Module) -> Results:
        output = model(tokens, attention_mask=everything, labels=labels)
        return {"logits": output.logits, "loss": output.loss}

    run(case, model, forward, "")


@covers("sequence_decoder_conjoin")
def sequence_decoder_conjoin(case: Case) -> None:
    head = nn.Linear(case.config["d_model"], case.config["d_output"])
    head.load_state_dict(
        {
            name.removeprefix("output_transform."): torch.from_numpy(value)
            for name, value in case.weights.items()
        }
    )
    hidden = torch.from_numpy(case.inputs["hidden"])
    strands = torch.from_numpy(case.inputs["hidden_two_strands"])
    modes = {"pool": "mean", "first": "first", "last": "last", "sum": "sum"}
    got: dict[str, Tensor] = {}
    for key in case.expected:
        mode, conjoin, batch = key.split("/")
        count = int(batch.removeprefix("batch="))
        if conjoin == "conjoin=True":
            scores = [head(pool(x[:count], modes[mode])) for x in strands.unbind(-1)]
            # The reference loses the batch axis of a single sequence; ours keeps it.
            got[key] = torch.stack(scores).mean(dim=0).reshape(case.expected[key].shape)
        else:
            got[key] = head(pool(hidden[:count], modes[mode]))
    case.check(got)


@covers("caduceus_behaviours")
def caduceus_behaviors(case: Case) -> None:
    for text in case.output_json["differences"]:
        layers = int(text.split()[0])
        torch.manual_seed(layers)
        plain = _equivariant(layers, fused=False)
        fused = _equivariant(layers, fused=True)
        state = {
            name.replace(".norm.submodule.", ".norm."): v for name, v in plain.state_dict().items()
        }
        state = {name.replace("norm_f.submodule.", "norm_f."): v for name, v in state.items()}
        fused.load_state_dict(state)
        tokens = torch.randint(7, 12, (2, 33))
        hidden = fused(tokens, output_hidden_states=True).hidden_states[-1]
        # The recorded differences: none to the exchanged blocks, large ones to the plain blocks.
        assert (hidden - _exchanged(plain, tokens)).abs().max() < 1e-12
        unlike = plain(tokens, output_hidden_states=True).hidden_states[-1]
        assert (hidden - unlike).abs().max() > 1e-2
    names = case.output_json["key_difference"]
    layers = len(names["fused"]) - 1
    for kind, fused in (("fused", True), ("unfused", False)):
        own = set(_equivariant(layers, fused).state_dict())
        assert set(names[kind]) <= own
    assert set(case.output_json["all_keys_fused"]) == set(_equivariant(layers, True).state_dict())


def _equivariant(layers: int, fused: bool) -> CaduceusForMaskedLM:
    config = CaduceusConfig(d_model=16, n_layer=layers, rcps=True, fused_add_norm=fused)
    model = CaduceusForMaskedLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def _swap_halves(hidden: Tensor) -> Tensor:
    return hidden.roll(hidden.shape[-1] // 2, dims=-1)


def _exchanged(model: CaduceusForMaskedLM, tokens: Tensor) -> Tensor:
    """Run unfused blocks, the strands changing places before each."""
    backbone = model.caduceus.backbone
    hidden, residual = backbone.embeddings["word_embeddings"](tokens), None
    for layer in backbone.layers:
        residual = None if residual is None else _swap_halves(residual)
        hidden, residual = layer(_swap_halves(hidden), residual)
    return add_norm(backbone.norm_f["submodule"], hidden, residual, strands=2)[0]


@covers("caduceus_parameter_counts")
def caduceus_parameter_counts(case: Case) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "PH": {},
        "PS": {"rcps": True},
        "unidirectional": {"bidirectional": False},
        "untied": {"bidirectional_weight_tie": False},
    }
    for name, counts in case.output_json["unique_parameters"].items():
        for kind, count in counts.items():
            if name == "mamba LM":
                model: nn.Module = MambaForCausalLM(MambaConfig(**_shape(kind)))
            else:
                model = CaduceusForMaskedLM(CaduceusConfig(**_shape(name), **kinds[kind]))
            assert sum(p.numel() for p in model.parameters()) == count, (name, kind)
    one = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    assert set(one.state_dict()) == set(case.output_json["state_dict_keys_1_layer_ph"])
    table = {str(i): other for i, other in enumerate(one.config.complement_map)}
    recorded = case.output_json["complement_map"]
    assert {key: table[key] for key in recorded} == recorded
    # The reference cannot pool by the first or last token; both work here.
    for pooling in ("first", "last"):
        config = CaduceusConfig(d_model=16, n_layer=1, pooling=pooling)
        logits = CaduceusForSequenceClassification(config)(torch.randint(7, 11, (2, 9))).logits
        assert logits.shape == (2, 2)


def _shape(text: str) -> dict[str, int]:
    """Read ``1k d118 n4``."""
    words = text.split()
    width, layers = words[-2:]
    return {"d_model": int(width.removeprefix("d")), "n_layer": int(layers.removeprefix("n"))}

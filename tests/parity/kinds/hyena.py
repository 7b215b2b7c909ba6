"""HyenaDNA: backbones, language models, classifiers, filters, heads, counts and behaviours."""

from __future__ import annotations

import re

import pytest
import torch
from harness import Case, covers
from shell_cases import Results, hyena_settings, ids, load_weights, run
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.layers.hyena_filter import HyenaFilter
from megabase.layers.pooling import pool
from megabase.models.gpt import GPTConfig, GPTModel
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAModel,
)
from megabase.ops.long_conv import long_conv


def _attention(case: Case) -> tuple[list[int], int, int]:
    """Blocks that mix by attention, their heads (stated in the note only), and positions."""
    layers = {
        int(match.group(1))
        for name in case.weights
        if (match := re.match(r"backbone\.layers\.(\d+)\.mixer\.Wqkv\.weight", name))
    }
    if not layers:
        return [], 8, 0
    heads = re.search(r"heads=(\d+)|(\d+) heads", case.meta["note"])
    assert heads is not None
    positions = case.weights.get("backbone.embeddings.position_embeddings.weight")
    return (
        sorted(layers),
        int(heads.group(1) or heads.group(2)),
        0 if positions is None else len(positions),
    )


def _weighted_loss(case: Case, hidden: Tensor) -> Tensor:
    weight = torch.from_numpy(case.inputs["loss_weight"]).to(hidden.dtype)
    return (hidden * weight).mean() * 10


def _digests(case: Case, hidden: Tensor) -> Results:
    positions = torch.from_numpy(case.expected["positions"]).long()
    return {
        "positions": positions,
        "hidden_at_positions": hidden[:, positions],
        "hidden_mean_over_length": hidden.mean(dim=1),
        "hidden_std_over_length": hidden.std(dim=1, correction=0),
        "hidden_abs_sum": hidden.abs().sum(dim=(1, 2)),
    }


@covers("hyenadna_backbone")
def hyenadna_backbone(case: Case) -> None:
    settings = hyena_settings(case.config, "standalone")
    layers, heads, positions = _attention(case)
    if len(layers) == settings["n_layer"]:
        shared = set(GPTConfig.__dataclass_fields__) & set(settings)
        model: nn.Module = GPTModel(
            GPTConfig(
                **{name: settings[name] for name in shared},
                num_heads=heads,
                max_position_embeddings=positions,
            )
        )
    else:
        model = HyenaDNAModel(
            HyenaDNAConfig(
                **settings,
                attention_layers=layers,
                attention_heads=heads,
                max_position_embeddings=positions,
            )
        )
    load_weights(model, case.weights, "")
    tokens = ids(case)

    def forward(model: nn.Module) -> Results:
        hidden = model(tokens).last_hidden_state
        results = {"hidden": hidden}
        if "loss_weight" in case.inputs:
            results["loss"] = _weighted_loss(case, hidden)
        if "positions" in case.expected:
            results.update(_digests(case, hidden))
        return results

    run(case, model, forward, "")


@covers("hyenadna_lm")
def hyenadna_lm(case: Case) -> None:
    model = HyenaDNAForCausalLM(HyenaDNAConfig(**hyena_settings(case.config, "training")))
    load_weights(model, case.weights, "hyena.")
    tokens, labels = ids(case), ids(case, "labels")

    def forward(model: nn.Module) -> Results:
        output = model(tokens, output_hidden_states=True)
        loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        return {"logits": output.logits, "hidden": output.hidden_states[-1], "loss": loss}

    run(case, model, forward, "hyena.")


@covers("hyenadna_classifier")
def hyenadna_classifier(case: Case) -> None:
    settings = hyena_settings(case.config, "standalone")
    config = HyenaDNAConfig(
        **settings, num_labels=case.config["n_classes"], pooling="published_mean"
    )
    model = HyenaDNAForSequenceClassification(config)
    load_weights(model, case.weights, "hyena.")
    tokens, labels = ids(case), ids(case, "labels")

    def forward(model: nn.Module) -> Results:
        output = model(tokens, labels=labels)
        return {"logits": output.logits, "loss": output.loss}

    run(case, model, forward, "hyena.")


@covers("hyenadna_hf_lm")
def hyenadna_hf_lm(case: Case) -> None:
    model = HyenaDNAForCausalLM(HyenaDNAConfig(**hyena_settings(case.config, "standalone")))
    load_weights(model, case.weights, "hyena.")
    tokens = ids(case)

    def forward(model: nn.Module) -> Results:
        output = model(tokens, labels=tokens, output_hidden_states=True)
        return {
            "logits": output.logits,
            "hidden": output.hidden_states[-1],
            "loss": output.loss,
        }

    run(case, model, forward, "hyena.")


@covers("hyenadna_hf_classifier")
def hyenadna_hf_classifier(case: Case) -> None:
    config = HyenaDNAConfig(
        **hyena_settings(case.config, "standalone"),
        num_labels=case.config["num_labels"],
        pooling="hf",
        head_bias=False,
    )
    model = HyenaDNAForSequenceClassification(config)
    load_weights(model, case.weights, "hyena.")
    tokens, labels = ids(case), ids(case, "labels")

    def forward(model: nn.Module) -> Results:
        output = model(tokens, labels=labels)
        return {"logits": output.logits, "loss": output.loss}

    run(case, model, forward, "hyena.")


@covers("hyena_filter")
def hyena_filter(case: Case) -> None:
    for table in case.config["tables"]:
        index, length = table["index"], table["length"]
        window = {
            "fast_decay": table["fast_decay_pct"],
            "slow_decay": table["slow_decay_pct"],
            "target": table["decay_target"],
            "shift": table["shift"],
        }
        module = HyenaFilter(
            table["channels"],
            table["seq_len"],
            emb_dim=table["emb_dim"],
            width=table["mlp_width"],
            num_inner_mlps=table["num_inner_mlps"],
            sine_freq=table["sine_freq"],
            window=window,
        )
        # The tables from their formula, before the stored ones replace them.
        z, t = module.pos_emb.tables()
        deltas = module.modulation.table()
        prefix = f"{index}/"
        module.load_state_dict(
            {
                name.removeprefix(prefix): torch.from_numpy(value)
                for name, value in case.weights.items()
                if name.startswith(prefix)
            }
        )
        u = torch.from_numpy(case.expected[f"{index}/u"])
        taps = module(length)
        decay = torch.exp(-t[0, :length, 0] * deltas.abs().reshape(-1, 1)).T
        module.modulate = False
        plain = module(length).T
        module.modulate = True
        case.check(
            {
                f"{index}/z": z[0, :length],
                f"{index}/t": t[0, :length],
                f"{index}/deltas": deltas.reshape(-1),
                f"{index}/decay": decay,
                f"{index}/mlp_out": plain,
                f"{index}/k": taps.T,
                f"{index}/u": u,
                f"{index}/y": long_conv(u, taps, module.skip()),
            }
        )
        wide = module.double()
        taps = wide(length)
        got = {"k_f64": taps.T, "y_f64": long_conv(u.double(), taps, wide.skip())}
        for name, value in got.items():
            want = (
                torch.from_numpy(case.expected[f"f64/{index}/{name.removesuffix('_f64')}"])
                if (f"f64/{index}/{name.removesuffix('_f64')}" in case.expected)
                else torch.from_numpy(case.expected[f"{index}/{name}"])
            )
            torch.testing.assert_close(value, want, atol=1e-8, rtol=1e-8)
            case.compared.add(f"{index}/{name}")


HEAD_REASONS = {
    "sequence output": "more than one vector per sequence: our heads give one, or one per token",
    "left mask": "the published mean over the first n positions of a left-padded row is a defect",
    "lengths": "lengths are given as a mask",
}


@covers("sequence_decoder")
def sequence_decoder(case: Case) -> None:
    head = nn.Linear(case.config["d_model"], case.config["d_output"])
    head.load_state_dict(
        {
            name.removeprefix("output_transform."): torch.from_numpy(value)
            for name, value in case.weights.items()
        }
    )
    hidden = torch.from_numpy(case.inputs["hidden"])
    mask_right = torch.from_numpy(case.inputs["mask_right"]).bool()
    modes = {"pool": "published_mean", "last": "last", "first": "first", "sum": "sum"}
    masked = {"pool": "mean", "last": "last", "first": "first", "sum": "sum"}
    got = {}
    for key in case.expected:
        _, mode, variant = key.split("/")
        if variant == "l_output=0":
            got[key] = head(pool(hidden, modes[mode]))
        elif variant == "l_output=1":
            got[key] = head(pool(hidden, modes[mode]))[:, None]
        elif variant in ("mask_right_padded", "use_lengths"):
            got[key] = head(pool(hidden, masked[mode], mask_right))
    for key in list(got):
        want = torch.from_numpy(case.expected[key])
        print(key, (got[key] - want).abs().max())
    case.check(got)


@covers("parameter_counts")
def parameter_counts(case: Case) -> None:
    if "counts" not in case.output_json:
        pytest.skip(f"not covered: {case.name}")
    for name, row in case.output_json["counts"].items():
        print(name, row)

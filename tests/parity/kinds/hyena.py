"""HyenaDNA: backbones, language models, classifiers, filters, heads, counts and behaviors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import Case, covers
from shell_cases import Results, hyena_settings, ids, load_weights, ours, run
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import ConfigError, InputError
from megabase.layers.hyena import FilterOptions, HyenaFilter, _published_two_sided
from megabase.layers.pooling import Pooling, pool
from megabase.models.checkpoints.reader import read_weights, renamed
from megabase.models.gpt import GPTConfig, GPTForCausalLM, GPTModel
from megabase.models.hyenadna import (
    NAME_RULES,
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
    _check_other_files(case, model, tokens)

    def forward(model: nn.Module) -> Results:
        output = model(tokens, output_hidden_states=True)
        loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        return {"logits": output.logits, "hidden": output.hidden_states[-1], "loss": loss}

    run(case, model, forward, "hyena.")


def _check_other_files(case: Case, model: nn.Module, tokens: Tensor) -> None:
    """Files that hold the same numbers under other names give the same logits."""
    others = set(case.config.get("weight_files", {})) - {"weights.safetensors"}
    for name in sorted(others):
        if name.endswith(".json"):
            continue
        tensors, _ = renamed(read_weights(case.path / name).tensors, NAME_RULES)
        other = HyenaDNAForCausalLM(model.config)
        missing, unexpected = other.load_state_dict(tensors, strict=False)
        assert not unexpected, name
        assert all(re.search(r"\.[35]\.freq$|^lm_head", key) for key in missing), (name, missing)
        assert torch.equal(other.eval()(tokens).logits, model.eval()(tokens).logits), name


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
            FilterOptions(
                emb_dim=table["emb_dim"],
                width=table["mlp_width"],
                num_inner_mlps=table["num_inner_mlps"],
                sine_freq=table["sine_freq"],
                window=window,
            ),
        )
        # The tables from their formula, before the stored ones replace them.
        z, t = module.pos_emb.tables().values()
        deltas = module.modulation.tables()["deltas"]
        prefix = f"{index}/"
        module.load_state_dict(
            {
                name.removeprefix(prefix): torch.from_numpy(value)
                for name, value in case.weights.items()
                if name.startswith(prefix)
            }
        )
        u = torch.from_numpy(case.expected[f"{index}/u"])
        taps, skip = module(length)
        decay = torch.exp(-t[0, :length, 0] * deltas.abs().reshape(-1, 1)).T
        options = module.options
        module.options = replace(options, modulate=False)
        plain = module(length)[0].T
        module.options = options
        case.check(
            {
                f"{index}/z": z[0, :length],
                f"{index}/t": t[0, :length],
                f"{index}/deltas": deltas.reshape(-1),
                f"{index}/decay": decay,
                f"{index}/mlp_out": plain,
                f"{index}/k": taps.T,
                f"{index}/u": u,
                f"{index}/y": long_conv(u, taps, skip),
            }
        )
        wide = module.double()
        taps, skip = wide(length)
        double = {"k_f64": taps.T, "y_f64": long_conv(u.double(), taps, skip)}
        for name, value in double.items():
            want = torch.from_numpy(case.expected[f"{index}/{name}"])
            torch.testing.assert_close(value, want, atol=1e-8, rtol=1e-8)
            case.compared.add(f"{index}/{name}")


SEVERAL = "running means and sums along the sequence; no published task reads several of them"
LEFT_MASK = "a mean over the first n positions of a left-padded row is a defect: wrong positions"


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
    everywhere: dict[str, Pooling] = {
        "pool": "published_mean",
        "last": "last",
        "first": "first",
        "sum": "sum",
    }
    real: dict[str, Pooling] = {**everywhere, "pool": "mean"}
    got = {}
    for key in case.expected:
        _, mode, variant = key.split("/")
        wanted = variant.removeprefix("l_output=")
        if wanted == "0":
            got[key] = head(pool(hidden, everywhere[mode]))
        elif wanted == "1":
            got[key] = head(pool(hidden, everywhere[mode]))[:, None]
        elif variant in ("mask_right_padded", "use_lengths"):
            got[key] = head(pool(hidden, real[mode], mask_right))
        elif variant == "mask_left_padded":
            case.ignore(key, LEFT_MASK)
        elif mode in ("pool", "sum"):
            case.ignore(key, SEVERAL)
        else:
            # The head at every position, of which the first or last n are kept.
            each = head(hidden)
            if wanted != "None":
                each = each[:, : int(wanted)] if mode == "first" else each[:, -int(wanted) :]
            got[key] = each
    case.check(got)


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@covers("parameter_counts")
def parameter_counts(case: Case) -> None:
    if "counts" not in case.output_json:
        pytest.skip(f"not covered: {case.name}")
    for name, row in case.output_json["counts"].items():
        if name == "backward check":
            _check_backward(row)
            continue
        if "attention" in name:
            width, layers, heads, positions = (int(n) for n in re.findall(r"\d+", name))
            settings = GPTConfig(
                d_model=width, n_layer=layers, num_heads=heads, max_position_embeddings=positions
            )
            model = _on_meta(lambda settings=settings: GPTForCausalLM(settings))
        else:
            settings = HyenaDNAConfig(
                d_model=row["d_model"],
                n_layer=row["n_layer"],
                d_inner=row["d_inner"],
                max_seq_len=row["l_max"],
                emb_dim=row.get("emb_dim", 5),
                filter_order=row.get("filter_order", 64),
                lr_pos_emb=1e-5 if row["pos_table"] == "parameter" else 0.0,
            )
            assert settings.vocab_rows == row.get("vocab_rows", 16)
            model = _on_meta(lambda settings=settings: HyenaDNAForCausalLM(settings))
        backbone = model.base_model.backbone
        found = {
            "unique_parameters": sum(p.numel() for p in model.parameters()),
            "buffers": sum(b.numel() for b in model.buffers()),
            "per_block": sum(p.numel() for p in backbone.layers[0].parameters()),
            "embedding": backbone.embeddings.word_embeddings.weight.numel(),
        }
        assert found == {key: row[key] for key in found}, name
    _check_initial_values(case.output_json["default_init_statistics_tiny_1k"])


def _check_backward(row: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = HyenaDNAForCausalLM(HyenaDNAConfig(window_shift=0.0))
    tokens = torch.randint(7, 12, (2, 257))
    logits = model(tokens[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert unreached == row["params_without_grad"]
    assert abs(loss.item() - row["log_16"]) < 0.35


def _check_initial_values(rows: dict[str, Any]) -> None:
    """Both sides are random draws, so they agree within a few standard errors."""
    torch.manual_seed(1)
    model = HyenaDNAForCausalLM(HyenaDNAConfig())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, row in rows.items():
        values = parameters[ours(name, "hyena.")].detach()
        assert list(values.shape) == row["shape"], name
        n, std = values.numel(), values.std().item()
        margin = 5 * max(std, row["std"]) * (2 / n) ** 0.5
        assert abs(values.mean().item() - row["mean"]) <= margin, name
        assert abs(std - row["std"]) <= margin, name


@covers("hyena_behaviours")
def hyena_behaviors(case: Case) -> None:
    recorded = case.output_json
    for name, want in recorded.items():
        if name.startswith("bidirectional long convolution"):
            for length, matrix in want.items():
                taps = torch.arange(1.0, int(length) + 1, dtype=torch.float64)[None]
                steps = torch.eye(int(length), dtype=torch.float64)[:, None]
                answer = long_conv(steps, _published_two_sided(taps), two_sided=True)[:, 0].T
                torch.testing.assert_close(
                    answer, torch.tensor(matrix, dtype=torch.float64), atol=1e-5, rtol=0
                )
        elif name.startswith("state_dict keys of"):
            one = HyenaDNAForCausalLM(HyenaDNAConfig(n_layer=1))
            keys = {key.removeprefix("hyena.") for key in one.state_dict()}
            assert keys - {"lm_head.weight"} == set(want) - {"lm_head.weight"}, name
        elif name.startswith("optimizer overrides"):
            _check_optimizer_groups(want)
    # Where the published code fails late or carries on with something else, ours says so at once.
    with pytest.raises(ConfigError, match="emb_dim must be odd"):
        HyenaDNAConfig(emb_dim=4)
    model = HyenaDNAForCausalLM(HyenaDNAConfig(max_seq_len=32, d_model=16))
    with pytest.raises(InputError, match=r"40 positions.*at most 32"):
        model(torch.full((1, 40), 7))
    with pytest.raises(InputError, match=r"40 positions.*at most 32"):
        model.hyena.backbone.layers[0].mixer(torch.zeros(1, 40, 16))
    both = GPTModel(GPTConfig(d_model=16, num_heads=2, n_layer=3, causal=False))
    assert [layer.mixer.causal for layer in both.backbone.layers] == [False] * 3
    sines = [
        name
        for name, _ in model.hyena.backbone.layers[0].mixer.filter_fn.named_parameters()
        if name.endswith("freq")
    ]
    assert sines == recorded["sine frequency entries in named_parameters"]


def _check_optimizer_groups(want: dict[str, dict[str, float]]) -> None:
    positions = want.get("backbone.layers.0.mixer.filter_fn.pos_emb.z", {"lr": 0.0})["lr"]
    rate = next(row["lr"] for name, row in want.items() if "implicit_filter" in name)
    model = HyenaDNAForCausalLM(HyenaDNAConfig(n_layer=1, lr_pos_emb=positions))
    names = {id(p): name for name, p in model.named_parameters()}
    overridden = {
        names[id(p)].removeprefix("hyena."): {"lr": g["lr"], "weight_decay": g["weight_decay"]}
        for g in model.parameter_groups(lr=rate, weight_decay=0.1)
        if g["name"] in ("filter", "positions")
        for p in g["params"]
    }
    assert overridden == want

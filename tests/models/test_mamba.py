"""Mamba as a transformers model: names, counts, stepping, padding, files, optimizer groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.made_models import needs_name
from torch import Tensor

from megabase.errors import CheckpointError, ConfigError
from megabase.models.auto import load_model
from megabase.models.checkpoints.reader import Weights, read_weights
from megabase.models.families import FAMILIES
from megabase.models.mamba import (
    MambaConfig,
    MambaForCausalLM,
    MambaForSequenceClassification,
    MambaForTokenClassification,
    MambaModel,
    convert,
)


def small(**more: Any) -> MambaConfig:
    return MambaConfig(**{"d_model": 12, "n_layer": 2, "ssm_cfg": {"d_state": 4}, **more})


def tokens(batch: int = 2, length: int = 23) -> Tensor:
    return torch.randint(7, 12, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(small()).eval()


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_default_shape_is_the_published_baseline() -> None:
    assert count(MambaForCausalLM(MambaConfig())) == 468_608


def test_names_are_those_of_the_public_code(model: MambaForCausalLM) -> None:
    names = set(model.state_dict())
    assert {"backbone.embedding.weight", "backbone.norm_f.weight", "lm_head.weight"} <= names
    mixer = {n.split("mixer.")[1] for n in names if n.startswith("backbone.layers.1.mixer.")}
    assert mixer == {
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
        "dt_proj.weight", "dt_proj.bias", "out_proj.weight",
    }  # fmt: skip
    assert model.lm_head.weight is model.backbone.embedding.weight


@torch.no_grad()
def test_initial_values_are_the_published_ones() -> None:
    torch.manual_seed(1)
    model = MambaForCausalLM(MambaConfig(d_model=64, n_layer=9))
    mixer = model.backbone.layers[3].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    assert bool((mixer.D == 1).all())
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-3 * 0.99 < float(steps.min()) < 2e-3
    assert 0.05 < float(steps.max()) < 0.101
    assert float(mixer.dt_proj.weight.abs().max()) <= 4**-0.5
    assert float(mixer.out_proj.weight.abs().max()) <= 128**-0.5 / 3
    assert abs(float(model.backbone.embedding.weight.std()) - 0.02) < 2e-3


def test_one_token_at_a_time_is_the_full_pass(model: MambaForCausalLM) -> None:
    model = model.double()
    ids = tokens()
    full = model(ids).logits
    cache = None
    for t in range(ids.shape[1]):
        logits, cache = model.step(ids[:, t], cache)
        torch.testing.assert_close(logits, full[:, t], atol=1e-12, rtol=1e-12)


def test_a_prompt_then_steps_is_the_full_pass(model: MambaForCausalLM) -> None:
    model = model.double()
    ids = tokens()
    full = model(ids).logits
    output = model(ids[:, :10], use_cache=True)
    logits, cache = model.step(ids[:, 10:11], output.cache)
    torch.testing.assert_close(logits, full[:, 10], atol=1e-12, rtol=1e-12)
    rest = model(ids[:, 11:], cache=cache).logits
    torch.testing.assert_close(rest, full[:, 11:], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("d_conv", [1, 2, 5])
def test_stepping_holds_for_any_number_of_taps(d_conv: int) -> None:
    model = MambaForCausalLM(small(ssm_cfg={"d_state": 3, "d_conv": d_conv})).double().eval()
    ids = tokens(1, 9)
    full = model(ids).logits
    cache = None
    for t in range(9):
        logits, cache = model.step(ids[:, t], cache)
        torch.testing.assert_close(logits, full[:, t], atol=1e-12, rtol=1e-12)


def test_later_tokens_change_nothing_before_them(model: MambaForCausalLM) -> None:
    ids = tokens()
    other = ids.clone()
    other[:, 15:] = 7
    assert torch.equal(model(ids).logits[:, :15], model(other).logits[:, :15])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_tokens(model: MambaForCausalLM, side: str) -> None:
    model = model.double()
    ids = tokens()
    pad = torch.full((2, 6), 4)
    padded = torch.cat([pad, ids] if side == "left" else [ids, pad], dim=1)
    mask = (padded != 4).long()
    real = slice(6, None) if side == "left" else slice(0, -6)
    got = model(padded, attention_mask=mask).logits[:, real]
    torch.testing.assert_close(got, model(ids).logits, atol=1e-12, rtol=1e-12)
    classifier = MambaForSequenceClassification(small()).double().eval()
    torch.testing.assert_close(
        classifier(padded, attention_mask=mask).logits, classifier(ids).logits
    )


def test_mask_padding_off_is_the_published_way(model: MambaForCausalLM) -> None:
    ids = torch.cat([torch.full((2, 3), 4), tokens()], dim=1)
    model.config.mask_padding = False
    with_mask = model(ids, attention_mask=(ids != 4).long()).logits
    assert torch.equal(with_mask, model(ids).logits)


def test_embeddings_may_be_given_instead_of_ids(model: MambaForCausalLM) -> None:
    ids = tokens()
    given = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=given).logits, model(ids).logits)
    for kind in (MambaForSequenceClassification, MambaForTokenClassification):
        head = kind(small()).eval()
        given = head.get_input_embeddings()(ids)
        torch.testing.assert_close(head(inputs_embeds=given).logits, head(ids).logits)
    with pytest.raises(ConfigError, match="exactly one"):
        model(ids, inputs_embeds=given)


def test_labels_are_shifted_and_minus_100_takes_no_part(model: MambaForCausalLM) -> None:
    ids = tokens()
    labels = ids.clone()
    labels[:, :5] = -100
    output = model(ids, labels=labels)
    want = torch.nn.functional.cross_entropy(
        output.logits[:, 4:-1].flatten(0, 1), ids[:, 5:].flatten()
    )
    torch.testing.assert_close(output.loss, want)


@needs_name
def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(2)
    model = MambaForCausalLM(small()).train()
    ids = tokens()
    grads = []
    for every in (0, 1, 2):
        if every:
            model.activation_checkpointing_enable(every_n_layers=every)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_optimizer_groups_are_the_published_ones(model: MambaForCausalLM) -> None:
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {g["name"]: g for g in model.parameter_groups(1e-3, 0.1)}
    spared = {names[id(p)] for p in groups["not_decayed"]["params"]}
    decayed = {names[id(p)] for p in groups["decayed"]["params"]}
    ends = {name.split("mixer.")[-1] for name in spared}
    assert ends == {"backbone.embedding.weight", "A_log", "D", "conv1d.bias", "dt_proj.bias"}
    assert "backbone.layers.0.norm.weight" in decayed
    assert groups["not_decayed"]["weight_decay"] == 0
    assert groups["decayed"]["weight_decay"] == 0.1
    assert len(spared) + len(decayed) == len(names)


def test_a_saved_folder_loads_again(model: MambaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = MambaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert loaded.lm_head.weight is loaded.backbone.embedding.weight


@pytest.mark.parametrize("kept", ["lm_head.weight", "backbone.embedding.weight"])
def test_one_of_two_tied_tensors_is_enough(
    model: MambaForCausalLM, tmp_path: Path, kept: str
) -> None:
    model.save_pretrained(tmp_path)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state.pop({"lm_head.weight", "backbone.embedding.weight"}.difference({kept}).pop())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = MambaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_a_tie_missing_on_both_sides_is_missing(model: MambaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state = {
        k: v for k, v in state.items() if k not in ("lm_head.weight", "backbone.embedding.weight")
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = MambaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert "backbone.embedding.weight" in info["missing_keys"]
    with pytest.raises(CheckpointError, match=r"missing: .*backbone\.embedding\.weight"):
        load_model(tmp_path, "causal-lm")


def published(model: MambaForCausalLM, path: Path, config: dict[str, Any] | None) -> Path:
    """Write a folder as the public code does: a pickle, and a configuration without a type."""
    path.mkdir()
    torch.save(dict(model.state_dict()), path / "pytorch_model.bin")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_published_folder_converts(model: MambaForCausalLM, tmp_path: Path) -> None:
    config = {
        "d_model": 12, "n_layer": 2, "vocab_size": 12, "ssm_cfg": {}, "rms_norm": True,
        "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8,
    }  # fmt: skip
    for name, settings in (("with", config), ("without", None)):
        weights = read_weights(published(model, tmp_path / name, settings))
        assert FAMILIES["mamba"].recognizes(weights.tensors)
        made = convert(weights)
        assert torch.equal(made.model(tokens()).logits, model(tokens()).logits)
        assert made.model.config.residual_in_fp32 == (settings is not None)
        assert bool(made.notes) == (settings is None)


def test_lightning_names_and_the_library_port_convert(model: MambaForCausalLM) -> None:
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    state["val_torchmetrics.total"] = torch.zeros(1)
    made = convert(Weights(Path("x.ckpt"), state))
    assert made.dropped == ("val_torchmetrics.total",)
    assert torch.equal(made.model(tokens()).logits, model(tokens()).logits)
    port = {
        k.replace("embedding.", "embeddings."): v
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    made = convert(Weights(Path("x"), port, {"model_type": "mamba"}))
    assert torch.equal(made.model(tokens()).logits, model(tokens()).logits)
    with pytest.raises(CheckpointError, match="says 'bert'"):
        convert(Weights(Path("x"), port, {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"missing: backbone\.layers\.1\.mixer\.D"):
        convert(Weights(Path("x"), {k: v for k, v in port.items() if "1.mixer.D" not in k}))


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError) as found:
        MambaConfig(d_model=0, pooling="middle", ssm_cfg={"d_state": 0, "dt_init": "zero"})
    for part in ("d_model", "pooling", "ssm_cfg: d_state", "ssm_cfg: dt_init"):
        assert part in str(found.value)
    with pytest.raises(ConfigError, match="found d_stat"):
        MambaConfig(ssm_cfg={"d_stat": 16})


def test_published_setting_names_are_read() -> None:
    config = MambaConfig(tie_embeddings=False, ssm_cfg={"use_fast_path": True, "layer": "Mamba1"})
    assert not config.tie_word_embeddings
    model = MambaForCausalLM(config)
    assert model.lm_head.weight is not model.backbone.embedding.weight


def test_the_bare_model_gives_every_layer(model: MambaForCausalLM) -> None:
    base = MambaModel(small()).eval()
    output = base(tokens(), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert isinstance(base(tokens(), return_dict=False), tuple)

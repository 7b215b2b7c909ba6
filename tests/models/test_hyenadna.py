"""HyenaDNA as a transformers model: settings, names, saving, loading, heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import megabase.models  # noqa: F401 (registers the families)
from megabase.errors import ConfigError, InputError
from megabase.models.heads import IGNORE_INDEX
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
    HyenaDNAModel,
)


def _config(**settings: Any) -> HyenaDNAConfig:
    return HyenaDNAConfig(**{"d_model": 16, "max_seq_len": 66, "filter_order": 8, **settings})


def _ids(batch: int = 2, length: int = 30) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(7, 11, (batch, length))


@pytest.mark.parametrize(
    ("width", "layers", "l_max", "parameters"),
    [
        (128, 2, 1026, 436_096),
        (256, 2, 1026, 1_641_088),
        (128, 2, 16_386, 436_096),
        (256, 4, 32_770, 3_277_568),
        (256, 8, 160_002, 6_550_528),
        (256, 8, 450_002, 6_550_528),
        (256, 8, 1_000_002, 6_550_528),
    ],
)
def test_parameters_of_the_published_sizes(
    width: int, layers: int, l_max: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = HyenaDNAForCausalLM(
            HyenaDNAConfig(d_model=width, n_layer=layers, max_seq_len=l_max)
        )
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.config.max_length == l_max


def test_one_error_lists_every_problem() -> None:
    with pytest.raises(ConfigError) as error:
        HyenaDNAConfig(
            emb_dim=4,
            hyena_order=1,
            d_model=0,
            pooling="median",
            bidirectional="yes",
            embed_dropout=1.5,
            attention_layers=[7],
        )
    for name in (
        "emb_dim must be odd",
        "hyena_order must be a whole number >= 2, found 1",
        "d_model",
        "pooling must be one of mean,",
        "bidirectional must be one of none, published, two_sided, found 'yes'",
        "embed_dropout must be from 0 to 1, found 1.5",
        "attention_layers",
    ):
        assert name in str(error.value)


def test_rows_of_the_vocabulary() -> None:
    assert _config().vocab_rows == 16
    assert _config(pad_vocab_size_multiple=1).vocab_rows == 12
    assert _config(vocab_size=16).vocab_rows == 16


def test_positions_also_limit_the_length() -> None:
    config = _config(attention_layers=[0], attention_heads=2, max_position_embeddings=20)
    assert (config.max_length, config.length_setting) == (20, "max_position_embeddings")
    with pytest.raises(InputError, match=r"at most 20 .max_position_embeddings"):
        HyenaDNAModel(config)(_ids(1, 21))


def test_too_long_an_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"67 positions.*at most 66 \(max_seq_len\)"):
        HyenaDNAForCausalLM(_config())(_ids(1, 67))


def test_ids_or_embeddings_but_not_both() -> None:
    model = HyenaDNAModel(_config()).eval()
    ids = _ids()
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(
        model(inputs_embeds=embedded).last_hidden_state, model(ids).last_hidden_state
    )
    with pytest.raises(ConfigError, match="exactly one"):
        model(ids, inputs_embeds=embedded)
    with pytest.raises(ConfigError, match="exactly one"):
        model()


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_again(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HyenaDNAForCausalLM(_config(tie_word_embeddings=tied)).eval()
    # Tables and frequencies that no formula gives must come from the file.
    for layer in model.hyena.backbone.layers:
        layer.mixer.filter_fn.pos_emb.z += 0.1
        layer.mixer.filter_fn.implicit_filter[1].freq.data += 1.0
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(name.endswith("freq") for name in stored) == 2
    assert ("lm_head.weight" in stored) == (not tied)
    again, report = HyenaDNAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(_ids()).logits, model(_ids()).logits)
    assert len(list(again.parameters())) == len(list(model.parameters()))
    embedding = again.hyena.backbone.embeddings.word_embeddings.weight
    assert (again.lm_head.weight is embedding) == tied


@pytest.mark.parametrize("copies", [(1,), (3,), (5,), (1, 3), (3, 5), (1, 3, 5)])
@pytest.mark.parametrize("tied", [True, False])
def test_any_copy_of_the_frequency_will_do(
    copies: tuple[int, ...], tied: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = HyenaDNAForCausalLM(_config(tie_word_embeddings=tied)).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in list(state):
        if name.endswith(".freq"):
            state[name] += 0.5
            if int(name.split(".")[-2]) not in copies:
                del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    again, report = HyenaDNAForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for layer in again.hyena.backbone.layers:
        sines = [layer.mixer.filter_fn.implicit_filter[i].freq for i in (1, 3, 5)]
        assert sines[0] is sines[1]
        assert sines[1] is sines[2]
        assert torch.equal(sines[0], torch.full((1, 8), 10.5))


def test_missing_tables_are_filled_from_their_formula(tmp_path: Path) -> None:
    model = HyenaDNAForCausalLM(_config()).eval()
    state = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.endswith((".z", ".t", ".deltas", "3.freq", "5.freq"))
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    again = HyenaDNAForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(_ids()).logits, model(_ids()).logits)


def test_a_published_folder_loads_into_our_class_and_runs_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HyenaDNAForCausalLM(_config(tie_word_embeddings=False)).eval()
    state = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not name.endswith(("3.freq", "5.freq"))
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    published = {
        "activation_freq": 10,
        "architectures": ["HyenaDNAForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_hyena.HyenaConfig",
            "AutoModelForCausalLM": "modeling_hyena.HyenaDNAForCausalLM",
        },
        "d_inner": 64,
        "d_model": 16,
        "emb_dim": 5,
        "embed_dropout": 0.1,
        "filter_order": 8,
        "hyena_dropout": 0.0,
        "hyena_filter_dropout": 0.0,
        "hyena_order": 2,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "max_seq_len": 66,
        "model_type": "hyenadna",
        "n_layer": 2,
        "num_inner_mlps": 2,
        "pad_token_id": 4,
        "pad_vocab_size_multiple": 8,
        "short_filter_order": 3,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "train_freq": True,
        "use_bias": True,
        "vocab_size": 12,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    for name in ("configuration_hyena.py", "modeling_hyena.py"):
        (tmp_path / name).write_text("raise RuntimeError('code of the folder was run')")
    assert type(AutoConfig.from_pretrained(tmp_path)) is HyenaDNAConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is HyenaDNAForCausalLM
    assert loaded.config.window_shift == 0.05
    assert torch.equal(loaded(_ids()).logits, model(_ids()).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_labels_of_the_language_model_are_shifted_inside() -> None:
    model = HyenaDNAForCausalLM(_config()).eval()
    ids = _ids()
    labels = ids.clone()
    labels[:, 5] = IGNORE_INDEX
    output = model(ids, labels=labels)
    each = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    kept = torch.ones(29, dtype=torch.bool)
    kept[4] = False
    torch.testing.assert_close(output.loss, each[:, kept].mean())


@pytest.mark.parametrize(
    ("labels", "count", "want"),
    [
        (torch.tensor([0, 2]), 3, lambda x, y: F.cross_entropy(x, y)),
        (torch.tensor([0.5, 2.0]), 1, lambda x, y: F.mse_loss(x[:, 0], y)),
        (torch.eye(3)[:2], 3, lambda x, y: F.binary_cross_entropy_with_logits(x, y)),
    ],
    ids=["classes", "regression", "labels"],
)
def test_losses_of_the_sequence_classifier(labels: torch.Tensor, count: int, want: Any) -> None:
    model = HyenaDNAForSequenceClassification(_config(num_labels=count)).eval()
    output = model(_ids(), labels=labels)
    assert output.logits.shape == (2, count)
    torch.testing.assert_close(output.loss, want(output.logits, labels))


def test_token_classifier_gives_one_vector_per_nucleotide() -> None:
    model = HyenaDNAForTokenClassification(_config(num_labels=3)).eval()
    labels = torch.randint(0, 3, (2, 30))
    labels[0, :10] = IGNORE_INDEX
    output = model(_ids(), labels=labels)
    assert output.logits.shape == (2, 30, 3)
    kept = labels != IGNORE_INDEX
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[kept], labels[kept]))


def test_head_without_bias() -> None:
    model = HyenaDNAForSequenceClassification(_config(head_bias=False))
    assert model.score.bias is None


def test_outputs_as_objects_and_tuples() -> None:
    model = HyenaDNAForCausalLM(_config()).eval()
    output = model(_ids(), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], model.hyena(_ids()).last_hidden_state)
    as_tuple = model(_ids(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.logits)


def test_hidden_states_are_the_running_sum() -> None:
    model = HyenaDNAModel(_config()).eval()
    states = model(_ids(), output_hidden_states=True).hidden_states
    x = model.backbone.embeddings(_ids())
    for layer, state in zip(model.backbone.layers, states, strict=False):
        torch.testing.assert_close(x, state)
        x = x + layer.mixer(layer.norm1(x))
        x = x + layer.mlp(layer.norm2(x))
    torch.testing.assert_close(model.backbone.ln_f(x), states[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_keep_their_digits_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HyenaDNAForCausalLM(_config()).eval()
    model.save_pretrained(tmp_path)
    half = HyenaDNAForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    for parameter in model.parameters():  # only weights are rounded
        parameter.data = parameter.data.to(dtype).to(torch.float32)
    for one, other in zip(model.hyena.backbone.layers, half.hyena.backbone.layers, strict=True):
        assert other.mixer.in_proj.weight.dtype == dtype
        (want, _), (found, _) = one.mixer.filter_fn(66), other.mixer.filter_fn(66)
        assert torch.equal(found, want)

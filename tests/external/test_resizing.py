"""What transformers asks of a model when it saves, loads and resizes it, in the quick suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.made_models import needs_name
from transformers import AutoModel, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from megabase.errors import MegabaseError
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM

IDS = torch.tensor([[7, 8, 9, 10, 7, 11]])
_MIXER: dict[str, Any] = {"d_model": 16, "n_layer": 2, "ssm_cfg": {"d_state": 4}}

MODELS: dict[str, Any] = {
    "hyenadna": lambda **k: HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=64, attention_heads=2, **k)
    ),
    "gpt": lambda **k: GPTForCausalLM(
        GPTConfig(d_model=16, n_layer=2, num_heads=2, max_position_embeddings=64, **k)
    ),
    "mamba": lambda **k: MambaForCausalLM(MambaConfig(**_MIXER, **k)),
    "caduceus": lambda **k: CaduceusForMaskedLM(CaduceusConfig(**_MIXER, **k)),
    "caduceus-ps": lambda **k: CaduceusForMaskedLM(CaduceusConfig(**_MIXER, rcps=True, **k)),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("tokens", [13, 19])
def test_a_resized_model_is_saved_and_loaded(
    family: str, tied: bool, tokens: int, tmp_path: Path
) -> None:
    model = MODELS[family](tie_word_embeddings=tied).eval()
    before = model(IDS).logits
    model.resize_token_embeddings(tokens)
    want = model(IDS).logits
    assert want.shape[-1] == tokens
    torch.testing.assert_close(want[..., :12], before[..., :12])
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    kept = model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.state_dict().items())
    # Not to the bit: torch 2.8 sums 19 columns otherwise where a file put them in memory.
    torch.testing.assert_close(loaded(IDS).logits, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gone", ["freq", "word_embeddings"])
def test_a_shared_tensor_without_any_copy_is_missing(gone: str, tmp_path: Path) -> None:
    MODELS["hyenadna"]().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    names = {name for name in state if gone in name or (gone != "freq" and "lm_head" in name)}
    kept = {name: tensor for name, tensor in state.items() if name not in names}
    save_file(kept, path, metadata={"format": "pt"})
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert names
    assert names <= set(info["missing_keys"])
    _, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.removeprefix("hyena.") for name in names} - {"lm_head.weight"} <= {
        name.removeprefix("hyena.") for name in info["missing_keys"]
    }


@pytest.mark.parametrize("family", MODELS)
def test_hidden_vectors_are_as_wide_as_the_configuration_says(family: str) -> None:
    model = MODELS[family]()
    for state in model(IDS, output_hidden_states=True).hidden_states:
        assert state.shape[-1] == model.config.hidden_size
    again = type(model.config)(**model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()
    assert "hidden_size" not in model.config.to_json_string()


@needs_name
@pytest.mark.parametrize("family", MODELS)
def test_blocks_are_what_the_library_checkpoints(family: str) -> None:
    model = MODELS[family]()
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    assert len(layers) == 2
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in layers] == [True, False]


@pytest.mark.parametrize(
    ("family", "settings", "blocks"),
    [("gpt", {}, 2), ("gpt", {"causal": False}, 2), ("hyenadna", {"attention_layers": [1]}, 1)],
)
def test_attention_weights(family: str, settings: dict[str, Any], blocks: int) -> None:
    model = MODELS[family](**settings).eval()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    for given in (None, mask):
        plain = model(IDS, attention_mask=given)
        shown = model(IDS, attention_mask=given, output_attentions=True)
        assert plain.attentions is None
        assert len(shown.attentions) == blocks
        torch.testing.assert_close(shown.logits, plain.logits, atol=1e-6, rtol=1e-5)
        for weights in shown.attentions:
            assert weights.shape == (1, 2, 6, 6)
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 2, 6))
            if family == "gpt" and settings:
                continue
            assert not weights.triu(1).any()


@pytest.mark.parametrize("family", ["hyenadna", "mamba", "caduceus"])
def test_attention_weights_that_are_not_there_are_refused(family: str) -> None:
    with pytest.raises(MegabaseError, match="cannot honor output_attentions"):
        MODELS[family]()(IDS, output_attentions=True)

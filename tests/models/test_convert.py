from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from megabase.errors import CheckpointError, OutputError
from megabase.models.auto import load_model
from megabase.models.checkpoints.convert import _model_from_weights, convert_checkpoint
from megabase.models.checkpoints.reader import read_weights, renamed
from megabase.models.families import FAMILIES
from megabase.models.hyenadna import NAME_RULES, HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer

NAMING = Path(__file__).parents[1] / "golden" / "hyena_naming"
DEV_DATA = os.environ.get("MEGABASE_DEV_DATA")
needs_data = pytest.mark.skipif(
    not DEV_DATA, reason="MEGABASE_DEV_DATA does not name a folder with weights/ and genomes/"
)
REMAG = ("remag_0.3.3_base", "remag_0.3.3_20251024", "remag_0.6.1_4k")


def to_published(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under the names of the training repository, without its ``model.``."""
    return {
        re.sub(r"^score\.", "decoder.0.output_transform.", name.removeprefix("hyena.")): tensor
        for name, tensor in state.items()
    }


def recorded(case: Path) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Inputs, recorded logits, and their tolerance."""
    meta = json.loads((case / "meta.json").read_text())
    ids = torch.from_numpy(np.load(case / "input_ids.npy")).long()
    logits = load_file(case / "output.safetensors")["logits"]
    return ids, logits, meta["tolerance"]["logits"]["suggested_atol"]


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        ("weights.safetensors", None),
        ("lightning.ckpt", "config.standalone.json"),
        ("lightning_checkpointed.ckpt", "config.standalone.json"),
        ("hf.safetensors", "hf_config.json"),
    ],
)
def test_every_published_naming_gives_the_recorded_logits(
    tmp_path: Path, weights: str, config: str | None
) -> None:
    golden = os.environ.get("MEGABASE_GOLDEN")
    case = Path(golden) / NAMING.name if golden else NAMING
    said = json.loads((case / "config.json").read_text())
    ids, logits, atol = recorded(case)
    made = convert_checkpoint(
        case / weights,
        tmp_path / "model",
        config=config and case / config,
        window_shift=said["modulation_shift"],
    )
    assert made.model.config.model_type == "hyenadna"
    again = load_model(tmp_path / "model", kind="causal-lm")
    for model in (made.model, again):
        torch.testing.assert_close(model(ids).logits, logits, atol=atol, rtol=1e-5)
    assert again.config.tie_word_embeddings
    assert again.config.max_seq_len == said["l_max"]


def test_what_the_files_do_not_say_is_noted() -> None:
    made = _model_from_weights(read_weights(NAMING / "lightning.ckpt"))
    assert made.model.config.window_shift == 0.05
    assert any("window shift" in note for note in made.notes)
    given = _model_from_weights(read_weights(NAMING / "lightning.ckpt"), window_shift=0.0)
    assert given.model.config.window_shift == 0.0
    assert not any("window shift" in note for note in given.notes)


def test_published_folders_convert(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    settings = json.loads((NAMING / "hf_config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "configuration_hyena.HyenaConfig"}
    state = load_file(NAMING / "hf.safetensors")
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(settings))
    made = convert_checkpoint(source, tmp_path / "lm")
    assert made.notes == ()
    assert "auto_map" not in (tmp_path / "lm" / "config.json").read_text()

    del state["lm_head.weight"]
    state["score.weight"] = torch.randn(3, 16)
    settings |= {"architectures": ["HyenaDNAForSequenceClassification"],
                 "id2label": {"0": "enhancer", "1": "junk", "2": "promoter"}}  # fmt: skip
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(settings))
    convert_checkpoint(source, tmp_path / "classifier")
    config = load_model(tmp_path / "classifier").config
    assert (config.pooling, config.head_bias, config.num_labels) == ("hf", False, 3)
    assert config.id2label == {0: "enhancer", 1: "junk", 2: "promoter"}


def test_the_weights_win_over_a_wrong_configuration(tmp_path: Path) -> None:
    config = json.loads((NAMING / "config.standalone.json").read_text())
    config["d_model"] = 32
    config["layer"]["l_max"] = 1026
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = _model_from_weights(read_weights(NAMING / "lightning.ckpt", tmp_path))
    assert (made.model.config.d_model, made.model.config.max_seq_len) == (16, 66)
    assert sum("the weights are taken" in note for note in made.notes) == 2


def small(**changes: Any) -> HyenaDNAForCausalLM:
    torch.manual_seed(1)
    settings = {"d_model": 16, "n_layer": 2, "max_seq_len": 40, "filter_order": 8, **changes}
    return HyenaDNAForCausalLM(HyenaDNAConfig(**settings)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hyena_order": 3, "emb_dim": 7, "num_inner_mlps": 1, "short_filter_order": 5},
        {"vocab_size": 12, "pad_vocab_size_multiple": 1, "d_inner": 48},
        {"fast_decay_pct": 0.2, "slow_decay_pct": 2.0},
        {"tie_word_embeddings": False},
    ],
)
def test_settings_are_read_from_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = small(**changes)
    if not model.config.tie_word_embeddings:
        torch.nn.init.normal_(model.lm_head.weight)
    state = {f"model.{k}": v for k, v in to_published(model.state_dict()).items()}
    state["val_torchmetrics.num_tokens.count"] = torch.tensor(3)
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "weights.ckpt")
    made = convert_checkpoint(tmp_path / "weights.ckpt", tmp_path / "out")
    assert made.dropped == ("val_torchmetrics.num_tokens.count",)
    shapes = ("d_model", "n_layer", "d_inner", "hyena_order", "emb_dim", "filter_order",
              "max_seq_len", "num_inner_mlps", "short_filter_order", "tie_word_embeddings",
              "vocab_rows")  # fmt: skip
    for name in shapes:
        assert getattr(made.model.config, name) == getattr(model.config, name), name
    ids = torch.randint(7, 11, (2, 40))
    want = model.state_dict()
    for found in (made.model, load_model(tmp_path / "out")):
        assert all(torch.equal(tensor, want[name]) for name, tensor in found.state_dict().items())
        torch.testing.assert_close(found(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_the_settings_inside_a_lightning_checkpoint_are_used(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    model = small(bidirectional="published")
    settings = OmegaConf.create(
        {"model": {"_name_": "lm", "d_model": 16, "embed_dropout": 0.3, "attn_layer_idx": None,
                   "layer": {"_name_": "hyena", "l_max": 40, "bidirectional": True,
                             "lr": "${optimizer.lr}"}}}
    )  # fmt: skip
    state = {f"model.{k}": v for k, v in to_published(model.state_dict()).items()}
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "weights.ckpt")
    made = _model_from_weights(read_weights(tmp_path / "weights.ckpt"))
    assert made.model.config.bidirectional == "published"
    assert made.model.config.embed_dropout == 0.3


def test_half_precision_and_missing_tables_are_filled(tmp_path: Path) -> None:
    model = small()
    state = {name: tensor.half() for name, tensor in to_published(model.state_dict()).items()
             if not name.endswith((".z", ".t", ".deltas", "3.freq", "5.freq"))}  # fmt: skip
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="l_max under layer"):
        _model_from_weights(read_weights(tmp_path / "a.safetensors"))
    made = _model_from_weights(read_weights(tmp_path / "a.safetensors"), max_seq_len=40)
    assert all(tensor.dtype == torch.float32 for tensor in made.model.state_dict().values())
    ids = torch.randint(7, 11, (2, 40))
    torch.testing.assert_close(made.model(ids).logits, model(ids).logits, atol=2e-2, rtol=0)
    assert any("computed by their formulas" in note for note in made.notes)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_any_copy_of_the_sine_frequency_will_do(tmp_path: Path, number: int) -> None:
    model = small()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = {name: tensor for name, tensor in to_published(model.state_dict()).items()
             if not name.endswith(".freq") or name.endswith(f".{number}.freq")}  # fmt: skip
    state = {name: tensor.clone() for name, tensor in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    made = _model_from_weights(read_weights(tmp_path / "a.safetensors"))
    ids = torch.randint(7, 11, (1, 30))
    torch.testing.assert_close(made.model(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_problems_are_all_named(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in to_published(small().state_dict()).items()}
    del state["backbone.layers.1.mlp.fc2.bias"]
    state["backbone.layers.1.norm1.weight"] = torch.ones(17)
    state["something.else"] = torch.ones(1)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "out")
    text = str(caught.value)
    assert "missing: hyena.backbone.layers.1.mlp.fc2.bias" in text
    assert "unexpected: something.else" in text
    assert "hyena.backbone.layers.1.norm1.weight is (17,), the model has (16,)" in text
    assert not (tmp_path / "out").exists()
    state["backbone.layers.0.mixer.filter_fn.implicit_filter.3.freq"] += 1
    with pytest.raises(CheckpointError, match="their values differ"):
        renamed(state, NAME_RULES)


def test_other_families_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"of no family.*encoder\.weight"):
        convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "out")
    assert not FAMILIES["hyenadna"].recognizes(["encoder.weight"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="bert"):
        _model_from_weights(read_weights(NAMING / "weights.safetensors", tmp_path / "config.json"))


def test_output_folders_are_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = NAMING / "weights.safetensors"
    out = tmp_path / "out"
    convert_checkpoint(source, out)
    with pytest.raises(OutputError, match="overwrite=True"):
        convert_checkpoint(source, out)
    convert_checkpoint(source, out, overwrite=True, window_shift=0.0)
    assert load_model(out).config.window_shift == 0.0
    other = tmp_path / "papers"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(OutputError, match="something else"):
        convert_checkpoint(source, other, overwrite=True)
    with pytest.raises(OutputError, match="no such folder"):
        convert_checkpoint(source, tmp_path / "a" / "b")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DNATokenizer, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        convert_checkpoint(source, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "papers"]
    assert load_model(out).config.window_shift == 0.0


def test_the_tokenizer_beside_the_weights_is_kept(tmp_path: Path) -> None:
    DNATokenizer(special_tokens="standalone", padding_side="left").save_pretrained(tmp_path)
    save_file(to_published(load_file(NAMING / "hf.safetensors")), tmp_path / "a.safetensors")
    convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "out")
    again = DNATokenizer.from_pretrained(tmp_path / "out")
    assert (again.special_tokens, again.padding_side) == ("standalone", "left")


# ------------------------------------------------------ classifiers trained by others, when at hand


def chromosome_20_windows() -> torch.Tensor:
    """Ids of chr20[30,000,000:30,004,096) in 4 windows, as the fixtures were recorded."""
    assert DEV_DATA is not None
    with gzip.open(Path(DEV_DATA) / "genomes" / "human_chr20_GRCh37.fa.gz", "rt") as stream:
        next(stream)
        sequence, start = [], 0
        for line in stream:
            line = line.strip()
            if start + len(line) > 30_000_000:
                sequence.append(line[max(0, 30_000_000 - start) :])
            start += len(line)
            if start >= 30_004_096:
                break
    text = "".join(sequence)[:4096]
    found = DNATokenizer()(text, return_tensors="pt", add_special_tokens=False)
    return found["input_ids"].reshape(4, 1024)


def fixture_of(name: str) -> torch.Tensor:
    assert DEV_DATA is not None
    path = Path(DEV_DATA) / "weights" / f"{name}.fixture.json"
    return torch.tensor(json.loads(path.read_text())["logits"])


@needs_data
@pytest.mark.parametrize("name", REMAG)
def test_remag_classifiers_give_their_logits(tmp_path: Path, name: str) -> None:
    convert_checkpoint(Path(str(DEV_DATA)) / "weights" / f"{name}.safetensors", tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = model(chromosome_20_windows()).logits
    torch.testing.assert_close(logits, fixture_of(name), atol=1e-4, rtol=0)


@needs_data
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", REMAG)
def test_remag_as_lightning_checkpoints(tmp_path: Path, name: str, recomputed: bool) -> None:
    from omegaconf import OmegaConf

    tensors = load_file(Path(str(DEV_DATA)) / "weights" / f"{name}.safetensors")
    state = {}
    for key, tensor in tensors.items():
        key = f"model.{key}" if key.startswith("backbone.") else key.replace("head.", "decoder.0.")
        if recomputed:
            key = key.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.")
        state[key] = tensor
    state["train_torchmetrics.num_tokens.count"] = torch.tensor(5)
    settings = OmegaConf.create({"model": {"d_model": 128, "layer": {"w": 10, "l_max": None}},
                                 "optimizer": {"lr": 6e-4},
                                 "list": [1, "${optimizer.lr}"]})  # fmt: skip
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    torch.save(
        {"epoch": 3, "state_dict": state, "hyper_parameters": settings,
         "callbacks": {"model_checkpoint": {"best": torch.tensor(0.3)}, "config": settings.list},
         "optimizer_states": [optimizer.state_dict()]},
        tmp_path / "weights.ckpt",
    )  # fmt: skip
    made = convert_checkpoint(tmp_path / "weights.ckpt", tmp_path / "model")
    assert made.dropped == ("train_torchmetrics.num_tokens.count",)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = model(chromosome_20_windows()).logits
    torch.testing.assert_close(logits, fixture_of(name), atol=1e-4, rtol=0)

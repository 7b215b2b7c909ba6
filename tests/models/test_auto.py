from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
)

from megabase.errors import CheckpointError, ModelError
from megabase.models import auto
from megabase.models.auto import load_config, load_model, load_tokenizer, resolve_model
from megabase.models.families import FAMILIES, KINDS, family_of
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAModel,
)
from megabase.models.tokenizers.character import DNATokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
PORT = {  # what the published port's config.json says about its code
    "AutoConfig": "configuration_hyena.HyenaConfig",
    "AutoModel": "modeling_hyena.HyenaDNAModel",
    "AutoModelForCausalLM": "modeling_hyena.HyenaDNAForCausalLM",
    "AutoModelForSequenceClassification": "modeling_hyena.HyenaDNAForSequenceClassification",
}


def published_folder(path: Path, case: str, weights: str, **config: Any) -> Path:
    """Make a folder like LongSafari/hyenadna-*-hf, with code that must never run."""
    path.mkdir()
    settings = json.loads((GOLDEN / "hyena_naming" / "hf_config.json").read_text())
    settings.update(config)
    (path / "config.json").write_text(json.dumps({**settings, "auto_map": PORT}))
    shutil.copy(GOLDEN / case / weights, path / "model.safetensors")
    for module in ("configuration_hyena", "modeling_hyena"):
        code = f"from pathlib import Path\nPath({str(path / 'ran')!r}).touch()\n"
        (path / f"{module}.py").write_text(code)
    return path


def model_folder(path: Path, model_class: type = HyenaDNAForCausalLM, **config: Any) -> Path:
    settings = {"d_model": 16, "n_layer": 1, "filter_order": 8, "max_seq_len": 40, **config}
    model_class(HyenaDNAConfig(**settings)).save_pretrained(path)
    return path


def test_every_family_is_registered() -> None:
    assert {"hyenadna", "gpt"} <= set(FAMILIES)
    for family in FAMILIES.values():
        config_class = family.config_class()
        assert family_of(config_class.model_type) is family
        assert type(AutoConfig.for_model(config_class.model_type)) is config_class
        assert set(family.classes()) <= set(KINDS)
        for tokenizer in family.tokenizer_classes():
            assert tokenizer.__module__.startswith("megabase.models.")


@pytest.mark.parametrize("trust", [None, False, True])
def test_a_published_folder_loads_as_ours_and_runs_no_code(
    tmp_path: Path, trust: bool | None
) -> None:
    path = published_folder(tmp_path / "hf", "hyena_naming", "hf.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=trust, output_loading_info=True
    )
    assert type(model) is HyenaDNAForCausalLM
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.from_numpy(np.load(GOLDEN / "hyena_naming" / "input_ids.npy")).long()
    want = load_file(GOLDEN / "hyena_naming" / "output.safetensors")["logits"]
    torch.testing.assert_close(model.eval()(ids).logits, want, atol=1e-4, rtol=1e-4)
    assert type(AutoModel.from_pretrained(path)) is HyenaDNAModel
    assert type(AutoTokenizer.from_pretrained(path)) is DNATokenizer
    model.save_pretrained(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()
    torch.testing.assert_close(load_model(path)(ids).logits, want, atol=1e-4, rtol=1e-4)
    assert not (path / "ran").exists()


def test_a_published_classifier_pools_as_published(tmp_path: Path) -> None:
    case = GOLDEN / "hyena_hf_classifier"
    said = json.loads((case / "config.json").read_text())
    path = published_folder(
        tmp_path / "hf", case.name, "weights.safetensors",
        architectures=["HyenaDNAForSequenceClassification"],
        **{ours: said[theirs] for ours, theirs in {
            "d_model": "d_model", "d_inner": "d_inner", "n_layer": "n_layer",
            "max_seq_len": "l_max", "filter_order": "filter_order", "emb_dim": "emb_dim",
        }.items()},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    assert (model.config.pooling, model.config.head_bias) == ("hf", False)
    ids = torch.from_numpy(np.load(case / "input_ids.npy")).long()
    want = load_file(case / "output.safetensors")["logits"]
    torch.testing.assert_close(model(ids).logits, want, atol=1e-4, rtol=1e-4)
    assert not (path / "ran").exists()


def test_resolving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model")
    assert resolve_model(folder) == folder
    assert resolve_model(str(folder)) == folder
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="without a finished checkpoint"):
        resolve_model(run)
    for number, link in enumerate(("last", "best")):
        step = run / "checkpoints" / f"step-{number:08d}"
        shutil.copytree(folder, step)
        (run / link).symlink_to(step.relative_to(run))
        assert resolve_model(run) == step
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "weights.ckpt").touch()
    with pytest.raises(ModelError, match="megabase convert"):
        resolve_model(tmp_path / "weights.ckpt")
    with pytest.raises(ModelError, match="megabase convert"):
        resolve_model(tmp_path)
    monkeypatch.setattr(auto, "DEFAULT_MODEL", tmp_path / "none")
    with pytest.raises(ModelError, match="no packaged default model"):
        resolve_model(None)
    monkeypatch.setattr(auto, "DEFAULT_MODEL", folder)
    assert resolve_model() == folder


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = model_folder(tmp_path / "model")
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert not any(pattern.endswith((".py", ".bin")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve_model("somebody/something") == folder
    assert resolve_model("hyenadna-tiny-1k-seqlen") == folder
    assert asked == ["somebody/something", "LongSafari/hyenadna-tiny-1k-seqlen-hf"]

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match=r"somebody/something.*no network\)"):
        resolve_model("somebody/something")


def test_loading_by_kind(tmp_path: Path) -> None:
    language = model_folder(tmp_path / "lm")
    assert type(load_model(language)) is HyenaDNAForCausalLM
    assert type(load_model(language, "base")) is HyenaDNAModel
    assert not load_model(language).training
    with pytest.raises(ModelError, match=r"score\.bias, score\.weight.*new_head=True"):
        load_model(language, "sequence-classification")
    fresh = load_model(language, "token-classification", new_head=True, num_labels=5)
    assert type(fresh) is AutoModelForTokenClassification._model_mapping[HyenaDNAConfig]
    assert fresh.score.weight.shape == (5, 16)
    with pytest.raises(ModelError, match="cannot be loaded as masked-lm; it has causal-lm"):
        load_model(language, "masked-lm")
    with pytest.raises(ModelError, match="kind is one of"):
        load_model(language, "language-model")
    classifier = model_folder(tmp_path / "c", HyenaDNAForSequenceClassification, num_labels=3)
    assert type(load_model(classifier)) is HyenaDNAForSequenceClassification
    again = load_model(classifier, "sequence-classification", new_head=True, num_labels=7)
    assert again.score.weight.shape == (7, 16)
    with pytest.raises(CheckpointError, match=r"score\.weight is \(3, 16\), the model has \(7"):
        load_model(classifier, "sequence-classification", num_labels=7)


def test_weights_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "lm")
    state = load_file(path / "model.safetensors")
    short = {name: tensor for name, tensor in state.items() if "norm1.bias" not in name}
    short["hyena.backbone.extra"] = torch.ones(1)
    save_file(short, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: .*norm1\.bias; unexpected: .*extra"):
        load_model(path)
    (path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_model(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected weights"):
        load_model(path)


def test_other_models_are_named(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model_type is 'bert'; expected one of hyenadna"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"d_model": 128}')
    with pytest.raises(ModelError, match="megabase convert"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_model(tmp_path)


def test_the_tokenizer_of_a_folder_or_of_its_family(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "lm")
    tokenizer = load_tokenizer(path)
    assert (type(tokenizer), tokenizer.model_max_length) == (DNATokenizer, 40)
    DNATokenizer(special_tokens="none", model_max_length=7).save_pretrained(path)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.special_tokens, tokenizer.model_max_length) == ("none", 7)


def test_the_packaged_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("default") == resolve_model(None)
    mine = tmp_path / "default"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    assert resolve_model("default").resolve() == mine.resolve()  # a folder of that name comes first


def test_the_masked_packaged_model_says_the_same_of_both_strands() -> None:
    import megabase as mb

    model = mb.load("default-masked")
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("ACGT"), 150)) for _ in range(3)]
    turned = [row[::-1].translate(str.maketrans("ACGT", "TGCA")) for row in rows]
    scores = [model.score(each).table["log_likelihood"].to_numpy() for each in (rows, turned)]
    np.testing.assert_allclose(*scores, rtol=1e-6)
    assert (scores[0] < -150).all()  # worse than 0.37 a base: random sequences hold nothing to know
    assert model.name == "megabase default-masked"

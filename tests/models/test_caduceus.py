"""Caduceus as a transformers model: shapes, ties, losses, conjoining, published folders."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.made_models import needs_name
from torch import Tensor
from torch.nn import functional as F

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.errors import CheckpointError, ConfigError
from megabase.models.auto import load_model
from megabase.models.caduceus import (
    CaduceusConfig,
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
    CaduceusForTokenClassification,
    CaduceusModel,
    convert,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.families import FAMILIES

HEADS = (CaduceusForSequenceClassification, CaduceusForTokenClassification)
KINDS: dict[str, dict[str, Any]] = {
    "ph": {},
    "ps fused": {"rcps": True},
    "ps unfused": {"rcps": True, "fused_add_norm": False},
    "untied product": {"bidirectional_weight_tie": False, "bidirectional_strategy": "ew_multiply"},
    "one direction": {"bidirectional": False},
}


def small(**more: Any) -> CaduceusConfig:
    return CaduceusConfig(**{"d_model": 12, "n_layer": 2, "ssm_cfg": {"d_state": 4}, **more})


def build(kind: Any = CaduceusForMaskedLM, **more: Any) -> Any:
    torch.manual_seed(0)
    model = kind(small(**more)).eval()
    # Larger than the initial values, so that every part matters.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(batch: int = 2, length: int = 23) -> Tensor:
    return torch.randint(7, 12, (batch, length), generator=torch.Generator().manual_seed(3))


def reverse_complement(ids: Tensor) -> Tensor:
    return torch.tensor(COMPLEMENT_TOKEN_IDS)[ids.flip(1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_loads_again(kind: str, tmp_path: Path) -> None:
    model = build(**KINDS[kind])
    model.save_pretrained(tmp_path)
    loaded = CaduceusForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_directions_share_their_projections() -> None:
    mixer = build().caduceus.backbone.layers[1].mixer
    for part in ("in_proj", "out_proj"):
        one, other = (getattr(way, part).weight for way in (mixer.mamba_fwd, mixer.mamba_rev))
        assert one is other
    assert mixer.mamba_fwd.x_proj.weight is not mixer.mamba_rev.x_proj.weight


@pytest.mark.parametrize("strategy", ["add", "ew_multiply"])
@pytest.mark.parametrize("bias", [False, True])
def test_tied_directions_equal_untied_ones_of_the_same_values(strategy: str, bias: bool) -> None:
    more = {"bidirectional_strategy": strategy, "ssm_cfg": {"d_state": 4, "bias": bias}}
    tied = build(**more)
    untied = build(**more, bidirectional_weight_tie=False)
    untied.load_state_dict(tied.state_dict())
    torch.testing.assert_close(tied(tokens()).logits, untied(tokens()).logits)


# What a published folder holds beside its weights (the shape made small).
PUBLISHED_CONFIG: dict[str, Any] = {
    "_name_or_path": "kuleshov-group/caduceus",
    "architectures": ["CaduceusForMaskedLM"],
    "auto_map": {
        "AutoConfig": "configuration_caduceus.CaduceusConfig",
        "AutoModelForMaskedLM": "modeling_caduceus.CaduceusForMaskedLM",
    },
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "d_model": 12,
    "fused_add_norm": True,
    "initializer_cfg": {
        "initializer_range": 0.02,
        "n_residuals_per_layer": 1,
        "rescale_prenorm_residual": True,
    },
    "model_type": "caduceus",
    "n_layer": 2,
    "norm_epsilon": 1e-05,
    "pad_token_id": -100,
    "pad_vocab_size_multiple": 8,
    "rcps": False,
    "residual_in_fp32": False,
    "rms_norm": True,
    "ssm_cfg": {
        "bias": False, "conv_bias": True, "d_conv": 4, "d_state": 4, "dt_init": "random",
        "dt_init_floor": 0.0001, "dt_max": 0.1, "dt_min": 0.001, "dt_rank": "auto",
        "dt_scale": 1.0, "expand": 2, "use_fast_path": True,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
    "vocab_size": 16,
}  # fmt: skip


def scrambled_map() -> dict[str, int]:
    """The complement map after a round of JSON: keys are texts, in the order of texts."""
    return {str(i): COMPLEMENT_TOKEN_IDS[i] for i in sorted(range(16), key=str)}


def published(folder: Path, model: Any, drop: tuple[str, ...] = (), **more: Any) -> Path:
    settings = {**PUBLISHED_CONFIG, "complement_map": scrambled_map(), **more}
    (folder / "config.json").write_text(json.dumps(settings))
    state = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in drop)
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("rcps", [False, True])
@pytest.mark.parametrize(
    "drop",
    [
        (),
        ("mamba_rev.in_proj", "mamba_rev.out_proj"),
        ("mamba_fwd.in_proj", "mamba_fwd.out_proj"),
        ("lm_head.weight", "lm_head.lm_head"),
        ("word_embeddings.weight", "word_embeddings.embedding"),
        ("mamba_rev.in_proj", "mamba_rev.out_proj", "lm_head.weight", "lm_head.lm_head"),
    ],
    ids=lambda drop: "+".join(drop) or "all",
)
def test_a_published_folder_loads_with_either_copy_of_tied_tensors(
    tmp_path: Path, rcps: bool, drop: tuple[str, ...]
) -> None:
    model = build(rcps=rcps)
    folder = published(tmp_path, model, drop, rcps=rcps)
    loaded = CaduceusForMaskedLM.from_pretrained(folder)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    loaded.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "auto_map" not in saved
    assert saved["complement_map"] == list(COMPLEMENT_TOKEN_IDS)


@pytest.mark.parametrize(
    ("drop", "name"),
    [
        (("in_proj",), r"mamba_rev\.in_proj\.weight"),
        (("lm_head", "word_emb"), r"word_embeddings\.weight"),
    ],
)
def test_a_tie_missing_on_both_sides_is_missing(
    tmp_path: Path, drop: tuple[str, ...], name: str
) -> None:
    folder = published(tmp_path, build(), drop)
    _, info = CaduceusForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert any(re.search(name, key) for key in info["missing_keys"])
    with pytest.raises(CheckpointError, match=rf"missing.*{name}"):
        load_model(folder, "masked-lm")


def test_tied_tensors_with_two_values_are_an_error(tmp_path: Path) -> None:
    folder = published(tmp_path, build(bidirectional_weight_tie=False))
    with pytest.raises(CheckpointError, match="bidirectional_weight_tie=False"):
        load_model(folder)
    load_model(folder, bidirectional_weight_tie=False)


def test_a_classifier_starts_from_a_language_model(tmp_path: Path) -> None:
    model = build()
    folder = published(tmp_path, model, ("mamba_rev.in_proj",))
    for kind in HEADS:
        head = kind.from_pretrained(folder, num_labels=3)
        want = model.caduceus(tokens()).last_hidden_state
        assert torch.equal(head.caduceus(tokens()).last_hidden_state, want)
        assert head.score.weight.shape == (3, 12)


def test_complement_map_in_any_form_is_the_same() -> None:
    want = list(COMPLEMENT_TOKEN_IDS)
    shuffled = list(scrambled_map().items())
    random.Random(0).shuffle(shuffled)
    forms = [
        None,
        want,
        want[:12],
        dict(enumerate(want)),
        dict(enumerate(want[:12])),
        scrambled_map(),
        dict(shuffled),
    ]
    for form in forms:
        assert small(complement_map=form).complement_map == want
    with pytest.raises(ConfigError, match="complement_map must give every token id a partner"):
        small(complement_map=[1, 2, 0, *range(3, 16)])
    with pytest.raises(ConfigError, match="complement_map"):
        small(complement_map={0: 0, 2: 2})
    with pytest.raises(ConfigError, match="16 entries"):
        small(complement_map=list(range(20)))


def test_settings_are_checked_together() -> None:
    with pytest.raises(ConfigError) as found:
        small(n_layer=0, bidirectional_strategy="concat", pooling="nowhere")
    for part in ("n_layer", "bidirectional_strategy", "pooling"):
        assert part in str(found.value)


def test_loss_ignores_padding_and_minus_100() -> None:
    model, ids = build(), tokens()
    logits = model(ids).logits
    labels = ids.clone()
    labels[:, :9] = -100
    labels[:, 9:12] = 4
    want = F.cross_entropy(logits[:, 12:].flatten(0, 1), ids[:, 12:].flatten())
    torch.testing.assert_close(model(ids, labels=labels).loss, want)


def test_loss_weights_weigh_and_are_left_alone() -> None:
    model, ids = build(), tokens()
    labels = ids.clone()
    labels[:, ::2] = -100
    weights = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1))
    before = weights.clone()
    loss = model(ids, labels=labels, loss_weights=weights).loss
    each = F.cross_entropy(model(ids).logits.transpose(1, 2), ids, reduction="none")[:, 1::2]
    torch.testing.assert_close(loss, (each * weights[:, 1::2]).sum() / weights[:, 1::2].sum())
    assert torch.equal(weights, before)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_may_be_given_instead_of_ids(kind: str) -> None:
    ids = tokens()
    for head in (CaduceusModel, CaduceusForMaskedLM, *HEADS):
        model = build(head, **KINDS[kind])
        given = model.get_input_embeddings()(ids)
        one, other = model(ids, return_dict=False)[0], model(inputs_embeds=given)[0]
        torch.testing.assert_close(one, other)
    with pytest.raises(ConfigError, match="exactly one"):
        model(ids, inputs_embeds=given)
    with pytest.raises(ConfigError, match="channels"):
        model(inputs_embeds=given[..., :5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_tokens(kind: str, side: str) -> None:
    ids, pad = tokens(), torch.full((2, 6), 4)
    padded = torch.cat([pad, ids] if side == "left" else [ids, pad], dim=1)
    mask = (padded != 4).long()
    real = slice(6, None) if side == "left" else slice(0, -6)
    for head in (CaduceusForMaskedLM, CaduceusForTokenClassification):
        model = build(head, **KINDS[kind]).double()
        got = model(padded, attention_mask=mask).logits[:, real]
        torch.testing.assert_close(got, model(ids).logits, atol=1e-12, rtol=1e-12)
    for pooling in ("mean", "max", "first", "last"):
        model = build(CaduceusForSequenceClassification, pooling=pooling, **KINDS[kind]).double()
        got = model(padded, attention_mask=mask).logits
        torch.testing.assert_close(got, model(ids).logits, atol=1e-12, rtol=1e-12)


def test_pooling_looks_at_real_tokens() -> None:
    ids = torch.cat([torch.full((2, 3), 4), tokens()], dim=1)
    hidden = build(CaduceusModel)(ids).last_hidden_state[:, 3:]
    want = {
        "mean": hidden.mean(1),
        "max": hidden.amax(1),
        "first": hidden[:, 0],
        "last": hidden[:, -1],
    }
    for pooling, pooled in want.items():
        model = build(CaduceusForSequenceClassification, pooling=pooling)
        model.caduceus.load_state_dict(build(CaduceusModel).state_dict())
        torch.testing.assert_close(model(ids).logits, model.score(pooled))


def test_conjoining_averages_the_scores_of_both_strands() -> None:
    ids = tokens()
    both = torch.stack([ids, reverse_complement(ids)], dim=-1)
    plain = build(CaduceusForSequenceClassification)
    model = build(CaduceusForSequenceClassification, conjoin_eval=True)
    want = (plain(ids).logits + plain(reverse_complement(ids)).logits) / 2
    torch.testing.assert_close(model(both).logits, want)
    torch.testing.assert_close(model(ids).logits, want)
    given = torch.stack([model.get_input_embeddings()(x) for x in both.unbind(-1)], dim=-1)
    torch.testing.assert_close(model(inputs_embeds=given).logits, want)
    states = model(both, output_hidden_states=True).hidden_states
    assert {state.shape for state in states} == {(2, 23, 12)}
    one = both[:1]
    assert model(one).logits.shape == (1, 2)


def test_conjoining_in_training_only_where_asked() -> None:
    ids = tokens()
    both = torch.stack([ids, reverse_complement(ids)], dim=-1)
    model = build(CaduceusForSequenceClassification, conjoin_eval=True).train()
    with pytest.raises(ConfigError, match="conjoin_train"):
        model(both)
    assert model(ids).logits.shape == (2, 2)
    assert build(CaduceusForSequenceClassification, conjoin_train=True).train()(both).logits.shape
    with pytest.raises(ConfigError, match=r"\(batch, length, 2\)"):
        model.eval()(both[..., :1])
    with pytest.raises(ConfigError, match="both strands"):
        model(inputs_embeds=torch.zeros(2, 5, 12))


def test_conjoined_strands_may_both_be_padded_on_the_left() -> None:
    ids, pad = tokens().double().long(), torch.full((2, 5), 4)
    model = build(CaduceusForSequenceClassification, conjoin_eval=True).double()
    want = model(torch.stack([ids, reverse_complement(ids)], dim=-1)).logits
    rows = [torch.cat([pad, strand], dim=1) for strand in (ids, reverse_complement(ids))]
    mask = (rows[0] != 4).long()
    both = torch.stack(rows, dim=-1)
    for given in (mask, torch.stack([mask, mask], dim=-1)):
        got = model(both, attention_mask=given).logits
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    got = model(rows[0], attention_mask=mask).logits
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@needs_name
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(kind: str) -> None:
    model = build(**KINDS[kind]).train()
    ids = tokens()
    grads = []
    for again in (False, True):
        if again:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


def test_optimizer_groups_are_the_published_ones() -> None:
    model = build(rcps=True)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {
        g["name"]: {names[id(p)] for p in g["params"]} for g in model.parameter_groups(1, 0.1)
    }
    spared = {name.split("mamba_")[-1] for name in groups["not_decayed"]}
    ends = ("A_log", "D", "conv1d.bias", "dt_proj.bias")
    assert spared == {
        "caduceus.backbone.embeddings.word_embeddings.embedding.weight",
        *(f"{way}.{end}" for way in ("fwd", "rev") for end in ends),
    }
    assert "caduceus.backbone.norm_f.weight" in groups["decayed"]
    assert not groups["decayed"] & groups["not_decayed"]
    layer_norms = build(rms_norm=False).parameter_groups(1, 0.1)[0]["params"]
    assert all(p.dim() > 1 for p in layer_norms)


@pytest.mark.parametrize("kind", KINDS)
def test_lightning_checkpoints_convert(kind: str) -> None:
    model = build(**KINDS[kind])
    state = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
    assert FAMILIES["caduceus"].recognizes(state)
    strategy = KINDS[kind].get("bidirectional_strategy", "add")
    hyper = {"model": {"config": {"bidirectional_strategy": strategy, "norm_epsilon": 1e-5}}}
    made = convert(Weights(Path("x.ckpt"), state, hyper_parameters=hyper))
    assert torch.equal(made.model(tokens()).logits, model(tokens()).logits)
    one = {k: v for k, v in state.items() if "mamba_rev.in_proj" not in k and "lm_head" not in k}
    if "product" not in kind:
        made = convert(Weights(Path("x.ckpt"), one))
        assert torch.equal(made.model(tokens()).logits, model(tokens()).logits)
    broken = {k: v for k, v in state.items() if not k.endswith("norm_f.weight")}
    broken = {k: v for k, v in broken.items() if "norm_f" not in k}
    with pytest.raises(CheckpointError, match=r"missing: caduceus\.backbone\.norm_f"):
        convert(Weights(Path("x.ckpt"), broken))


def test_a_classifier_of_the_training_code_converts() -> None:
    model = build(CaduceusForSequenceClassification, head_bias=True, num_labels=3)
    state = {
        "model." + k if k.startswith("caduceus") else f"decoder.0.output_transform.{k[6:]}": v
        for k, v in model.state_dict().items()
    }
    made = convert(Weights(Path("x.ckpt"), state))
    assert made.model.config.num_labels == 3
    torch.testing.assert_close(made.model(tokens()).logits, model(tokens()).logits)


def test_another_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match="says 'bert'"):
        convert(Weights(Path("x"), dict(build().state_dict()), {"model_type": "bert"}))


def test_saved_file_holds_published_names_only(tmp_path: Path) -> None:
    build(rcps=True).save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert "caduceus.backbone.embeddings.word_embeddings.complement_map" in names
    assert "caduceus.backbone.layers.0.mixer.submodule.mamba_fwd.in_proj.weight" in names

"""What training needs of HyenaDNA: first values, optimizer groups, checkpointing, precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests.made_models import needs_name
from torch import Tensor, nn

from megabase.models.base import checkpoint_activations
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM


def _model(**settings: Any) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    return HyenaDNAForCausalLM(
        HyenaDNAConfig(
            **{
                "d_model": 16,
                "max_seq_len": 66,
                "filter_order": 8,
                "embed_dropout": 0.0,
                **settings,
            }
        )
    )


def _ids(length: int = 50) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(7, 11, (3, length))


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    ids = _ids()
    model(ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [2, 8])
def test_first_values(layers: int) -> None:
    model = _model(d_model=128, filter_order=64, n_layer=layers)
    small = 0.02 / math.sqrt(2 * layers)
    for name, p in model.named_parameters():
        value, count = p.detach(), p.numel()
        std = value.std().item()
        if name.endswith((".freq",)):
            assert bool((value == 10).all())
        elif "norm" in name or "ln_f" in name:
            assert bool((value == (1.0 if name.endswith("weight") else 0.0)).all())
        elif "short_filter" in name:
            assert value.abs().max() <= 1 / math.sqrt(3)
            assert std == pytest.approx(1 / 3, rel=0.2)
        elif name.endswith("filter_fn.bias"):
            assert std == pytest.approx(1.0, rel=0.3)
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            want = small if name.endswith(("out_proj.weight", "fc2.weight")) else 0.02
            assert std == pytest.approx(want, rel=6 / math.sqrt(2 * count)), name


def test_first_loss_is_near_uniform() -> None:
    model = _model(d_model=128, filter_order=64)
    ids = _ids()
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(16), abs=0.35)


def test_every_parameter_learns() -> None:
    model = _model()
    gradients = _gradients(model)
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients.values())


def _count_passes(model: HyenaDNAForCausalLM) -> list[int]:
    """Count forward passes of every mixer, those of the backward pass included."""
    calls = [0] * len(model.hyena.backbone.layers)
    for i, layer in enumerate(model.hyena.backbone.layers):

        def count(*_: Any, i: int = i) -> None:
            calls[i] += 1

        layer.mixer.register_forward_pre_hook(count)
    return calls


def _groups(model: HyenaDNAForCausalLM) -> dict[str, tuple[set[str], Any, Any]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        group["name"]: (
            {names[id(p)] for p in group["params"]},
            group["lr"],
            group["weight_decay"],
        )
        for group in model.parameter_groups(lr=6e-4, weight_decay=0.1)
    }


def test_published_groups_decay_everything_but_the_filter_network() -> None:
    model = _model()
    groups = _groups(model)
    assert set(groups) == {"decayed", "filter"}
    ordinary, filters = groups["decayed"], groups["filter"]
    assert ordinary[1:] == (6e-4, 0.1)
    assert filters[1:] == (6e-4, 0.0)
    assert all(".implicit_filter." in name for name in filters[0])
    assert ordinary[0] | filters[0] == {name for name, _ in model.named_parameters()}
    assert "hyena.backbone.layers.0.mixer.filter_fn.bias" in ordinary[0]
    assert "hyena.backbone.layers.0.norm1.weight" in ordinary[0]
    # Once each: a shared frequency has one slot in the optimizer.
    assert sum(name.endswith("freq") for name in filters[0]) == 2


def test_a_learned_positional_table_has_its_own_rate() -> None:
    model = _model(lr_pos_emb=1e-5)
    groups = _groups(model)
    assert groups["positions"][1:] == (1e-5, 0.0)
    assert len(groups["positions"][0]) == 2
    assert groups["filter"][2] == 0.0
    assert "hyena.backbone.layers.0.mixer.filter_fn.pos_emb.z" in _gradients(model)


def test_frozen_parameters_are_in_no_group() -> None:
    groups = _groups(_model(use_bias=False, train_freq=False))
    names = groups["decayed"][0] | groups["filter"][0]
    assert not any(name.endswith(("filter_fn.bias", "freq")) for name in names)


@needs_name
@pytest.mark.parametrize("through", ["method", "config"])
def test_activation_checkpointing_changes_neither_names_nor_gradients(through: str) -> None:
    plain = _model().train()
    want = _gradients(plain)
    if through == "method":
        model = copy.deepcopy(plain)
        model.activation_checkpointing_enable()
    else:
        model = _model(gradient_checkpointing=True).train()
    assert list(model.state_dict()) == list(plain.state_dict())
    calls = _count_passes(model)
    got = _gradients(model)
    assert calls == [2, 2]
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], atol=1e-7, rtol=1e-5, msg=name)
    model.eval()
    _gradients(model)
    assert calls == [3, 3]
    model.activation_checkpointing_disable()
    _gradients(model.train())
    assert calls == [4, 4]
    model.activation_checkpointing_enable(every_n_layers=2)
    _gradients(model)
    assert calls == [6, 5]


@pytest.mark.parametrize("stretch", [2, 3, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_in_stretches_changes_no_gradients(stretch: int, dropout: float) -> None:
    model = _model(n_layer=5, resid_dropout=dropout, embed_dropout=dropout).train()
    torch.manual_seed(7)
    want = _gradients(model)
    checkpoint_activations(model, stretch)
    calls = _count_passes(model)
    torch.manual_seed(7)
    got = _gradients(model)
    assert max(calls) == 3  # the forward pass, the stretch again, the block again
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], atol=1e-6, rtol=1e-4, msg=name)


def test_dropout_acts_in_training_only_and_survives_checkpointing() -> None:
    model = _model(embed_dropout=0.3, resid_dropout=0.2, hyena_dropout=0.1).train()
    torch.manual_seed(7)
    want = _gradients(model)
    checkpoint_activations(model)
    torch.manual_seed(7)
    got = _gradients(model)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], atol=1e-6, rtol=1e-4, msg=name)
    model.eval()
    assert torch.equal(model(_ids()).logits, model(_ids()).logits)


def test_bf16_autocast_is_close_and_keeps_float32_gradients() -> None:
    model = _model(d_model=64, filter_order=64)
    ids = _ids()
    want = model(ids, labels=ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(ids, labels=ids)
    got.loss.backward()
    assert got.loss.dtype == torch.float32
    assert got.loss.item() == pytest.approx(want.loss.item(), abs=5e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_bf16_weights_keep_the_running_sum_in_float32() -> None:
    for kept, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = _model(residual_in_fp32=kept).bfloat16().eval()
        seen: list[torch.dtype] = []
        for layer in model.hyena.backbone.layers:
            layer.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[1].dtype))
        assert model(_ids()).logits.dtype == torch.bfloat16
        assert seen == [dtype, dtype]


def test_compiled_model_gives_the_same_gradients() -> None:
    model = _model()
    want = _gradients(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = _ids()
    model.zero_grad()
    compiled(ids, labels=ids).loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, want[name], atol=1e-7, rtol=1e-5, msg=name)


def test_a_small_model_learns_a_repeat() -> None:
    model = _model(d_model=32, filter_order=16).train()
    torch.manual_seed(2)
    ids = torch.randint(7, 11, (1, 10)).repeat(4, 6)
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=1e-2, weight_decay=0.1))
    losses = []
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

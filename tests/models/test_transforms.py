"""Models under torch's transforms: functional calls, graphs, tensors without values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from megabase.models.auto import load_model
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM


def _loss(model: Any) -> Any:
    def loss(parameters: dict[str, Tensor], ids_L: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (ids_L[None],)).logits
        return torch.nn.functional.cross_entropy(logits[0, :-1], ids_L[1:])

    return loss


def _detached(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def test_a_functional_call_changes_nothing(model: Any, ids: Tensor) -> None:
    want = model(ids).logits
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    other = {name: 1.5 * weight for name, weight in model.named_parameters()}
    assert not torch.equal(functional_call(model, other, (ids,)).logits, want)
    assert torch.equal(model(ids).logits, want)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = copy.deepcopy(model)
    assert torch.equal(again(ids).logits, want)
    assert len(list(again.parameters())) == len(list(model.parameters()))


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning"
)  # of torch's attention
@pytest.mark.usefixtures("any_backend")
def test_gradients_of_single_sequences(language_model: Any, ids: Tensor) -> None:
    want = language_model(ids).logits
    parameters, loss = _detached(language_model), _loss(language_model)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, ids)
    for i, sequence in enumerate(ids):
        language_model.zero_grad()
        logits = language_model(sequence[None]).logits
        torch.nn.functional.cross_entropy(logits[0, :-1], sequence[1:]).backward()
        for name, weight in language_model.named_parameters():
            assert weight.grad is not None
            assert _relative(each[name][i], weight.grad) < 1e-4, name
    assert torch.equal(language_model(ids).logits, want)
    copy.deepcopy(language_model)


def test_gradients_of_single_sequences_of_the_default_model(ids: Tensor) -> None:
    model: Any = load_model().eval()
    loss, parameters = _loss(model), _detached(model)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, ids)
    for i, sequence in enumerate(ids):
        alone = grad(loss)(parameters, sequence)
        assert all(_relative(each[name][i], alone[name]) < 1e-4 for name in alone)


def test_sines_share_a_parameter_not_a_module() -> None:
    model = HyenaDNAForCausalLM(HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=66))
    for one in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.float64)):
        network = one.hyena.backbone.layers[0].mixer.filter_fn.implicit_filter
        first, *others = [network[i] for i in (1, 3, 5)]
        assert all(sine is not first and sine.freq is first.freq for sine in others)
        assert sum(name.endswith("freq") for name, _ in one.named_parameters()) == 1
    assert sum(name.endswith("freq") for name in model.state_dict()) == 3
    with torch.device("meta"):
        empty = HyenaDNAForCausalLM(model.config)
    assert sum(name.endswith("freq") for name, _ in empty.named_parameters()) == 1
    empty.to_empty(device="cpu")
    assert sum(name.endswith("freq") for name, _ in empty.named_parameters()) == 1


def test_tensors_without_values(model: Any, ids: Tensor) -> None:
    name = type(model).__name__
    if "BigBird" in name:
        pytest.skip("transformers' BigBird reads the values of ids and mask")
    shape = model(ids).logits.shape
    model = model.to("meta")
    masks = [None, torch.ones_like(ids).to("meta")]
    for mask in masks[:1] if "DNABERT" in name else masks:  # transformers' BERT reads a mask
        logits = model(ids.to("meta"), attention_mask=mask).logits
        assert (logits.shape, logits.device.type) == (shape, "meta")


def _masks(ids: Tensor) -> list[Tensor]:
    """Pad on the left, on the right, on both sides, and nowhere."""
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[0, :7] = right[1, 50:] = 0
    return [left, right, left * right, torch.ones_like(ids)]


def _same_at_real_positions(run: Any, model: Any, ids: Tensor) -> None:
    for mask in _masks(ids):
        found, want = (one(ids, attention_mask=mask).logits for one in (run, model))
        kept = mask.bool() if want.dim() == 3 else slice(None)
        torch.testing.assert_close(found[kept], want[kept], atol=1e-5, rtol=1e-5)


def _exported(model: Any, ids: Tensor) -> Any:
    return torch.export.export(model, (ids,), {"attention_mask": _masks(ids)[0]}).module()


def _compiled(model: Any, ids: Tensor) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.parametrize("capture", [_exported, _compiled])
@pytest.mark.parametrize("name", ["hyena", "mamba"])
def test_graphs_with_a_mask(name: str, capture: Any, small: Any, ids: Tensor) -> None:
    model = small(name)
    _same_at_real_positions(capture(model, ids), model, ids)


@pytest.mark.slow
@pytest.mark.parametrize("capture", [_exported, _compiled])
def test_graphs_of_every_family(model: Any, capture: Any, ids: Tensor) -> None:
    model(ids)  # BigBird chooses its kind of attention at the first call
    _same_at_real_positions(capture(model, ids), model, ids)

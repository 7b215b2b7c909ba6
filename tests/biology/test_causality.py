"""A causal model knows nothing of later bases; a two-sided one sees both ways."""

from __future__ import annotations

import pytest
import torch

from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM, HyenaDNAModel

LENGTH, CHANGED = 97, 40

CAUSAL = {
    "hyena": lambda: HyenaDNAForCausalLM(HyenaDNAConfig(d_model=16, max_seq_len=130)),
    "hyena-order-3": lambda: HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, max_seq_len=130, hyena_order=3)
    ),
    "hyena-five-taps": lambda: HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, max_seq_len=130, short_filter_order=5)
    ),
    "hyena-and-attention": lambda: HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, max_seq_len=130, attention_layers=[1], attention_heads=2)
    ),
    "gpt": lambda: GPTForCausalLM(GPTConfig(d_model=16, num_heads=2, max_position_embeddings=130)),
}


def _bases(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randint(7, 11, (batch, length))


@pytest.mark.parametrize("name", CAUSAL)
def test_earlier_logits_do_not_depend_on_later_bases(name: str) -> None:
    torch.manual_seed(0)
    model = CAUSAL[name]().double().eval()
    ids = _bases()
    other = ids.clone()
    other[:, CHANGED] = 7 + (ids[:, CHANGED] - 7 + 1) % 4
    with torch.no_grad():
        difference = (model(other).logits - model(ids).logits).abs().amax(dim=(0, 2))
    # Exactly zero but for the rounding of the transform.
    assert difference[:CHANGED].max() < 1e-12
    assert difference[CHANGED] > 1e-9
    assert difference[CHANGED + 1 :].max() > 1e-9


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prefix_gives_the_same_logits_alone(name: str) -> None:
    torch.manual_seed(0)
    model = CAUSAL[name]().double().eval()
    ids = _bases()
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids[:, :CHANGED]).logits, model(ids).logits[:, :CHANGED], atol=1e-12, rtol=1e-9
        )


def test_a_two_sided_model_sees_later_and_earlier_bases() -> None:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=130, bidirectional="two_sided")
    model = HyenaDNAModel(config).double().eval()
    ids = _bases(1)
    hidden = model(ids).last_hidden_state
    for place in (0, CHANGED, LENGTH - 1):
        other = ids.clone()
        other[:, place] = 7 + (ids[:, place] - 7 + 1) % 4
        difference = (model(other).last_hidden_state - hidden).abs().amax(dim=(0, 2))
        assert bool((difference > 1e-12).all())


@pytest.mark.parametrize("name", ["hyena", "gpt"])
def test_rows_of_a_batch_do_not_meet(name: str) -> None:
    torch.manual_seed(0)
    model = CAUSAL[name]().double().eval()
    ids = _bases(4)
    with torch.no_grad():
        together = model(ids).logits
        for i in range(4):
            torch.testing.assert_close(
                model(ids[i : i + 1]).logits[0], together[i], atol=1e-12, rtol=1e-9
            )

"""Log-probabilities of bases equal those worked out one base at a time."""

import pytest
import torch
from torch import Tensor

from megabase.errors import InputError
from megabase.evaluate.log_probs import Masking, token_log_probs
from megabase.layers.incremental import stream_backbone
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAModel,
)
from megabase.models.loading import language_model_kind
from megabase.models.mamba import MambaConfig, MambaForCausalLM

PAD, N_TOKEN = 4, 11


def hyena(**settings: object) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=64, filter_order=16, **settings)
    return HyenaDNAForCausalLM(config).double()


def causal_models() -> list[torch.nn.Module]:
    gpt = GPTForCausalLM(GPTConfig(d_model=16, n_layer=2, num_heads=2, max_position_embeddings=64))
    mamba = MambaForCausalLM(MambaConfig(d_model=16, n_layer=2))
    return [hyena(), gpt.double(), mamba.double()]


def one_by_one(model: torch.nn.Module, ids: Tensor, columns: slice) -> list[float]:
    """Log-probability of each token but the first, from a reading of what is before it."""
    found = []
    model.eval()
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=ids[None, :t]).logits[0, -1]
        scores = logits[columns].log_softmax(-1)
        found.append(float(scores[int(ids[t]) - (columns.start or 0)]))
    return found


@pytest.mark.parametrize("model", causal_models(), ids=lambda m: type(m).__name__)
def test_a_causal_model_gives_each_base_from_the_bases_before_it(model: torch.nn.Module) -> None:
    ids = torch.randint(7, 11, (2, 19), generator=torch.Generator().manual_seed(1))
    found = token_log_probs(model, ids)
    assert found.dtype == torch.float64
    assert found[:, 0].isnan().all()
    for row in range(2):
        wanted = one_by_one(model, ids[row], slice(7, 11))
        assert found[row, 1:].tolist() == pytest.approx(wanted, abs=1e-12)


def test_the_blocks_of_the_head_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = hyena(), torch.randint(7, 11, (3, 40))
    whole = token_log_probs(model, ids)
    for positions in (7, 90):
        monkeypatch.setattr("megabase.evaluate.log_probs._HEAD_POSITIONS", positions)
        found = token_log_probs(model, ids)
        assert torch.allclose(found, whole, atol=1e-13, equal_nan=True)


def test_long_sequences_are_streamed_with_the_same_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = hyena(), torch.randint(7, 11, (2, 40))
    whole = token_log_probs(model, ids)
    streamed = []
    stream = stream_backbone
    monkeypatch.setattr("megabase.evaluate.log_probs._STREAMED", 20)
    monkeypatch.setattr(
        "megabase.evaluate.log_probs.stream_backbone",
        lambda *given: (streamed.append(1), stream(*given))[1],
    )
    found = token_log_probs(model, ids)
    assert torch.allclose(found, whole, atol=1e-12, equal_nan=True)
    assert len(streamed) == 2


def test_padding_n_and_the_first_base_have_no_value() -> None:
    model = hyena()
    ids = torch.tensor([[7, N_TOKEN, 9, 10, PAD, PAD]])
    found = token_log_probs(model, ids)[0]
    assert found.isnan().tolist() == [True, True, False, False, True, True]
    alone = token_log_probs(model, ids[:, :4])[0]
    assert torch.allclose(found[2:4], alone[2:])


def test_a_masked_model_hides_one_base_at_a_time() -> None:
    torch.manual_seed(2)
    config = CaduceusConfig(d_model=16, n_layer=1, rcps=False)
    model = CaduceusForMaskedLM(config).double().eval()
    ids = torch.tensor([[7, 8, N_TOKEN, 10, 9], [9, 9, 7, 8, PAD]])
    found = token_log_probs(model, ids, batch_tokens=10)
    for row, column in (ids < N_TOKEN).nonzero().tolist():
        if int(ids[row, column]) == PAD:
            assert found[row, column].isnan()
            continue
        hidden = ids[row : row + 1].clone()
        hidden[0, column] = 3
        with torch.no_grad():
            logits = model(input_ids=hidden).logits[0, column]
        wanted = logits[7:11].log_softmax(-1)[ids[row, column] - 7]
        assert float(found[row, column]) == pytest.approx(float(wanted), abs=1e-12)
    assert found[0, 2].isnan()


@pytest.mark.parametrize("masking", ["single", "seventh", "together"])
def test_a_masking_rule_says_which_positions_are_hidden(masking: Masking) -> None:
    torch.manual_seed(3)
    model = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1, rcps=False)).double().eval()
    ids = torch.randint(7, 11, (2, 17))
    ids[0, 4] = N_TOKEN
    found = token_log_probs(model, ids, masking=masking)
    column = torch.arange(17)
    for row, at in (ids < N_TOKEN).nonzero().tolist():
        hidden = {
            "single": column == at,
            "seventh": column % 7 == at % 7,
            "together": ids[row] < N_TOKEN,
        }[masking]
        with torch.no_grad():
            logits = model(input_ids=torch.where(hidden, 3, ids[row])[None]).logits[0, at, 7:11]
        wanted = float(logits.log_softmax(-1)[ids[row, at] - 7])
        assert float(found[row, at]) == pytest.approx(wanted, abs=1e-12)
    assert found[0, 4].isnan()


def test_a_rule_that_the_model_cannot_follow_is_refused() -> None:
    with pytest.raises(InputError, match="HyenaDNAForCausalLM is causal"):
        token_log_probs(hyena(), torch.tensor([[7, 8]]), masking="single")


def test_one_base_and_restored_mode() -> None:
    model = hyena().train()
    found = token_log_probs(model, torch.tensor([[8]]))
    assert found.isnan().all()
    assert model.training
    assert not found.is_inference()


def test_models_that_cannot_score_bases_are_refused() -> None:
    config = HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=64, num_labels=2)
    with pytest.raises(InputError, match="no language-model head"):
        language_model_kind(HyenaDNAForSequenceClassification(config))
    with pytest.raises(InputError, match="no language-model head"):
        language_model_kind(HyenaDNAModel(config))
    with pytest.raises(InputError, match="bidirectional"):
        language_model_kind(hyena(bidirectional="two_sided"))
    with pytest.raises(InputError, match="longer than a base"):
        language_model_kind(HyenaDNAForCausalLM(HyenaDNAConfig(vocab_size=100, d_model=16)))
    with pytest.raises(InputError, match="expected ids"):
        token_log_probs(hyena(), torch.tensor([7, 8]))

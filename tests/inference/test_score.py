"""Scores against one sequence at a time, in strings; independence of batches and context."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megabase.data.sources import Sequence
from megabase.errors import InputError
from megabase.genome.alphabet import encode
from megabase.inference.scoring import score
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

IDS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


@pytest.fixture(scope="module")
def model() -> HyenaDNAForCausalLM:
    torch.manual_seed(3)
    config = HyenaDNAConfig(d_model=16, n_layer=2, filter_order=8, max_seq_len=66)
    return HyenaDNAForCausalLM(config).eval()


def slow(model: torch.nn.Module, text: str) -> list[float]:
    """Log-probability over A, C, G, T of every base but the first, from those before it."""
    text = text.upper()
    values = [math.nan]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[IDS[b] for b in text]])).logits[0].double()
    for i in range(1, len(text)):
        row = logits[i - 1, 7:11].log_softmax(-1)
        values.append(float(row["ACGT".index(text[i])]) if text[i] in "ACGT" else math.nan)
    return values


def texts() -> list[str]:
    rng = np.random.default_rng(5)
    return ["".join(rng.choice(list("ACGTacgtN"), n)) for n in (2, 40, 64, 40, 7, 33, 1, 64)]


def test_each_sequence_scores_as_it_does_alone(model: HyenaDNAForCausalLM) -> None:
    model.train()
    for size in (64, 1 << 16):
        table = score(model, texts(), per_base=True, batch_tokens=size).table
        assert model.training
        for row, text in zip(table.iter_rows(named=True), texts(), strict=True):
            expected = slow(model.eval(), text)
            np.testing.assert_allclose(row["log_probs"], expected, atol=1e-5)
            known = [value for value in expected if not math.isnan(value)]
            assert row["scored"] == len(known)
            if known:
                assert row["log_likelihood"] == pytest.approx(sum(known), abs=1e-4)
                assert row["perplexity"] == pytest.approx(math.exp(-np.mean(known)), rel=1e-5)
            else:
                assert row["log_likelihood"] is None
        model.train()
    model.eval()


def test_both_strands_are_the_mean_of_the_two(model: HyenaDNAForCausalLM) -> None:
    text = texts()[1]
    there = slow(model, text)
    back = slow(model, text.upper().translate(COMPLEMENT)[::-1])[::-1]
    row = score(model, [text], strands="both", per_base=True).table.row(0, named=True)
    assert row["log_likelihood"] == pytest.approx(
        (np.nansum(there) + np.nansum(back)) / 2, abs=1e-4
    )
    middle = [(a + b) / 2 for a, b in zip(there[1:-1], back[1:-1], strict=True)]
    np.testing.assert_allclose(row["log_probs"][1:-1], middle, atol=1e-5)
    assert row["log_probs"][0] == pytest.approx(back[0], abs=1e-5, nan_ok=True)


def test_long_sequences_are_read_in_windows_with_context(model: HyenaDNAForCausalLM) -> None:
    rng = np.random.default_rng(6)
    text = "".join(rng.choice(list("ACGT"), 150))
    row = score(model, [text], window=60, stride=20, per_base=True).table.row(0, named=True)
    expected = slow(model, text[:60])
    for end in (80, 100, 120, 140, 150):
        last = end - len(expected)
        expected += slow(model, text[end - 60 : end])[-last:]
    np.testing.assert_allclose(row["log_probs"], expected, atol=1e-5)


def test_context_is_read_and_not_scored(model: HyenaDNAForCausalLM) -> None:
    text = "ACGTTGCAACCTTGGA"
    one = Sequence("x", encode(text), context=5, after=3)
    for strands, read in (
        ("forward", text[:13]),
        ("reverse", text[5:].translate(COMPLEMENT)[::-1]),
    ):
        table = score(model, [one], strands=strands, per_base=True).table
        values = slow(model, read)
        expected = values[5:] if strands == "forward" else values[3:][::-1]
        np.testing.assert_allclose(table["log_probs"][0].to_list(), expected, atol=1e-5)
        assert table["scored"][0] == 8


def test_masked_model_hides_one_base_at_a_time() -> None:
    torch.manual_seed(0)
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=8, n_layer=1)).eval()
    text = "ACGTNACGGT"
    row = score(masked, [text], per_base=True).table.row(0, named=True)
    expected = []
    for i, base in enumerate(text):
        ids = torch.tensor([[IDS[b] for b in text]])
        ids[0, i] = 3
        with torch.no_grad():
            logits = masked(input_ids=ids).logits[0, i, 7:11].double().log_softmax(-1)
        expected.append(float(logits["ACGT".index(base)]) if base != "N" else math.nan)
    np.testing.assert_allclose(row["log_probs"], expected, atol=1e-5)


def test_windows_must_fit(model: HyenaDNAForCausalLM) -> None:
    with pytest.raises(InputError, match="longest input is 6"):
        score(model, ["ACGT"], window=100)
    with pytest.raises(InputError, match="stride"):
        score(model, ["ACGT"], window=10, stride=11)
    with pytest.raises(InputError, match="strands is one of"):
        score(model, ["ACGT"], strands="up")  # pyright: ignore[reportArgumentType]

"""Reverse complement turns an equivariant model's outputs around, and nothing else.

Checked for hidden vectors, language-model logits and classifiers; at even and odd lengths; with the
halves exchanged in every block (as published) or not; before and after training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.models.caduceus import (
    CaduceusConfig,
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
    CaduceusForTokenClassification,
    _Block,
    _RCPSEmbedding,
    _RCPSHead,
    _split_strands,
)

COMPLEMENT = torch.tensor(COMPLEMENT_TOKEN_IDS)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Step = Callable[[Any, Tensor], Tensor]


def reverse_complement(ids: Tensor) -> Tensor:
    return COMPLEMENT[ids.flip(1)]


def ids_of(length: int, batch: int = 3) -> Tensor:
    return torch.randint(0, 12, (batch, length), generator=torch.Generator().manual_seed(length))


def turned(hidden: Tensor) -> Tensor:
    return hidden.flip((1, 2))


def masked_loss(model: Any, ids: Tensor) -> Tensor:
    hidden = ids.clone()
    hidden[:, ::5] = 3
    return model(hidden, labels=ids).loss


def sequence_loss(model: Any, ids: Tensor) -> Tensor:
    return model(ids, labels=torch.arange(len(ids)) % 2).loss


def token_loss(model: Any, ids: Tensor) -> Tensor:
    return model(ids, labels=ids % 2).loss


def build(kind: Any, loss: Step, dtype: torch.dtype, steps: int, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = CaduceusConfig(
        **{"d_model": 16, "n_layer": 3, "ssm_cfg": {"d_state": 8}, "rcps": True, **settings}
    )
    model = kind(config).to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(8e-3, 0.1))
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, ids_of(40 + step, batch=4)).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def fused(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=[0, 5], ids=["fresh", "trained"])
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


def check(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert float((got - want).abs().max()) <= TOLERANCE[got.dtype]


@torch.no_grad()
def test_hidden_vectors_and_logits_turn_around(dtype: torch.dtype, fused: bool, steps: int) -> None:
    with torch.enable_grad():
        model = build(CaduceusForMaskedLM, masked_loss, dtype, steps, fused_add_norm=fused)
    for length in (1, 2, 63, 64, 127):
        ids = ids_of(length)
        one = model(ids, output_hidden_states=True)
        other = model(reverse_complement(ids), output_hidden_states=True)
        for state, mirrored in zip(one.hidden_states, other.hidden_states, strict=True):
            check(turned(mirrored), state)
        check(other.logits.flip(1)[..., COMPLEMENT], one.logits)


@torch.no_grad()
def test_classifiers_do_not_see_the_strand(dtype: torch.dtype, fused: bool, steps: int) -> None:
    with torch.enable_grad():
        kind = CaduceusForSequenceClassification
        model = build(kind, sequence_loss, dtype, steps, fused_add_norm=fused)
    for pooling in ("mean", "max", "first", "last", "sum"):
        model.config.pooling = pooling
        for length in (1, 30, 31):
            ids = ids_of(length).clamp(min=7)
            check(model(reverse_complement(ids)).logits, model(ids).logits)


@torch.no_grad()
def test_labels_of_nucleotides_turn_around(dtype: torch.dtype, fused: bool, steps: int) -> None:
    with torch.enable_grad():
        model = build(
            CaduceusForTokenClassification, token_loss, dtype, steps, fused_add_norm=fused
        )
    for length in (1, 30, 31):
        ids = ids_of(length)
        check(model(reverse_complement(ids)).logits.flip(1), model(ids).logits)


@torch.no_grad()
def test_symmetry_holds_around_padding(dtype: torch.dtype, fused: bool) -> None:
    ids = ids_of(20).clamp(min=7)
    padded = torch.cat([ids, torch.full((3, 7), 4)], dim=1)
    mask = (padded != 4).long()
    with torch.enable_grad():
        model = build(CaduceusForMaskedLM, masked_loss, dtype, 4, fused_add_norm=fused)
    one = model(padded, attention_mask=mask).logits[:, :20]
    other = model(reverse_complement(padded), attention_mask=mask.flip(1)).logits
    check(other.flip(1)[:, :20, COMPLEMENT], one)


@torch.no_grad()
@pytest.mark.parametrize("settings", [
    {"rms_norm": False},
    {"bidirectional": False},
    {"bidirectional_strategy": "ew_multiply"},
    {"bidirectional_weight_tie": False, "ssm_cfg": {"d_state": 4, "bias": True}},
    {"residual_in_fp32": True},
    {"tie_word_embeddings": False},
], ids=str)  # fmt: skip
def test_symmetry_holds_for_every_variant(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    for fused in (True, False):
        with torch.enable_grad():
            model = build(
                CaduceusForMaskedLM, masked_loss, dtype, 3, fused_add_norm=fused, **settings
            )
        ids = ids_of(33)
        one, other = model(ids).logits, model(reverse_complement(ids)).logits
        check(other.flip(1)[..., COMPLEMENT], one)


@torch.no_grad()
def test_conjoined_predictions_do_not_see_the_strand(dtype: torch.dtype, steps: int) -> None:
    """A model that is not equivariant, asked for both strands (Caduceus-Ph)."""
    with torch.enable_grad():
        model = build(
            CaduceusForSequenceClassification,
            sequence_loss,
            dtype,
            steps,
            rcps=False,
            conjoin_eval=True,
        )
    for length in (30, 31):
        ids = ids_of(length).clamp(min=7)
        other = reverse_complement(ids)
        both = torch.stack([ids, other], dim=-1)
        check(model(both.flip(-1)).logits, model(both).logits)
        check(model(other).logits, model(ids).logits)
    tokens = build(
        CaduceusForTokenClassification, token_loss, dtype, 0, rcps=False, conjoin_eval=True
    )
    check(tokens(other).logits.flip(1), tokens(ids).logits)


@torch.no_grad()
def test_without_equivariance_the_strand_matters() -> None:
    """The checks above can fail."""
    with torch.enable_grad():
        model = build(CaduceusForMaskedLM, masked_loss, torch.float64, 2, rcps=False)
    ids = ids_of(30)
    one, other = model(ids).logits, model(reverse_complement(ids)).logits
    assert float((other.flip(1)[..., COMPLEMENT] - one).abs().max()) > 1e-3


@torch.no_grad()
def test_each_layer_is_equivariant() -> None:
    torch.manual_seed(4)
    width, ids = 6, ids_of(15)
    embedding = _RCPSEmbedding(16, width, COMPLEMENT_TOKEN_IDS)
    hidden = embedding(ids)
    check(turned(embedding(reverse_complement(ids))), hidden)
    given, other = _split_strands(hidden)
    assert torch.equal(given, embedding.embedding(ids))
    assert torch.equal(other, embedding.embedding(reverse_complement(ids)))
    hidden, residual = torch.randn(2, 3, 15, 2 * width)
    for rms, fused in ((True, True), (True, False), (False, True), (False, False)):
        layer = _Block(CaduceusConfig(d_model=width, rcps=True, rms_norm=rms, fused_add_norm=fused))
        for name, parameter in layer.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3) if "A_log" not in name else parameter.zero_()
        check(turned(layer.mixer(turned(hidden))), layer.mixer(hidden))
        want = layer(hidden, residual)
        got = layer(turned(hidden), turned(residual))
        for one, two in zip(got, want, strict=True):
            check(turned(one), two)
    head = _RCPSHead(width, 16, COMPLEMENT_TOKEN_IDS)
    check(head(turned(hidden)).flip(1)[..., COMPLEMENT], head(hidden))

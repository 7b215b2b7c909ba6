"""A small model of every family, for what has to hold in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megabase.models.bigbird import GenomicBigBirdConfig, GenomicBigBirdForSequenceClassification
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.cnn import GenomicCNNConfig, GenomicCNNForSequenceClassification
from megabase.models.deepsea import DeepSEAConfig, DeepSEAForSequenceClassification
from megabase.models.dnabert import DNABERTConfig, DNABERTForSequenceClassification
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM
from megabase.ops import backend

LENGTH = 64


def _hyena(**settings: Any) -> nn.Module:
    shape = {"d_model": 16, "n_layer": 2, "max_seq_len": 66, "filter_order": 8}
    return HyenaDNAForCausalLM(HyenaDNAConfig(**{**shape, **settings}))


def _caduceus(**settings: Any) -> nn.Module:
    return CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=2, **settings))


def _bert(config: type, model: type, **settings: Any) -> nn.Module:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return model(config(**shape, intermediate_size=48, max_position_embeddings=64, **settings))


SHELLS: dict[str, Callable[[], nn.Module]] = {
    "hyena": _hyena,
    "hyena-order-3": lambda: _hyena(hyena_order=3),
    "hyena-two-sided": lambda: _hyena(bidirectional="two_sided"),
    "hyena-attention": lambda: _hyena(attention_layers=[1], attention_heads=2),
    "gpt": lambda: GPTForCausalLM(
        GPTConfig(d_model=16, n_layer=2, num_heads=2, max_position_embeddings=66)
    ),
}
STATE_SPACES: dict[str, Callable[[], nn.Module]] = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(d_model=16, n_layer=2)),
    "caduceus-ph": lambda: _caduceus(rcps=False),
    "caduceus-ph-untied": lambda: _caduceus(rcps=False, bidirectional_weight_tie=False),
    "caduceus-ps": lambda: _caduceus(rcps=True),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "dnabert": lambda: _bert(DNABERTConfig, DNABERTForSequenceClassification, k=3),
    "bigbird": lambda: _bert(GenomicBigBirdConfig, GenomicBigBirdForSequenceClassification),
    "cnn": lambda: GenomicCNNForSequenceClassification(
        GenomicCNNConfig(max_length=LENGTH, embedding_dim=6)
    ),
    "deepsea": lambda: DeepSEAForSequenceClassification(
        DeepSEAConfig(channels=(6, 8, 10), hidden=12, max_length=200, num_labels=5)
    ),
}


def _make(name: str) -> Any:
    torch.manual_seed(0)
    return {**SHELLS, **STATE_SPACES, **OTHERS}[name]().eval()


@pytest.fixture
def small() -> Callable[[str], Any]:
    """Give a small model by name, in evaluation mode."""
    return _make


@pytest.fixture(params=[*SHELLS, *STATE_SPACES, *OTHERS])
def model(request: pytest.FixtureRequest) -> Any:
    """A small model of every family, in evaluation mode."""
    return _make(request.param)


@pytest.fixture(params=[*SHELLS, *STATE_SPACES])
def language_model(request: pytest.FixtureRequest) -> Any:
    """A small language model of every family that has one, in evaluation mode."""
    return _make(request.param)


@pytest.fixture
def ids() -> Tensor:
    """Two sequences of bases."""
    return torch.randint(7, 11, (2, LENGTH), generator=torch.Generator().manual_seed(3))


# Triton's kernels take no tensors of a CPU.
@pytest.fixture(params=[name for name in backend.BACKENDS if name != "triton"])
def any_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each implementation of the operators in turn."""
    if request.param == "kernels":
        pytest.importorskip("megabase_kernels", reason="megabase-kernels is not installed")
    with backend.override(request.param):
        yield

"""A small model of every family, for what has to hold in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.made_models import make
from torch import Tensor

from megabase.ops import backend

LENGTH = 64

_Made = tuple[str, str, dict[str, Any]]
SHELLS: dict[str, _Made] = {
    "hyena": ("hyenadna", "causal-lm", {}),
    "hyena-order-3": ("hyenadna", "causal-lm", {"hyena_order": 3}),
    "hyena-two-sided": ("hyenadna", "causal-lm", {"bidirectional": "two_sided"}),
    "hyena-attention": ("hyenadna", "causal-lm", {"attention_layers": [1]}),
    "gpt": ("gpt", "causal-lm", {}),
}
STATE_SPACES: dict[str, _Made] = {
    "mamba": ("mamba", "causal-lm", {}),
    "caduceus-ph": ("caduceus", "masked-lm", {"rcps": False}),
    "caduceus-ph-untied": (
        "caduceus", "masked-lm", {"rcps": False, "bidirectional_weight_tie": False},
    ),
    "caduceus-ps": ("caduceus", "masked-lm", {"rcps": True}),
}  # fmt: skip
OTHERS: dict[str, _Made] = {
    **{name: (name, "sequence-classification", {}) for name in ("dnabert", "bigbird", "cnn")},
    "deepsea": ("deepsea", "sequence-classification", {"num_labels": 5}),
}


def _make(name: str) -> Any:
    torch.manual_seed(0)
    family, kind, settings = {**SHELLS, **STATE_SPACES, **OTHERS}[name]
    return make(family, kind, **settings).eval()


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

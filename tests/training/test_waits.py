"""A training step waits for its device once, to read its sums, whatever the model and the padding.

On a CPU nothing is waited for; what would be is what brings values of tensors to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from megabase.models import decoder, state_space
from megabase.models.bigbird import (
    GenomicBigBirdConfig,
    GenomicBigBirdForSequenceClassification,
)
from megabase.models.caduceus import (
    CaduceusConfig,
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
    CaduceusForTokenClassification,
)
from megabase.models.cnn import GenomicCNNConfig, GenomicCNNForSequenceClassification
from megabase.models.deepsea import DeepSEAConfig, DeepSEAForSequenceClassification
from megabase.models.dnabert import DNABERTConfig, DNABERTForSequenceClassification
from megabase.models.gpt import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
)
from megabase.models.loading import inference_mode
from megabase.models.mamba import (
    MambaConfig,
    MambaForCausalLM,
    MambaForSequenceClassification,
    MambaForTokenClassification,
)
from megabase.objectives.labels import NucleotideLabels, SequenceLabels
from megabase.objectives.language import CausalLM, MaskedLM
from megabase.training.logging import RunLog

LENGTH = 24

HYENA: dict[str, Any] = {"d_model": 16, "n_layer": 2, "max_seq_len": 32, "filter_order": 8}
GPT: dict[str, Any] = {"d_model": 16, "n_layer": 1, "num_attention_heads": 2}
MAMBA: dict[str, Any] = {"d_model": 8, "n_layer": 2, "ssm_cfg": {"d_state": 4}}
BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip

LANGUAGE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "hyena": (lambda: HyenaDNAForCausalLM(HyenaDNAConfig(**HYENA)), CausalLM()),
    "gpt": (lambda: GPTForCausalLM(GPTConfig(**GPT, max_position_embeddings=32)), CausalLM()),
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**MAMBA)), CausalLM()),
    "caduceus-ph": (lambda: CaduceusForMaskedLM(CaduceusConfig(**MAMBA)), MaskedLM()),
    "caduceus-ps": (lambda: CaduceusForMaskedLM(CaduceusConfig(**MAMBA, rcps=True)), MaskedLM()),
}

LABELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "hyena": (
        lambda: HyenaDNAForSequenceClassification(HyenaDNAConfig(**HYENA)),
        SequenceLabels("classes"),
    ),
    "hyena two-sided": (
        lambda: HyenaDNAForSequenceClassification(
            HyenaDNAConfig(**HYENA, bidirectional="two_sided", pooling="max")
        ),
        SequenceLabels("classes", class_weights=[1.0, 2.0]),
    ),
    "hyena, bases": (
        lambda: HyenaDNAForTokenClassification(HyenaDNAConfig(**HYENA)),
        NucleotideLabels(label_smoothing=0.1),
    ),
    "gpt": (
        lambda: GPTForSequenceClassification(GPTConfig(**GPT, max_position_embeddings=32)),
        SequenceLabels("classes"),
    ),
    "mamba": (
        lambda: MambaForSequenceClassification(MambaConfig(**MAMBA)),
        SequenceLabels("classes"),
    ),
    "mamba, bases": (
        lambda: MambaForTokenClassification(MambaConfig(**MAMBA)),
        NucleotideLabels(class_weights=[1.0, 2.0]),
    ),
    "caduceus-ph": (
        lambda: CaduceusForSequenceClassification(CaduceusConfig(**MAMBA, conjoin_train=True)),
        SequenceLabels("classes"),
    ),
    "caduceus-ps": (
        lambda: CaduceusForTokenClassification(CaduceusConfig(**MAMBA, rcps=True)),
        NucleotideLabels(),
    ),
    "dnabert": (
        lambda: DNABERTForSequenceClassification(DNABERTConfig(k=3, **BERT)),
        SequenceLabels("classes"),
    ),
    "bigbird": (
        lambda: GenomicBigBirdForSequenceClassification(GenomicBigBirdConfig(**BERT)),
        SequenceLabels("classes"),
    ),
    "cnn": (
        lambda: GenomicCNNForSequenceClassification(GenomicCNNConfig(max_length=200)),
        SequenceLabels("classes"),
    ),
    "deepsea": (
        lambda: DeepSEAForSequenceClassification(
            DeepSEAConfig(num_labels=2, channels=(4, 4, 4), hidden=8)
        ),
        SequenceLabels("classes"),
    ),
}


class Waits(TorchDispatchMode):
    """Lists what would wait: operators whose results have shapes or values that Python needs."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        picks = name in ("index", "index_put", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if picks or name in ("nonzero", "masked_select", "_unique2", "bincount", "equal"):
            self.found.append(name)
        if name == "_local_scalar_dense":
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Lists what a dispatcher does not see: tensors turned into lists and arrays."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "cpu", "numpy"):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Windows:
    """Batches for language models and for labels, padded on a side or not."""

    def __init__(self, by_base: bool, side: str | None) -> None:
        self.by_base, self.side = by_base, side

    def epoch_size(self, length: int) -> int | None:
        return 40

    def batch(self, stream: int, indices: np.ndarray, length: int) -> dict[str, Tensor]:
        count = len(indices)
        draw = torch.Generator().manual_seed(int(indices[0]))
        codes = torch.randint(4, (count, length + 1), generator=draw).to(torch.uint8)
        ids, mask = codes[:, 1:].long() + 7, torch.ones(count, length, dtype=torch.long)
        shape = (count, length) if self.by_base else (count,)
        labels = torch.randint(2, shape, generator=draw)
        if self.side is not None:
            hidden = slice(length - 5, None) if self.side == "right" else slice(5)
            mask[1:, hidden] = 0
            ids[1:, hidden] = 4
            if self.by_base:
                labels[1:, hidden] = -100
        batch = {"codes": codes, "reverse": torch.zeros(count, dtype=torch.bool),
                 "mask_seed": torch.arange(count), "input_ids": ids, "labels": labels}  # fmt: skip
        return batch if self.side is None else {**batch, "attention_mask": mask}


Measure = Callable[[Any, Any, Any], list[str]]


@pytest.fixture
def waits(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Train a model by an objective on windows; give what the third step waited for."""

    def measure(model: Any, objective: Any, windows: Any) -> list[str]:
        return _waits(toy, model, objective, windows, tmp_path / "run", monkeypatch)

    return measure


def _waits(
    toy: Any, model: Any, objective: Any, windows: Any, folder: Path, monkeypatch: Any
) -> list[str]:
    found: list[str] = []
    steps: list[list[str]] = []

    def logged(log: RunLog, step: int, **fields: Any) -> None:
        steps.append(list(found))
        found.clear()

    monkeypatch.setattr(RunLog, "train", logged)
    settings = toy.config(
        folder, stages=[{"length": LENGTH, "micro_batch": 2}], global_batch=4, steps=4,
        eval_every=None, checkpoint_every=None,
    )  # fmt: skip
    with Reads(found), Waits(found):
        toy.run(settings, loss=objective, data=windows, model=model, validate=False)
    return steps[2]


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models(name: str, waits: Measure) -> None:
    make, objective = LANGUAGE[name]
    assert waits(make(), objective, Windows(False, None)) == ["tolist"]


CASES: list[tuple[str, str | None]] = [
    *((name, side) for name in LABELS for side in (None, "right")),
    *((name, "left") for name in ("hyena", "mamba", "caduceus-ph")),
]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_labels(name: str, side: str | None, waits: Measure) -> None:
    make, objective = LABELS[name]
    model: Any = make()
    model.base_model.padded_side = side or "right"
    found = waits(model, objective, Windows(isinstance(objective, NucleotideLabels), side))
    if name == "bigbird":  # transformers itself looks at its mask
        found = [one for one in found if one != "_local_scalar_dense"]
    assert found == ["tolist"]


def test_a_mask_of_an_unknown_side_is_looked_at_on_a_cpu(waits: Measure) -> None:
    make, objective = LABELS["hyena"]
    found = waits(make(), objective, Windows(False, "right"))
    assert found == ["_local_scalar_dense"] * 2 + ["tolist"]


@pytest.mark.parametrize("name", ["hyena", "mamba"])
def test_but_not_on_an_accelerator(
    name: str, waits: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (decoder, state_space):
        monkeypatch.setattr(module, "can_read", lambda mask: False)
    make, objective = LABELS[name]
    assert waits(make(), objective, Windows(False, "right")) == ["tolist"]


def test_inference_pads_on_the_right() -> None:
    model: Any = LABELS["mamba"][0]()
    with inference_mode(model):
        assert model.base_model.padded_side == "right"
    assert model.base_model.padded_side is None

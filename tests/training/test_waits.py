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
from tests.made_models import make
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from megabase.models import decoder, state_space
from megabase.models.loading import inference_mode
from megabase.objectives.labels import NucleotideLabels, SequenceLabels
from megabase.objectives.language import CausalLM, MaskedLM
from megabase.training.logging import RunLog

LENGTH = 24

LANGUAGE: dict[str, tuple[str, dict[str, Any], Any]] = {
    "hyena": ("hyenadna", {}, CausalLM()),
    "gpt": ("gpt", {}, CausalLM()),
    "mamba": ("mamba", {}, CausalLM()),
    "caduceus-ph": ("caduceus", {}, MaskedLM()),
    "caduceus-ps": ("caduceus", {"rcps": True}, MaskedLM()),
}

CLASSES = SequenceLabels("classes")
LABELS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "hyena": ("hyenadna", {}, CLASSES),
    "hyena two-sided": (
        "hyenadna", {"bidirectional": "two_sided", "pooling": "max"},
        SequenceLabels("classes", class_weights=[1.0, 2.0]),
    ),
    "hyena, bases": ("hyenadna", {}, NucleotideLabels(label_smoothing=0.1)),
    "gpt": ("gpt", {}, CLASSES),
    "mamba": ("mamba", {}, CLASSES),
    "mamba, bases": ("mamba", {}, NucleotideLabels(class_weights=[1.0, 2.0])),
    "caduceus-ph": ("caduceus", {"conjoin_train": True}, CLASSES),
    "caduceus-ps": ("caduceus", {"rcps": True}, NucleotideLabels()),
    "dnabert": ("dnabert", {}, CLASSES),
    "bigbird": ("bigbird", {}, CLASSES),
    "cnn": ("cnn", {"max_length": 200}, CLASSES),
    "deepsea": ("deepsea", {}, CLASSES),
}  # fmt: skip


def language_model(name: str) -> tuple[Any, Any]:
    family, settings, objective = LANGUAGE[name]
    kind = "causal-lm" if isinstance(objective, CausalLM) else "masked-lm"
    return make(family, kind, **settings), objective


def labeled(name: str) -> tuple[Any, Any]:
    family, settings, objective = LABELS[name]
    kind = "sequence" if isinstance(objective, SequenceLabels) else "token"
    return make(family, f"{kind}-classification", **settings), objective


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
    assert waits(*language_model(name), Windows(False, None)) == ["tolist"]


CASES: list[tuple[str, str | None]] = [
    *((name, side) for name in LABELS for side in (None, "right")),
    *((name, "left") for name in ("hyena", "mamba", "caduceus-ph")),
]


@pytest.mark.parametrize(("name", "side"), CASES)
def test_labels(name: str, side: str | None, waits: Measure) -> None:
    model, objective = labeled(name)
    model.base_model.padded_side = side or "right"
    found = waits(model, objective, Windows(isinstance(objective, NucleotideLabels), side))
    if name == "bigbird":  # transformers itself looks at its mask
        found = [one for one in found if one != "_local_scalar_dense"]
    assert found == ["tolist"]


def test_a_mask_of_an_unknown_side_is_looked_at_on_a_cpu(waits: Measure) -> None:
    found = waits(*labeled("hyena"), Windows(False, "right"))
    assert found == ["_local_scalar_dense"] * 2 + ["tolist"]


@pytest.mark.parametrize("name", ["hyena", "mamba"])
def test_but_not_on_an_accelerator(
    name: str, waits: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (decoder, state_space):
        monkeypatch.setattr(module, "can_read", lambda mask: False)
    assert waits(*labeled(name), Windows(False, "right")) == ["tolist"]


def test_inference_pads_on_the_right() -> None:
    model, _ = labeled("mamba")
    with inference_mode(model):
        assert model.base_model.padded_side == "right"
    assert model.base_model.padded_side is None

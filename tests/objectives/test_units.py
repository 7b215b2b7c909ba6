"""Numbers in their unit: losses, scales and bins against plain computations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megabase.errors import ConfigError, InputError
from megabase.objectives.labels import SequenceLabels, TrackLabels, Units

LABELS = np.array([[1.0, 0.0], [4.0, 12.0], [np.nan, 3.0], [2.5, 1.0]], dtype=np.float32)


def fitted(loss: str, scale: str = "linear", **tracks: Any) -> Units:
    given: Any = (loss, scale)
    return Units.fit(*given, LABELS, ("a", "b"), **tracks)


@pytest.mark.parametrize("scale", ["linear", "log1p"])
def test_losses_are_those_of_the_formulas(scale: str) -> None:
    outputs = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    numbers = (
        LABELS.astype(np.float64) if scale == "linear" else np.log1p(LABELS.astype(np.float64))
    )
    for column in (0, 1):
        known = numbers[:, column][~np.isnan(numbers[:, column])]
        mean, sd = known.mean(), known.std()
        for row in range(4):
            x, y = float(outputs[row, column]), numbers[row, column]
            wanted = {"mse": (x - (y - mean) / sd) ** 2, "poisson": np.exp(x) - x * y / mean}
            unit = {"mse": mean + sd * x, "poisson": mean * np.exp(x)}
            for loss, value in wanted.items():
                units = fitted(loss, scale)
                found, seen = units.losses(outputs, torch.from_numpy(LABELS))
                assert bool(seen[row, column]) is not np.isnan(y)
                assert float(found[row, column]) == pytest.approx(0.0 if np.isnan(y) else value)
                back = np.expm1(unit[loss]) if scale == "log1p" else unit[loss]
                assert float(units.values(outputs)[row, column]) == pytest.approx(back)


@pytest.mark.parametrize("loss", ["mse", "poisson"])
def test_the_loss_is_least_at_the_number_itself(loss: str) -> None:
    units = fitted(loss)
    labels = torch.tensor([[3.0, 5.0]])
    outputs = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = units.losses(outputs, labels)[0].sum()
        total.backward()
        return total

    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(units.values(outputs.detach()), labels, rtol=1e-3, atol=1e-3)


def test_a_track_is_compared_bin_by_bin_on_both_strands() -> None:
    units = fitted("poisson", bin=3)
    raw = torch.randn(4, 7, 2)  # two rows, then their reverse complements; row 2 is padded
    labels = torch.tensor([[[1.0, 2.0], [0.0, np.nan]], [[3.0, 1.0], [np.nan, np.nan]]])
    mask = torch.tensor([[1] * 7, [1] * 6 + [0]] * 2)
    batch = {"input_ids": torch.zeros(4, 7).long(), "labels": labels, "attention_mask": mask}
    found = TrackLabels(units, width=5)(lambda **_: SimpleNamespace(logits=raw), batch)  # type: ignore[arg-type]
    loss, count = 0.0, 0
    for row, size in ((0, 7), (1, 6)):
        along = (raw[row, :size] + raw[row + 2, :size].flip(0)) / 2
        for number in range(2):
            x = along[3 * number : 3 * number + 3].mean(0)
            said = torch.tensor(units.center) * x.exp()
            assert found.outputs is not None
            kept = found.outputs.reshape(2, 5, 2)
            torch.testing.assert_close(kept[row, number], said)
            for track in range(2):
                y = float(labels[row, number, track])
                if not np.isnan(y):
                    loss += float(x[track].exp() - x[track] * y / units.center[track])
                    count += 1
    assert float(found.loss_sum) == pytest.approx(loss, rel=1e-5)
    assert float(found.count) == count == 5


def test_bases_have_the_number_of_their_bin() -> None:
    raw = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    for statistic, share in (("mean", 1), ("sum", 4)):
        units = fitted("mse", bin=4, statistic=statistic)
        found = units.by_base(raw)
        for base in range(11):
            members = raw[base // 4 * 4 : base // 4 * 4 + 4].astype(np.float64)
            value = (np.array(units.center) + np.array(units.spread) * members.mean(0)) / share
            np.testing.assert_allclose(found[base], value, rtol=1e-6)


def test_sequences_have_outputs_in_their_unit() -> None:
    units = fitted("poisson")
    logits = torch.randn(4, 2)
    found = SequenceLabels("regression", units=units).compare(logits, torch.from_numpy(LABELS))
    assert found.outputs is not None
    torch.testing.assert_close(found.outputs, units.values(logits))
    assert float(found.count) == 7


def test_refusals() -> None:
    with pytest.raises(InputError, match="b has no number but 0 in the training rows"):
        Units.fit("poisson", "linear", np.zeros((3, 1)), ["b"])
    with pytest.raises(InputError, match="b has no number in the training rows"):
        Units.fit("mse", "linear", np.full((3, 1), np.nan), ["b"])
    assert Units.fit("mse", "linear", np.ones((3, 1)), ["b"]).spread == (1.0,)
    record = {"loss": "mse", "scale": "linear", "center": [1.0], "spread": [2.0]}
    assert Units.of_model(SimpleNamespace(units=record)).center == (1.0,)  # type: ignore[union-attr]
    assert Units.of_model(SimpleNamespace()) is None
    for name, value in (("spread", [1.0, 2.0]), ("bin", 0), ("loss", "huber"), ("other", 1)):
        with pytest.raises(ConfigError):
            Units.of_model(SimpleNamespace(units={**record, name: value}))

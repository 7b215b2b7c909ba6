"""The outputs of a head as numbers in the unit of the data, and the losses of such numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from megabase.errors import InputError
from megabase.settings import Settings

Loss = Literal["mse", "poisson"]
Scale = Literal["linear", "log1p"]
Statistic = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class Units(Settings):
    """What the outputs x of a head stand for, kept in the settings of its model.

    On their `scale` the numbers are ``center + spread * x`` (mse) or ``center * exp(x)`` (poisson),
    so columns of any unit weigh the same.
    """

    loss: Loss
    """mse: squared error of x. poisson: exp(x) - x * y / center, the negative log-likelihood of
    counts y over their mean, up to a constant."""
    scale: Scale
    """log1p: the logarithm of one more than the number."""
    center: tuple[float, ...]
    """Mean of each column over the training rows, on the scale."""
    spread: tuple[float, ...]
    """Standard deviation of each column there; 1 where it is constant."""
    bin: int = 1
    """Bases that a number of a track is for."""
    statistic: Statistic = "mean"
    """What the number of a bin is of the numbers of its bases."""

    _prefix = "units."
    _limits: ClassVar = {"be at least 1": "bin"}

    def _problems(self) -> Iterator[str]:
        if len(self.center) != len(self.spread):
            yield f"units has {len(self.center)} centers and {len(self.spread)} spreads"

    @classmethod
    def fit(
        cls, loss: Loss, scale: Scale, labels: npt.NDArray[Any], names: Sequence[str], **tracks: Any
    ) -> Self:
        """Take center and spread from training labels (n, K), NaN where unknown.

        `names` are those of the columns; an InputError for one without numbers, or (poisson)
        without any count.
        """
        center, spread = [], []
        for name, column in zip(names, labels.T, strict=True):
            known = column[np.isfinite(column)].astype(np.float64)
            if not len(known) or (loss == "poisson" and not known.any()):
                what = "number" if not len(known) else "number but 0"
                raise InputError(f"{name} has no {what} in the training rows; leave it out")
            known = np.log1p(known) if scale == "log1p" else known
            center.append(float(known.mean()))
            spread.append(float(known.std()) or 1.0)
        return cls(loss=loss, scale=scale, center=tuple(center), spread=tuple(spread), **tracks)

    @classmethod
    def of_model(cls, config: Any) -> Self | None:
        """Read what a model's configuration holds; None for a head of another kind."""
        found = getattr(config, "units", None)
        return found and cls.of(found, "config.json: ", "units.")

    def said(self, kind: str) -> str:
        """Say in a few words what is learned."""
        bins = f"{self.statistic} of {self.bin:,} bases, " if kind == "tracks" else ""
        return f"{bins}{self.loss}, {self.scale} scale"

    def losses(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Give the loss of each output (..., K), 0 where its label is NaN, and which are known."""
        known = torch.isfinite(labels)
        targets = torch.where(known, labels, 0.0).to(outputs.dtype)
        targets = targets.log1p() if self.scale == "log1p" else targets
        center, spread = outputs.new_tensor(self.center), outputs.new_tensor(self.spread)
        if self.loss == "poisson":
            found = F.poisson_nll_loss(outputs, targets / center, reduction="none")
        else:
            found = (outputs - (targets - center) / spread).square()
        return torch.where(known, found, 0.0), known

    def values(self, outputs: Tensor) -> Tensor:
        """Give outputs (..., K) in the unit of the data."""
        center, spread = outputs.new_tensor(self.center), outputs.new_tensor(self.spread)
        found = center * outputs.exp() if self.loss == "poisson" else center + spread * outputs
        return found.expm1() if self.scale == "log1p" else found

    def pool(self, outputs: Tensor) -> Tensor:
        """Take the mean over the bases of each whole bin: (n, length, K) to (n, bins, K)."""
        bins = outputs.shape[1] // self.bin
        return outputs[:, : bins * self.bin].unflatten(1, (bins, self.bin)).mean(2)

    def by_base(self, outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Give every base the number of its bin, for outputs (length, K) whose first begins a bin.

        The number of a sum is shared out over the bases of the bin; the last bin may be cut short.
        """
        starts = np.arange(0, len(outputs), self.bin)
        counts = np.diff(np.append(starts, len(outputs)))
        pooled = np.add.reduceat(outputs.astype(np.float64), starts) / counts[:, None]
        values = self.values(torch.from_numpy(pooled)).numpy()
        values = values / self.bin if self.statistic == "sum" else values
        return np.repeat(values, counts, axis=0)

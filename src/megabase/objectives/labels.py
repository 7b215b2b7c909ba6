"""Losses of labels: of whole sequences, of every nucleotide, and answers by label tokens.

Numbers are in the unit of the data, which :class:`Units` makes of the outputs of a head.

Label tokens follow ``evals/soft_prompting_genomics.py`` of HazyResearch/hyena-dna. Its training
without demonstrations reads the logits one position too early (at the last base, and not at the
separator, where its evaluation reads them); here both read them at the separator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.data.labeled import IGNORED
from megabase.errors import InputError
from megabase.objectives.base import Batch, Output
from megabase.settings import Settings

Loss = Literal["mse", "poisson"]
Scale = Literal["linear", "log1p"]
Statistic = Literal["mean", "sum"]
SCORE_BINS = 1 << 16
"""Bins of the log odds of a class: 0.001 wide, so metrics over ranks differ in the fifth digit."""
_SCORE_LIMIT = 32.0
"""Log odds beyond this, on either side, are counted as this: probabilities of 1e-14 are extreme."""


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


class _Labels:
    """Runs a model on ``input_ids``, maybe with ``attention_mask``, and compares with ``labels``.

    With twice as many sequences as labels the second half are the reverse complements of the first,
    and the outputs of both strands are averaged (post-hoc conjoining of the Caduceus paper, arXiv
    2403.03234), those for bases turned around first. A causal model sees only what lies before a
    base; the other strand brings what lies after it.
    """

    output = "logits"

    def __call__(self, model: Any, batch: Batch) -> Output:
        """Compare the model's output with the labels of a batch."""
        labels, mask = batch["labels"], batch.get("attention_mask")
        more = {} if mask is None else {"attention_mask": mask}
        outputs = getattr(model(input_ids=batch["input_ids"], **more), self.output)
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        if len(outputs) == 2 * len(labels):
            if outputs.ndim == 3:
                outputs = _align_strands(outputs, mask)
            else:
                outputs = outputs.unflatten(0, (2, -1)).mean(dim=0)
        return self.compare(outputs, labels)

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of outputs against labels, as many and of the shape that they fit."""
        raise NotImplementedError


class _WeighedLabels(_Labels):
    """Labels whose classes may have weights."""

    def __init__(self, weights: Sequence[float] | None, smoothing: float) -> None:
        self.class_weights = None if weights is None else torch.tensor(list(weights))
        self.label_smoothing = smoothing

    def _weights(self, logits: Tensor, what: str) -> Tensor | None:
        """Put the class weights where the logits (..., K) are; InputError when they are not K."""
        weights = self.class_weights
        if weights is None:
            return None
        if len(weights) != logits.shape[-1]:
            count = logits.shape[-1]
            raise InputError(f"{len(weights)} class weights for a model with {count} {what}")
        self.class_weights = weights.to(logits)
        return self.class_weights


def _refuse(logits: Tensor, labels: Tensor, advice: str = "") -> InputError:
    return InputError(
        f"the model gave outputs of shape {tuple(logits.shape)} for labels of shape "
        f"{tuple(labels.shape)}{advice}"
    )


class SequenceLabels(_WeighedLabels):
    """Compare a model's output for whole sequences with their labels.

    The loss is cross entropy for ``"classes"``, binary cross entropy of every label for
    ``"multi_label"`` (`class_weights` then weigh the positive answers), and squared error for
    ``"regression"``, or the loss of `units`, in which outputs are then given. `label_smoothing` is
    the share of the target spread over all classes, or over both answers of a label.
    `double_sigmoid` is the published two-class loss of the GenomicBenchmarks CNN: binary cross
    entropy for logits, applied to the output of a sigmoid. Labels that are NaN count nowhere. With
    class weights the mean loss is that of :func:`torch.nn.functional.cross_entropy` over the whole
    global batch.
    """

    unit = "sequences"

    def __init__(
        self, kind: Literal["classes", "multi_label", "regression"], *,
        class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0,
        double_sigmoid: bool = False, units: Units | None = None,
    ) -> None:  # fmt: skip
        plain = class_weights is None and not label_smoothing
        if not plain and (kind == "regression" or double_sigmoid):
            raise InputError(
                "class weights and label smoothing are for classes and several labels, not for "
                "regression or the double sigmoid"
            )
        if double_sigmoid and kind != "classes":
            raise InputError("the double sigmoid is a loss of two classes")
        super().__init__(class_weights, label_smoothing)
        self.kind, self.units, self.double_sigmoid = kind, units, double_sigmoid

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of logits (n, K) against labels (n,) or (n, K) that fit them."""
        fits = labels.shape == (logits.shape if labels.ndim == 2 else logits.shape[:1])
        if logits.ndim != 2 or not fits:
            raise _refuse(logits, labels)
        compare = self._classes if self.kind == "classes" else self._numbers
        losses, counts, correct = compare(logits, labels, self._weights(logits, "outputs"))
        known = torch.isfinite(labels) if labels.is_floating_point() else torch.ones_like(labels)
        metrics = {"targets": known.float().sum()}
        if correct is not None:
            metrics["correct"] = correct.float().sum()
        outputs = logits.detach()
        outputs = outputs if self.units is None else self.units.values(outputs)
        return Output(losses.sum(), counts.sum(), metrics, outputs)

    def _classes(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        correct = logits.detach().argmax(dim=1) == labels
        ones = torch.ones_like(logits[:, 0])
        if self.double_sigmoid:
            if logits.shape[1] != 2:
                raise InputError(
                    f"the double sigmoid is a loss of two classes, not of {logits.shape[1]}"
                )
            answer = torch.sigmoid(logits[:, 1] - logits[:, 0])
            target = labels.to(answer.dtype)
            losses = F.binary_cross_entropy_with_logits(answer, target, reduction="none")
            return losses, ones, correct
        losses = F.cross_entropy(
            logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses, ones if weights is None else weights[labels], correct

    def _numbers(
        self, outputs: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.units is not None:
            losses, known = self.units.losses(outputs, labels)
            return losses, known.to(outputs.dtype), None
        targets = labels.to(outputs.dtype)
        known = torch.isfinite(targets)
        targets = torch.where(known, targets, 0.0)
        if self.kind == "regression":
            losses, correct = (outputs - targets).square(), None
        else:
            soft = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(
                outputs, soft, pos_weight=weights, reduction="none"
            )
            correct = ((outputs.detach() > 0) == (targets > 0.5)) & known
        return torch.where(known, losses, 0.0), known.to(outputs.dtype), correct


class NucleotideLabels(_WeighedLabels):
    """Compare a model's output for every base with its class: cross entropy.

    `label_smoothing` is the share of the target spread over all classes; `tabulate` fills
    ``table``, for evaluation. Labels are (n, length).
    """

    unit = "bases"

    def __init__(
        self, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0,
        tabulate: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(class_weights, label_smoothing)
        self.tabulate = tabulate

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of logits (n, length, K) against labels (n, length) that fit them."""
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise _refuse(logits, labels, "; every base needs one answer")
        # To pick the known ones out would wait for the device.
        weights, known = self._weights(logits, "classes"), labels != IGNORED
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), weight=weights, ignore_index=IGNORED,
            label_smoothing=self.label_smoothing, reduction="sum",
        )  # fmt: skip
        each = known.to(logits) if weights is None else weights[labels.clamp(min=0)] * known
        count, plain = each.sum(), logits.detach()
        metrics = {
            "targets": known.float().sum(),
            "correct": (plain.argmax(dim=-1) == labels).float().sum(),
        }
        table = _count_table(plain[known], labels[known]) if self.tabulate else None
        return Output(loss, count, metrics, logits.detach(), table)


class TrackLabels(_Labels):
    """Compare a model's outputs for every base, averaged over bins, with the numbers of tracks.

    Labels are (n, bins, K), NaN where there is no number. With `width`, for evaluation, ``outputs``
    are (n, width * K) in the unit of the tracks.
    """

    unit = "bins"

    def __init__(self, units: Units, *, width: int | None = None) -> None:
        self.units, self.width = units, width

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of outputs (n, length, K) against labels that fit their bins."""
        outputs = self.units.pool(logits)
        if outputs.shape != labels.shape:
            raise _refuse(outputs, labels, "; every bin needs one number for each track")
        losses, known = self.units.losses(outputs, labels)
        count, found = known.float().sum(), None
        if self.width is not None:
            found = self.units.values(outputs.detach())
            found = F.pad(found, (0, 0, 0, self.width - found.shape[1])).flatten(1)
        return Output(losses.sum(), count, {"targets": count}, found)


def _align_strands(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Average both strands, forward rows first: logits (2 n, length, K) to (n, length, K)."""
    rows, length = logits.shape[0] // 2, logits.shape[1]
    forward, other = logits[:rows], logits[rows:]
    place = torch.arange(length, device=logits.device).expand(rows, length)
    if mask is None:
        turned = length - 1 - place
    else:
        real = mask[:rows].bool()
        # Base p of a row whose tokens are first .. last is base first + last - p of the other.
        first = torch.where(real, place, length).amin(dim=1, keepdim=True)
        last = torch.where(real, place, -1).amax(dim=1, keepdim=True)
        turned = (first + last - place).clamp(0, length - 1)
    index = turned[..., None].expand_as(other)
    return (forward + other.gather(1, index)) / 2


def _count_table(logits: Tensor, labels: Tensor) -> Tensor:
    """Count everything that metrics depend on: int64 (K * K + 2 * K * SCORE_BINS,).

    First the pairs (true, predicted) in K x K cells, then for each class the log odds of that class
    against all others, in :data:`SCORE_BINS` equal bins from -32 to 32: first over bases of the
    other classes, then over its own. Scores in one bin count as equal.
    """
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=classes * classes)
    number = torch.arange(classes, device=logits.device)
    odds = _log_odds(logits).clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
    bins = ((odds + _SCORE_LIMIT) * ((SCORE_BINS - 1) / (2 * _SCORE_LIMIT))).round().long()
    own = (labels[:, None] == number).long()
    place = (2 * number + own) * SCORE_BINS + bins
    histograms = torch.bincount(place.flatten(), minlength=2 * classes * SCORE_BINS)
    return torch.cat([confusion, histograms])


def _log_odds(logits: Tensor) -> Tensor:
    """Give log p / (1 - p) of every class, (n, K)."""
    if logits.shape[1] == 2:
        return logits - logits.flip(1)
    columns = range(logits.shape[1])
    others = [logits[:, [j for j in columns if j != i]].logsumexp(dim=1) for i in columns]
    return logits - torch.stack(others, dim=1)


class LabelTokens(_Labels):
    """Cross entropy of the token that stands for the class, after a soft prompt.

    `restricted` compares the tokens of the classes only. By default, the published way, the softmax
    runs over all logits, so the model also learns that a label token is due. The model is a
    :class:`megabase.models.adapt.prompt.PromptedModel` (anything whose output has ``token_logits``,
    one row for each sequence). ``outputs`` are the logits of all tokens.
    """

    unit = "sequences"
    output = "token_logits"

    def __init__(self, label_ids: Sequence[int], *, restricted: bool = False) -> None:
        if len(label_ids) < 2 or len(set(label_ids)) != len(label_ids):
            raise InputError(f"expected two or more different label tokens, found {label_ids}")
        self.label_ids, self.restricted = tuple(label_ids), restricted

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of token logits (n, vocabulary) against class numbers (n,)."""
        if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
            raise _refuse(logits, labels)
        return self._compare_answers(logits[:, None], labels[:, None])

    def _compare_answers(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of logits (n, m, vocabulary) at m answers against class numbers (n, m)."""
        ids = torch.tensor(self.label_ids, device=logits.device)
        scores, targets = (logits[..., ids], labels) if self.restricted else (logits, ids[labels])
        losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
        last, asked = logits.detach()[:, -1], labels[:, -1]
        metrics = {
            "targets": torch.ones_like(asked, dtype=torch.float32).sum(),
            "correct": (last[:, ids].argmax(dim=1) == asked).float().sum(),
            "strict": (last.argmax(dim=1) == ids[asked]).float().sum(),
        }
        count = torch.ones_like(losses.detach()).sum()
        return Output(losses.sum(), count, metrics, last)


class InContext(LabelTokens):
    """Cross entropy of the label tokens, read at the separators before them.

    With `every_answer` the labels of the demonstrations count too, as in published training, not
    the query's alone. A `prompted` model is a ``PromptedModel``, which takes the positions; of a
    language model the logits are read there. Batches are those of
    :class:`megabase.data.batches.InContextBatches`. ``outputs`` are the logits of all tokens for
    the query.
    """

    def __init__(
        self, label_ids: Sequence[int], *, restricted: bool = False, every_answer: bool = False,
        prompted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(label_ids, restricted=restricted)
        self.every_answer, self.prompted = every_answer, prompted

    def __call__(self, model: nn.Module, batch: Batch) -> Output:
        """Compare the model's label tokens with the labels of a batch."""
        ids, places, answers = batch["input_ids"], batch["places"], batch["answers"]
        if not self.every_answer:
            places, answers = places[:, -1:], answers[:, -1:]
        if self.prompted:
            logits: Tensor = model(input_ids=ids, positions=places).token_logits
        else:
            everywhere: Tensor = model(input_ids=ids).logits
            logits = everywhere[torch.arange(len(ids), device=ids.device)[:, None], places]
        return self._compare_answers(logits.float(), answers)

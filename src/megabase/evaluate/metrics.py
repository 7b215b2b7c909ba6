"""Metrics of labelled sequences, always over a whole data set and never a mean of batch means.

A metric takes the outputs of a model for every sequence, float (n, K), and the labels, int64 (n,)
class numbers or float (n, K) with NaN where a label is not known. Class metrics read the largest
logit; with several labels an answer is yes above a logit of 0, each label is measured by itself,
and the figure is the mean over labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megabase.data.base_labels import IGNORED
from megabase.errors import InputError
from megabase.objectives.nucleotides import SCORE_BINS

__all__ = [
    "COUNTED",
    "METRICS",
    "by_label",
    "check",
    "confusion",
    "default_metrics",
    "higher_is_better",
    "measure",
    "measure_table",
    "median_by_group",
]

_Outputs = npt.NDArray[np.floating[Any]]
_Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A figure by name."""

    kinds: tuple[str, ...]
    """Kinds of labels it is for."""
    one: Callable[[_Outputs, _Labels], float]
    """Takes logits (n, C) and class numbers (n,), or one column of outputs and labels (n,)."""
    higher: bool = True
    """Whether more is better."""


def confusion(outputs: _Outputs, labels: _Labels) -> npt.NDArray[np.int64]:
    """Count (true class, predicted class) pairs: (C, C).

    Parameters
    ----------
    outputs
        Logits (n, C); the largest is the prediction.
    labels
        Class numbers (n,).
    """
    classes = outputs.shape[1]
    pairs = labels * classes + outputs.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _two_columns(outputs: _Outputs, labels: _Labels) -> tuple[_Outputs, _Labels]:
    """Turn a column of yes-or-no logits into two classes."""
    if outputs.ndim == 1:
        return np.stack([np.zeros_like(outputs), outputs], axis=1), labels.astype(np.int64)
    return outputs, labels


def _counted(
    figure: Callable[[npt.NDArray[Any]], float],
) -> Callable[[_Outputs, _Labels], float]:
    """Turn a figure of a confusion matrix into one of outputs and labels."""
    return lambda outputs, labels: figure(confusion(*_two_columns(outputs, labels)))


def _accuracy(table: npt.NDArray[Any]) -> float:
    return float(np.trace(table) / table.sum())


def _mcc(table: npt.NDArray[Any]) -> float:
    table = table.astype(np.float64)
    total, right = table.sum(), np.trace(table)
    true, said = table.sum(axis=1), table.sum(axis=0)
    below = math.sqrt((total**2 - (said**2).sum()) * (total**2 - (true**2).sum()))
    # One class only, in truth or in predictions: no correlation, by convention.
    return float((right * total - (true * said).sum()) / below) if below else 0.0


def _f1(table: npt.NDArray[Any]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); classes nowhere seen are left out."""
    table = table.astype(np.float64)
    hits, both = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    seen = both > 0
    return float((2 * hits[seen] / both[seen]).mean())


def _f1_weighted(table: npt.NDArray[Any]) -> float:
    """Mean over classes of their F1, each weighing as many rows as truly belong to it."""
    both, true = table.sum(axis=0) + table.sum(axis=1), table.sum(axis=1)
    f1 = np.divide(2 * np.diag(table), both, out=np.zeros(len(both)), where=both > 0)
    return float((f1 * true).sum() / true.sum())


def _f1_yes(table: npt.NDArray[Any]) -> float:
    """F1 of the answer yes (of the second class of two)."""
    if table.shape != (2, 2):
        raise InputError("f1_positive is for two classes; take f1, the mean over classes")
    below = 2 * table[1, 1] + table[0, 1] + table[1, 0]
    return float(2 * table[1, 1] / below) if below else 0.0


def _by_class(kind: str) -> Callable[[_Outputs, _Labels], float]:
    """Rank metrics: one score for two classes, the mean of one against the rest for more."""

    def compute(outputs: _Outputs, labels: _Labels) -> float:
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        function: Any = binary_auroc if kind == "auroc" else binary_average_precision
        outputs = outputs.astype(np.float64)
        if outputs.ndim == 1:
            scores, truths = outputs[:, None], labels[:, None] > 0.5
        elif outputs.shape[1] == 2:
            scores, truths = (outputs[:, 1] - outputs[:, 0])[:, None], labels[:, None] == 1
        else:
            shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            scores = shifted / shifted.sum(axis=1, keepdims=True)
            truths = labels[:, None] == np.arange(outputs.shape[1])
        figures = [
            float(function(torch.from_numpy(_ranks(s)), torch.from_numpy(t.astype(np.int64))))
            for s, t in zip(scores.T, truths.T, strict=True)
            if t.any() and not t.all()
        ]
        return float(np.mean(figures)) if figures else math.nan

    return compute


def _ranks(values: _Outputs) -> _Outputs:
    """Give each value its place among the distinct values, scaled into [0, 1].

    Rank metrics are the same for it, and logits are not squashed to equal probabilities.
    """
    distinct, place = np.unique(values, return_inverse=True)
    return place.reshape(-1).astype(np.float64) / max(1, len(distinct) - 1)


def _pearson(outputs: _Outputs, labels: _Labels) -> float:
    from torchmetrics.functional import pearson_corrcoef

    if min(len(np.unique(x)) for x in (outputs, labels)) < 2:
        return math.nan  # one side does not vary
    pair = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (outputs, labels))
    return float(pearson_corrcoef(*pair))


def _spearman(outputs: _Outputs, labels: _Labels) -> float:
    # torchmetrics' own adds 1e-6 below the fraction, which the sixth digit shows.
    return _pearson(_mean_ranks(outputs), _mean_ranks(labels))


def _mean_ranks(values: _Outputs) -> _Outputs:
    """Rank values; ties share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group.reshape(-1)]


def _mean_squared_error(outputs: _Outputs, labels: _Labels) -> float:
    return float(np.square(outputs.astype(np.float64) - labels).mean())


_ANSWERS, _NUMBERS = ("classes", "multi_label", "nucleotides"), ("regression",)
COUNTED: dict[str, Callable[[npt.NDArray[Any]], float]] = {
    "accuracy": _accuracy,
    "mcc": _mcc,
    "f1": _f1,
    "f1_positive": _f1_yes,
    "f1_weighted": _f1_weighted,
}
"""Figures that depend on the confusion matrix (true, said) only."""
METRICS: dict[str, Metric] = {
    **{name: Metric(_ANSWERS, _counted(figure)) for name, figure in COUNTED.items()},
    "auroc": Metric(_ANSWERS, _by_class("auroc")),
    "auprc": Metric(_ANSWERS, _by_class("auprc")),
    "pearson": Metric(_NUMBERS, _pearson),
    "spearman": Metric(_NUMBERS, _spearman),
    "mse": Metric(_NUMBERS, _mean_squared_error, higher=False),
}
"""Figures by name. ``f1`` is the mean over classes (macro), ``f1_weighted`` that weighted by the
rows of each, ``f1_positive`` that of the second of two classes; ``auroc`` and ``auprc`` of more
than two classes are means of one against the rest, and ``auprc`` is average precision."""


_CLASS_METRICS = ("accuracy", "mcc", "f1", "auroc", "auprc")


def default_metrics(kind: str) -> tuple[str, ...]:
    """Name the metrics shown for a kind of labels when none are asked for."""
    if kind == "regression":
        return ("pearson", "spearman", "mse")
    return ("auroc", "auprc") if kind == "multi_label" else _CLASS_METRICS


def higher_is_better(name: str) -> bool:
    """Tell whether more is better; the loss is known too.

    Raises
    ------
    InputError
        For an unknown name.
    """
    return name != "loss" and _find(name).higher


def _find(name: str) -> Metric:
    if name not in METRICS:
        raise InputError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


def check(names: Iterable[str], kind: str) -> None:
    """Check that metrics exist and are for a kind of labels.

    Raises
    ------
    InputError
        Naming the first that is not.
    """
    for name in names:
        if kind not in _find(name).kinds:
            fitting = ", ".join(n for n, metric in METRICS.items() if kind in metric.kinds)
            raise InputError(f"{name} is not a metric of {kind}; take one of {fitting}")


def measure(
    names: Iterable[str], kind: str, outputs: _Outputs, labels: _Labels
) -> dict[str, float]:
    """Compute metrics over a whole data set.

    Parameters
    ----------
    names
        Keys of :data:`METRICS`.
    kind
        ``classes``, ``multi_label``, ``regression`` or ``nucleotides``.
    outputs
        float (n, K): logits or numbers; of nucleotides the rows are bases.
    labels
        int64 (n,), or float (n, K); bases of the class -100 count nowhere.

    Returns
    -------
    dict
        Name to figure; NaN where it is not defined (AUROC of one class only).

    Raises
    ------
    InputError
        For a metric that is unknown or not for this kind.
    """
    names = tuple(names)
    check(names, kind)
    if kind == "nucleotides":
        known = labels != IGNORED
        outputs, labels = outputs[known], labels[known].astype(np.int64)
    if kind in ("classes", "nucleotides"):
        return {name: METRICS[name].one(outputs, labels) for name in names}
    return {name: _mean(by_label(name, outputs, labels)) for name in names}


def by_label(name: str, outputs: _Outputs, labels: _Labels) -> list[float]:
    """Compute a metric for every label by itself.

    Parameters
    ----------
    name
        Key of :data:`METRICS`.
    outputs
        float (n, K).
    labels
        float (n, K); NaN is not counted.

    Returns
    -------
    list of float
        K figures; NaN where it is not defined (a label of one kind only).
    """
    figures: list[float] = []
    for said, true in zip(outputs.T, labels.T, strict=True):
        known = np.isfinite(true)
        figures.append(_find(name).one(said[known], true[known]) if known.any() else math.nan)
    return figures


def median_by_group(
    name: str, outputs: _Outputs, labels: _Labels, groups: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Give the median over the labels of each group, as chromatin profiles are reported.

    Parameters
    ----------
    name
        Key of :data:`METRICS`, usually auroc.
    outputs, labels
        (n, K).
    groups
        Group name -> its first column and the one after its last.

    Returns
    -------
    dict
        Group -> median over the labels that have both answers among the rows; NaN without any.
    """
    figures = np.array(by_label(name, outputs, labels))
    found: dict[str, float] = {}
    for group, (first, last) in groups.items():
        known = figures[first:last][~np.isnan(figures[first:last])]
        found[group] = float(np.median(known)) if len(known) else math.nan
    return found


def _mean(figures: list[float]) -> float:
    known = [figure for figure in figures if not math.isnan(figure)]
    return float(np.mean(known)) if known else math.nan


def measure_table(
    names: Iterable[str], classes: int, table: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Compute metrics from the table of :func:`megabase.objectives.nucleotides.count_table`.

    Parameters
    ----------
    names
        Metrics of the kind ``nucleotides``.
    classes
        Number of classes.
    table
        int64 (size,), summed over the whole data set.

    Returns
    -------
    dict
        Name to figure, as :func:`measure` gives it for the same outputs; for
        AUROC and AUPRC, log odds less than 0.001 apart count as equal. NaN where a figure is not
        defined.

    Raises
    ------
    InputError
        For a metric that is unknown or not for nucleotides.
    """
    names = tuple(names)
    check(names, "nucleotides")
    confusion = table[: classes * classes].reshape(classes, classes)
    histograms = table[classes * classes :].reshape(classes, 2, SCORE_BINS).astype(np.float64)
    found: dict[str, float] = {}
    for name in names:
        if not confusion.sum():
            found[name] = math.nan
        elif name in COUNTED:
            found[name] = COUNTED[name](confusion)
        else:
            figure = _auroc_of_counts if name == "auroc" else _auprc_of_counts
            # Of two classes the second is the positive one; of more, each is, in turn.
            chosen = histograms[1:] if classes == 2 else histograms
            each = [figure(no, yes) for no, yes in chosen if no.any() and yes.any()]
            found[name] = float(np.mean(each)) if each else math.nan
    return found


def _auroc_of_counts(no: npt.NDArray[Any], yes: npt.NDArray[Any]) -> float:
    """Share of (yes, no) pairs in the right order; equal ones count half."""
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _auprc_of_counts(no: npt.NDArray[Any], yes: npt.NDArray[Any]) -> float:
    """Average precision: the mean over yes of the precision at its score."""
    yes, no = yes[::-1], no[::-1]
    hits, said = np.cumsum(yes), np.cumsum(yes + no)
    seen = yes > 0
    return float((yes[seen] * hits[seen] / said[seen]).sum() / yes.sum())

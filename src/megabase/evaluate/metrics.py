"""Metrics of labeled sequences, always over a whole data set and never a mean of batch means.

Outputs are float (n, K); labels int64 (n,) class numbers or float (n, K) with NaN where a label is
not known. Class metrics read the largest logit; of several labels each is measured by itself, yes
being a logit above 0, and the value is the mean over labels. All is computed in float64 from counts
where counts are enough, so that a bootstrap and streamed counts give the same digits.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from megabase.data.labeled import IGNORED, LabeledSequences
from megabase.errors import InputError
from megabase.objectives.labels import SCORE_BINS

_Outputs = npt.NDArray[np.floating[Any]]
_Labels = npt.NDArray[Any]
_Floats, _Ints = npt.NDArray[np.float64], npt.NDArray[np.int64]
_MOST_LABELS = 16  # most labels with a bootstrap: each draw ranks all rows once for every label


class _Metric(NamedTuple):
    kinds: tuple[str, ...]  # kinds of labels it is for
    one: Callable[[_Outputs, _Labels], float]
    """Takes logits (n, C) and class numbers (n,), or one column of outputs and labels (n,)."""
    higher: bool = True


def confusion(outputs: _Outputs, labels: _Labels) -> npt.NDArray[np.int64]:
    """Count (true, predicted) classes, (C, C), of logits (n, C), or (n,) for yes or no."""
    if outputs.ndim == 1:
        outputs, labels = np.stack([np.zeros_like(outputs), outputs], 1), labels.astype(np.int64)
    classes = outputs.shape[1]
    pairs = labels * classes + outputs.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _mcc(table: npt.NDArray[Any]) -> float:
    table = table.astype(np.float64)
    total, right = table.sum(), np.trace(table)
    true, said = table.sum(axis=1), table.sum(axis=0)
    below = math.sqrt((total**2 - (said**2).sum()) * (total**2 - (true**2).sum()))
    # One class only, in truth or in predictions: no correlation, by convention.
    return float((right * total - (true * said).sum()) / below) if below else 0.0


def _f1(table: npt.NDArray[Any]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); classes nowhere seen are left out."""
    return float(np.nanmean(_f1_of_classes(table)))


def _f1_weighted(table: npt.NDArray[Any]) -> float:
    """Mean over classes of their F1, each weighing as many rows as truly belong to it."""
    true = table.sum(axis=1)
    return float(np.nansum(_f1_of_classes(table) * true) / true.sum())


def _f1_of_classes(table: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    both = table.sum(axis=0) + table.sum(axis=1)
    return np.divide(2 * np.diag(table), both, out=np.full(len(both), np.nan), where=both > 0)


def _f1_yes(table: npt.NDArray[Any]) -> float:
    """F1 of the answer yes (of the second class of two)."""
    if table.shape != (2, 2):
        raise InputError("f1_positive is for two classes; take f1, the mean over classes")
    below = 2 * table[1, 1] + table[0, 1] + table[1, 0]
    return float(2 * table[1, 1] / below) if below else 0.0


def _by_class(metric: Callable[..., float]) -> Callable[[_Outputs, _Labels], float]:
    """Rank metrics: one score for two classes, the mean of one against the rest for more."""

    def compute(outputs: _Outputs, labels: _Labels) -> float:
        outputs = outputs.astype(np.float64)
        if outputs.ndim == 1:
            scores, truths = outputs[:, None], labels[:, None] > 0.5
        elif outputs.shape[1] == 2:
            scores, truths = (outputs[:, 1] - outputs[:, 0])[:, None], labels[:, None] == 1
        else:
            shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            scores = shifted / shifted.sum(axis=1, keepdims=True)
            truths = labels[:, None] == np.arange(outputs.shape[1])
        pairs = zip(scores.T, truths.T, strict=True)
        return _mean([metric(*_counts(s, t)) for s, t in pairs if t.any() and not t.all()])

    return compute


def _counts(scores: _Outputs, truth: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Count no and yes at each distinct score, in rising order."""
    distinct, rank = np.unique(scores, return_inverse=True)
    rank = rank.reshape(-1)
    return [np.bincount(rank[each], minlength=len(distinct)) for each in (~truth, truth)]


def _pearson(outputs: _Outputs, labels: _Labels) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    if min(len(np.unique(x)) for x in (outputs, labels)) < 2:
        return math.nan
    return float(np.corrcoef(outputs.astype(np.float64), labels.astype(np.float64))[0, 1])


def _auroc(no: npt.NDArray[Any], yes: npt.NDArray[Any]) -> float:
    """Share of (yes, no) pairs in the right order; equal ones count half."""
    below = np.cumsum(no) - no
    return float((yes * (below + no / 2)).sum() / (yes.sum() * no.sum()))


def _auprc(no: npt.NDArray[Any], yes: npt.NDArray[Any]) -> float:
    """Average precision: the mean over yes of the precision at its score."""
    yes, no = yes[::-1], no[::-1]
    hits, said = np.cumsum(yes), np.cumsum(yes + no)
    seen = yes > 0
    return float((yes[seen] * hits[seen] / said[seen]).sum() / yes.sum())


_ANSWERS, _NUMBERS = ("classes", "multi_label", "nucleotides"), ("regression", "tracks")
"""Kinds of labels with answers to choose from, and with numbers."""
_COUNTED: dict[str, Callable[[npt.NDArray[Any]], float]] = {
    "accuracy": lambda table: float(np.trace(table) / table.sum()), "mcc": _mcc, "f1": _f1,
    "f1_positive": _f1_yes, "f1_weighted": _f1_weighted,
}  # fmt: skip
"""Metrics of the confusion matrix (true, predicted) alone."""
METRICS: dict[str, _Metric] = {
    **{
        name: _Metric(_ANSWERS, lambda outputs, labels, f=value: f(confusion(outputs, labels)))
        for name, value in _COUNTED.items()
    },
    "auroc": _Metric(_ANSWERS, _by_class(_auroc)),
    "auprc": _Metric(_ANSWERS, _by_class(_auprc)),
    "pearson": _Metric(_NUMBERS, _pearson),
    "spearman": _Metric(
        _NUMBERS, lambda *pair: _pearson(*(pl.Series(x).rank().to_numpy() for x in pair))
    ),
    "mse": _Metric(_NUMBERS, lambda a, b: float(np.square(a.astype(float) - b).mean()), False),
}
"""Metrics by name. ``f1`` is the mean over classes (macro), ``f1_weighted`` that weighted by the
rows of each, ``f1_positive`` that of the second of two classes; ``auroc`` and ``auprc`` of more
than two classes are means of one against the rest, and ``auprc`` is average precision."""


def default_metrics(kind: str) -> tuple[str, ...]:
    """Name the metrics shown by default for a kind of labels."""
    if kind in _NUMBERS:
        return ("pearson", "spearman", "mse")
    if kind == "multi_label":
        return ("auroc", "auprc")
    return ("accuracy", "mcc", "f1", "auroc", "auprc")


def higher_is_better(name: str) -> bool:
    """Tell whether more of a metric, or of the loss, is better; InputError for an unknown name."""
    return name != "loss" and _find(name).higher


def _find(name: str) -> _Metric:
    if name not in METRICS:
        raise InputError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


def check(names: Iterable[str], kind: str) -> None:
    """Refuse metrics that do not exist or are not for a kind of labels, with an InputError."""
    for name in names:
        if kind not in _find(name).kinds:
            fitting = ", ".join(n for n, metric in METRICS.items() if kind in metric.kinds)
            raise InputError(f"{name} is not a metric of {kind}; take one of {fitting}")


def measure(
    names: Iterable[str], kind: str, outputs: _Outputs, labels: _Labels
) -> dict[str, float]:
    """Compute metrics over a whole data set; NaN where one is not defined.

    Outputs are float (n, K), of nucleotides one row for each base, and those of the class -100
    count nowhere. InputError as :func:`check`.
    """
    names = tuple(names)
    check(names, kind)
    if kind == "nucleotides":
        known = labels != IGNORED
        outputs, labels = outputs[known], labels[known].astype(np.int64)
    if kind in ("classes", "nucleotides"):
        return {name: METRICS[name].one(outputs, labels) for name in names}
    return {name: _mean(_by_label(name, outputs, labels)) for name in names}


def measure_numbers(
    names: Iterable[str], rows: LabeledSequences, outputs: _Outputs, detail: bool = False
) -> dict[str, float]:
    """Compute metrics of numbers from outputs (rows, K), or (rows, width * K) of up to width bins.

    A metric is the mean over the K columns; with `detail` also given for each ("pearson rna"), and
    by contig ("pearson rna chr2"), where there are several.
    """
    names, places = tuple(names), rows.text.intervals
    bins = rows.along.lengths if rows.kind == "tracks" else np.ones(len(rows), dtype=np.int64)
    width = outputs.shape[1] // rows.outputs
    said = outputs.reshape(len(bins), width, -1)[np.arange(width) < bins[:, None]]
    found = measure(names, rows.kind, said, rows.labels)
    contigs = [places[row].contig if places else "" for row in rows.rows.tolist()]
    number = {contig: i for i, contig in enumerate(dict.fromkeys(contigs))}
    place = np.repeat([number[contig] for contig in contigs], bins)
    parts = {"": np.ones(len(place), dtype=bool)} if rows.outputs > 1 else {}
    parts |= {f" {one}": place == i for one, i in number.items()} if len(number) > 1 else {}
    for end, part in parts.items() if detail else ():
        for name in names:
            values = _by_label(name, said[part], rows.labels[part])
            found |= {f"{name} {k}{end}": v for k, v in zip(rows.classes, values, strict=True)}
    return found


def _by_label(name: str, outputs: _Outputs, labels: _Labels) -> list[float]:
    """Compute a metric for every label by itself: K values, NaN where it is not defined."""
    values: list[float] = []
    for said, true in zip(outputs.T, labels.T, strict=True):
        known = np.isfinite(true)
        values.append(_find(name).one(said[known], true[known]) if known.any() else math.nan)
    return values


def median_by_group(
    name: str, outputs: _Outputs, labels: _Labels, groups: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Give the median over the labels of each group, as chromatin profiles are reported.

    `groups` has the first column of each and the one after its last; NaN for a group without a
    label that has both answers.
    """
    values = _by_label(name, outputs, labels)
    found: dict[str, float] = {}
    for group, span in groups.items():
        known = [value for value in values[slice(*span)] if not math.isnan(value)]
        found[group] = float(np.median(known)) if known else math.nan
    return found


def _mean(values: list[float]) -> float:
    """Mean of the values that are defined; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def measure_table(
    names: Iterable[str], classes: int, table: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Compute metrics from the table of :class:`megabase.objectives.labels.NucleotideLabels`.

    The table is summed over the whole data set. Values are those of :func:`measure` for the same
    outputs; for AUROC and AUPRC, log odds less than 0.001 apart count as equal.
    """
    names = tuple(names)
    check(names, "nucleotides")
    confusion = table[: classes * classes].reshape(classes, classes)
    histograms = table[classes * classes :].reshape(classes, 2, SCORE_BINS).astype(np.float64)
    found: dict[str, float] = {}
    for name in names:
        if not confusion.sum():
            found[name] = math.nan
        elif name in _COUNTED:
            found[name] = _COUNTED[name](confusion)
        else:
            metric = _auroc if name == "auroc" else _auprc
            # Of two classes the second is the positive one; of more, each is, in turn.
            chosen = histograms[1:] if classes == 2 else histograms
            found[name] = _mean([metric(no, yes) for no, yes in chosen if no.any() and yes.any()])
    return found


@lru_cache(maxsize=4096)
def bootstrap_interval(
    runs: tuple[tuple[str, str], ...], kind: str, metric: str, resamples: int
) -> tuple[float | None, float | None]:
    """Give the 95 % interval of the mean of a metric over runs, by drawing test rows again.

    Runs are (run folder, digest of its test rows); those tested on the same rows get the same
    draws, so the interval says how much the mean would move with other test rows, the models being
    what they are. None where outputs are missing or there are more than 16 labels.
    """
    held: list[tuple[int, int, Callable[[Any], float]]] = []
    for folder, digest in runs:
        file = Path(folder) / "outputs.npz"
        if not file.is_file():
            return None, None
        with np.load(file) as kept:
            outputs, labels = kept["test"], kept["test_labels"]
        if labels.ndim > 1 and labels.shape[1] > _MOST_LABELS:
            return None, None
        value_of = _of_rows(kind, metric, outputs, labels)
        held.append((zlib.crc32(digest.encode()), len(labels), value_of))
    drawn: list[float] = []
    for number in range(resamples):
        values = [
            value_of(np.random.default_rng((seed, number)).integers(0, rows, rows))
            for seed, rows, value_of in held
        ]
        drawn.append(sum(values) / len(values))
    if np.isnan(drawn).all():
        return None, None
    low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
    return low, high


def _of_rows(kind: str, metric: str, outputs: Any, labels: Any) -> Callable[[Any], float]:
    """Give a function from rows to the metric over them, quick where counts are enough."""
    if kind == "classes" and metric in _COUNTED:
        classes = outputs.shape[1]
        pairs = labels * classes + outputs.argmax(axis=1)

        def counted(rows: Any) -> float:
            table = np.bincount(pairs[rows], minlength=classes * classes)
            return _COUNTED[metric](table.reshape(classes, classes).astype(np.float64))

        return counted
    return lambda rows: measure([metric], kind, outputs[rows], labels[rows])[metric]


VARIANT_METRICS = {
    "auprc_by_chromosome": "AUPRC by chromosome",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "auprc_macro": "AUPRC, mean of subsets",
    "auroc_macro": "AUROC, mean of subsets",
    "pairwise": "pairs in order",
}
"""Metrics by name, and as tables show them. By chromosome: the mean over chromosomes, each weighing
as many rows as it has (TraitGym); pairs are those of a positive and a negative of one match group,
ties count half; a chromosome or subset without both labels does not count."""


class _Estimate(NamedTuple):
    """A metric with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class _Part(NamedTuple):
    """Rows in the order of their scores."""

    rows: _Ints
    starts: _Ints  # index of the first row of each score
    label: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: _Ints, score: _Floats, label: npt.NDArray[np.bool_]) -> Self:
        rows = rows[np.argsort(score[rows], kind="stable")]
        new = np.append(True, np.diff(score[rows]) != 0)
        return cls(rows, np.flatnonzero(new), label[rows])

    def value(self, weight: _Floats, metric: Callable[[_Floats, _Floats], float]) -> float:
        """Compute a metric of counts (negative, positive) by rising score."""
        own = weight[self.rows]
        yes = np.add.reduceat(own * self.label, self.starts)
        no = np.add.reduceat(own * ~self.label, self.starts)
        return metric(no, yes) if no.any() and yes.any() else math.nan


def measure_variants(
    score: _Floats, label: npt.NDArray[np.bool_], chromosome: npt.ArrayLike,
    subset: npt.ArrayLike | None, group: npt.ArrayLike, resamples: int,
) -> dict[str, _Estimate]:  # fmt: skip
    """Measure scores (n,), higher for the positive, by every metric; NaN scores are left out.

    Each resample draws as many groups as there are, with replacement; the same groups are drawn for
    every score of the same rows. A group that is all alone has no pairs. Chromosomes, subsets and
    groups are names or numbers (n,).
    """
    known = np.flatnonzero(np.isfinite(score))
    group = np.unique(np.asarray(group), return_inverse=True)[1].reshape(-1)

    def parts(names: npt.ArrayLike) -> list[_Part]:
        code = np.asarray(names)
        split = [known[code[known] == number] for number in np.unique(code[known])]
        # One without both labels has no value in any resample.
        both = [rows for rows in split if label[rows].any() and not label[rows].all()]
        return [_Part.of(rows, score, label) for rows in both]

    chromosomes, whole = parts(chromosome), parts(np.zeros(len(score)))
    subsets = parts(subset) if subset is not None else []
    wins, pairs = _pairs(score, label, group, known)

    def all_of(by_group: _Floats) -> list[float]:
        weight = by_group[group]

        def mean(of: list[_Part], metric: Callable[..., float], by_rows: bool = False) -> float:
            values = np.array([part.value(weight, metric) for part in of])
            rows = np.array([weight[part.rows].sum() if by_rows else 1.0 for part in of])
            seen = ~np.isnan(values)
            return float((values * rows)[seen].sum() / rows[seen].sum()) if seen.any() else math.nan

        count = float(by_group @ pairs)
        return [
            mean(chromosomes, _auprc, True), mean(whole, _auprc),
            mean(whole, _auroc), mean(subsets, _auprc),
            mean(subsets, _auroc), float(by_group @ wins) / count if count else math.nan,
        ]  # fmt: skip

    size, rng = int(group.max()) + 1, np.random.default_rng(0)
    values = all_of(np.ones(size))
    drawn = np.array([
        all_of(np.bincount(rng.integers(0, size, size), minlength=size).astype(np.float64))
        for _ in range(resamples)
    ]).reshape(resamples, len(values))  # fmt: skip
    found = {}
    for name, value, column in zip(VARIANT_METRICS, values, drawn.T, strict=True):
        ends = [math.nan, math.nan]
        if not math.isnan(value) and not np.isnan(column).all() and resamples:
            ends = np.nanpercentile(column, [2.5, 97.5]).tolist()
        found[name] = _Estimate(value, *ends)
    return found


def _pairs(
    score: _Floats, label: npt.NDArray[np.bool_], group: _Ints, known: _Ints
) -> tuple[_Floats, _Floats]:
    """Count, by group, the pairs in the right order (ties half) and all pairs."""
    wins, pairs = (np.zeros(int(group.max()) + 1) for _ in range(2))
    order = known[np.argsort(group[known], kind="stable")]
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    for rows in np.split(order, cuts):
        if len(rows) > 1:
            apart = score[rows][label[rows]][:, None] - score[rows][~label[rows]]
            wins[group[rows[0]]] = ((np.sign(apart) + 1) / 2).sum()
            pairs[group[rows[0]]] = apart.size
    return wins, pairs

"""Baselines without a network: logistic regression on k-mer counts, and on sequence overlap.

A k-mer and its reverse complement are one feature, so both strands of a sequence look the same.
K-mers of 1 to k bases are counted as shares of the sequence's k-mers, and each feature is divided
by its standard deviation over the training rows. The strength of the penalty is chosen on the
validation rows, among nine values; test rows are scored once.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from megabase.data.labelled import LabelledSequences
from megabase.data.words import RowWords, largest_shares, one_in
from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate import metrics
from megabase.genome.kmers import canonical_kmers

__all__ = [
    "BaselineResult",
    "fit_kmers",
    "fit_overlap",
    "kmer_counts",
    "kmer_names",
    "logistic",
    "require_baseline",
]

PENALTIES = tuple(float(f"1e{power}") for power in range(-5, 4))
"""Values of C (inverse penalty) that are tried; of alpha = 1 / C for numbers."""
_ITERATIONS = 400


@dataclass(frozen=True)
class BaselineResult:
    """Outputs and metrics of a fitted baseline."""

    outputs: dict[str, npt.NDArray[np.float32]]
    """Scores of valid and test, as a model gives them: (n, K)."""
    figures: dict[str, dict[str, float]]
    """Metrics of valid and test."""
    chosen: dict[str, Any]
    """k, and the penalty."""
    parameters: int
    """Weights and offsets."""
    seconds: float
    """Time of all of it."""


@lru_cache(maxsize=16)
def _canonical(k: int) -> npt.NDArray[np.uint64]:
    """Give the packed canonical k-mers, in order."""
    every = np.arange(4**k, dtype=np.uint64)
    shifts = np.arange(k, dtype=np.uint64)[::-1] * np.uint64(2)
    codes = ((every[:, None] >> shifts) & np.uint64(3)).astype(np.uint8)
    owner = np.arange(0, codes.size, k)
    return np.unique(canonical_kmers(codes.ravel(), k)[0][owner])


def kmer_names(k: int) -> list[str]:
    """Name the features of words of exactly k bases, such as AA (for AA and TT).

    Examples
    --------
    >>> kmer_names(1)
    ['A', 'C']
    """
    return [
        "".join("ACGT"[(int(word) >> (2 * (k - 1 - i))) & 3] for i in range(k))
        for word in _canonical(k)
    ]


def kmer_counts(rows: LabelledSequences, k: int) -> Any:
    """Count canonical words of 1 to k bases.

    Parameters
    ----------
    rows
        Sequences; words with a base that is not A, C, G or T are left out.
    k
        Longest word, 1 to 8.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 (n, F): the share of each word among the sequence's words of its length.
    """
    from scipy import sparse

    n = len(rows)
    blocks: list[Any] = []
    owner = np.repeat(np.arange(n), rows.lengths)
    codes = rows.codes[rows.offsets[0] : rows.offsets[-1]]
    for size in range(1, k + 1):
        words, known = canonical_kmers(codes, size)
        row = owner[: len(words)]
        known = known & (row == owner[size - 1 : size - 1 + len(words)])
        feature = np.searchsorted(_canonical(size), words[known])
        row = row[known]
        counts = sparse.coo_matrix(
            (np.ones(len(row), dtype=np.float32), (row, feature)),
            shape=(n, len(_canonical(size))),
        ).tocsr()
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
        blocks.append(sparse.diags((1.0 / totals).astype(np.float32)) @ counts)
    return sparse.hstack(blocks, format="csr", dtype=np.float32)


def require_baseline() -> None:
    """Refuse to begin without the packages of the baseline.

    Raises
    ------
    MissingDependencyError
        Without scikit-learn and scipy (the extra suites).
    """
    try:
        import scipy.sparse  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "suites", "the k-mer baseline") from error


def fit_kmers(
    splits: Mapping[str, LabelledSequences],
    words: Sequence[int],
    metric: str,
    names: Sequence[str],
) -> BaselineResult:
    """Fit the k-mer baseline and measure it.

    Parameters
    ----------
    splits
        train, valid, test.
    words
        Longest words to try; validation chooses.
    metric
        What chooses on validation.
    names
        Metrics to report.

    Raises
    ------
    MissingDependencyError
        Without scikit-learn and scipy (the extra suites).
    """
    require_baseline()
    started = time.perf_counter()
    kind, train = splits["train"].kind, splits["train"]
    best: tuple[float, int, float, dict[str, Any], int] | None = None
    for k in words:
        counts = {name: kmer_counts(rows, k) for name, rows in splits.items()}
        scale = _deviations(counts["train"])
        features = {name: values @ scale for name, values in counts.items()}
        highest, worse = -math.inf, 0
        for penalty in PENALTIES:
            predict = _fit(features["train"], train.labels, kind, penalty)
            outputs = {name: predict(features[name]) for name in features if name != "train"}
            valid = outputs["valid"], splits["valid"].labels
            value = metrics.measure([metric], kind, *valid)[metric]
            value = value if metrics.higher_is_better(metric) else -value
            if best is None or value > best[0]:
                best = (value, k, penalty, outputs, counts["train"].shape[1] + 1)
            worse = 0 if value > highest else worse + 1
            highest = max(highest, value)
            if worse == 2:  # past the best: weaker penalties only take longer
                break
    if best is None:
        raise InputError(f"{metric} is not defined on the validation rows")
    _, k, penalty, outputs, width = best
    return BaselineResult(
        outputs=outputs,
        figures={
            name: metrics.measure(names, kind, outputs[name], splits[name].labels)
            for name in outputs
        },
        chosen={"k": k, "C": penalty},
        parameters=width * (1 if kind == "classes" and train.outputs == 2 else train.outputs),
        seconds=time.perf_counter() - started,
    )


def fit_overlap(
    splits: Mapping[str, LabelledSequences], metric: str, names: Sequence[str]
) -> BaselineResult:
    """Fit the overlap baseline on the training rows and measure it.

    For every row and class, the features are the largest share of the row's distinct 16-mers
    (either strand) that one training row of that class holds, and the square root of that share,
    which tells a little from nothing; a training row is not compared with itself. Nothing else of
    the sequence is looked at: where this baseline comes near a model, the model's metric says
    little about new sequences.

    Parameters
    ----------
    splits
        train, valid, test; labels are classes.
    metric
        What chooses the penalty on validation.
    names
        Metrics to report.

    Raises
    ------
    InputError
        For labels that are not classes, or a metric without a value on validation.
    MissingDependencyError
        Without scikit-learn and scipy (the extra suites).
    """
    require_baseline()
    started = time.perf_counter()
    train = splits["train"]
    if train.kind != "classes":
        raise InputError(
            f"the overlap baseline is for tasks with classes; these labels are of kind {train.kind}"
        )
    every = one_in(*splits.values())
    words = {name: RowWords.of(rows, every) for name, rows in splits.items()}
    features = {}
    for name, own in words.items():
        shares = largest_shares(
            own, words["train"], train.labels, train.outputs, same=name == "train"
        )
        features[name] = np.concatenate([shares, np.sqrt(shares)], axis=1)
    best: tuple[float, float, dict[str, np.ndarray]] | None = None
    for penalty in PENALTIES:
        predict = logistic(features["train"], train.labels, penalty)
        outputs = {name: predict(features[name]) for name in features if name != "train"}
        valid = outputs["valid"], splits["valid"].labels
        value = metrics.measure([metric], "classes", *valid)[metric]
        value = value if metrics.higher_is_better(metric) else -value
        if not math.isnan(value) and (best is None or value > best[0]):
            best = (value, penalty, outputs)
    if best is None:
        raise InputError(f"{metric} is not defined on the validation rows")
    _, penalty, outputs = best
    return BaselineResult(
        outputs=outputs,
        figures={
            name: metrics.measure(names, "classes", outputs[name], splits[name].labels)
            for name in outputs
        },
        chosen={"C": penalty},
        parameters=(2 * train.outputs + 1) * (1 if train.outputs == 2 else train.outputs),
        seconds=time.perf_counter() - started,
    )


def _deviations(counts: Any) -> Any:
    """Give the diagonal matrix that divides each feature by its standard deviation."""
    from scipy import sparse

    mean = np.asarray(counts.mean(axis=0)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return sparse.diags(inverse.astype(np.float32))


def _fit(features: Any, labels: npt.NDArray[Any], kind: str, penalty: float) -> Any:
    """Fit one model; give a function from features to outputs (n, K)."""
    if kind == "classes":
        return logistic(features, labels, penalty)
    columns = []
    for column in labels.T:
        known = np.flatnonzero(np.isfinite(column))
        values = column[known]
        if kind == "multi_label" and len(np.unique(values)) < 2:
            constant = np.float32(20.0 if len(values) and values[0] else -20.0)
            columns.append(lambda x, c=constant: np.full(x.shape[0], c, dtype=np.float32))
        elif kind == "multi_label":
            two = logistic(features[known], values.astype(np.int64), penalty)
            columns.append(lambda x, f=two: f(x)[:, 1])
        else:
            columns.append(_ridge(features[known], values, penalty))
    return lambda x: np.stack([column(x) for column in columns], axis=1)


def logistic(features: Any, labels: npt.NDArray[Any], penalty: float) -> Any:
    """Fit a logistic regression; give a function from features to scores (n, K).

    Parameters
    ----------
    features
        Array or sparse matrix (n, F).
    labels
        Class of each row (n,).
    penalty
        C of scikit-learn, the inverse of the penalty.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=_ITERATIONS, tol=1e-3)
    with warnings.catch_warnings():
        # The last iterations move the loss, not the answers; the penalty is chosen by validation.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)

    def predict(x: Any) -> npt.NDArray[np.float32]:
        scores = np.asarray(model.decision_function(x), dtype=np.float32)
        return np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores

    return predict


def _ridge(features: Any, values: npt.NDArray[Any], penalty: float) -> Any:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0 / penalty, solver="sparse_cg", random_state=0)
    model.fit(features, values.astype(np.float64))
    return lambda x: np.asarray(model.predict(x), dtype=np.float32)

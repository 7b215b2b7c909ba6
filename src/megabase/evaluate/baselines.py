"""Baselines that train no network: logistic regression on k-mers, overlap or embeddings.

A k-mer and its reverse complement are one feature. K-mers of 1 to k bases are counted as shares of
the sequence's k-mers, and each feature is divided by its standard deviation over the training rows.
The penalty is chosen on the validation rows, among nine values; test rows are scored once.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megabase.data.labeled import LabeledSequences
from megabase.data.leaks import RowKmers
from megabase.errors import InputError
from megabase.evaluate import metrics
from megabase.genome.alphabet import pack_kmers

_PENALTIES = tuple(float(f"1e{power}") for power in range(-5, 4))
"""Values of C (inverse penalty) that are tried; of alpha = 1 / C for numbers. From features that
hardly count to features that are hardly held back."""
_ITERATIONS = 400  # iterations of the solver: later ones move the loss, not the answers
_CERTAIN = 20.0
"""Logit of a label that has one answer in all training rows: finite, and a probability of 1."""

_Predict = Callable[[Any], npt.NDArray[np.float32]]


class _BaselineResult(NamedTuple):
    value: float
    """Of the metric that chooses, on the validation rows, more being better; -inf where it is not
    defined."""
    outputs: dict[str, npt.NDArray[np.float32]]
    """Scores of valid and test, as a model gives them: (n, K)."""
    chosen: dict[str, Any]  # k, and the penalty
    parameters: int
    metrics: dict[str, dict[str, float]]  # of valid and test
    seconds: float


@lru_cache(maxsize=16)
def _canonical(k: int) -> npt.NDArray[np.uint64]:
    every = np.arange(4**k, dtype=np.uint64)
    shifts = np.arange(k, dtype=np.uint64)[::-1] * np.uint64(2)
    codes = ((every[:, None] >> shifts) & np.uint64(3)).astype(np.uint8)
    owner = np.arange(0, codes.size, k)
    return np.unique(pack_kmers(codes.ravel(), k, canonical=True)[0][owner])


def kmer_counts(rows: LabeledSequences, k: int) -> Any:
    """Count canonical k-mers of 1 to k bases, k at most 8: float32 csr_matrix (n, F).

    Values are the share of each k-mer among the sequence's k-mers of its length; k-mers with a base
    that is not A, C, G or T are left out.
    """
    from scipy import sparse

    n = len(rows)
    blocks: list[Any] = []
    owner = np.repeat(np.arange(n), rows.lengths)
    codes = rows.codes[rows.offsets[0] : rows.offsets[-1]]
    for size in range(1, k + 1):
        kmers, known = pack_kmers(codes, size, canonical=True)
        row = owner[: len(kmers)]
        known = known & (row == owner[size - 1 : size - 1 + len(kmers)])
        feature = np.searchsorted(_canonical(size), kmers[known])
        row = row[known]
        counts = sparse.coo_matrix(
            (np.ones(len(row), dtype=np.float32), (row, feature)), shape=(n, len(_canonical(size)))
        ).tocsr()
        totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
        blocks.append(sparse.diags((1.0 / totals).astype(np.float32)) @ counts)
    return sparse.hstack(blocks, format="csr", dtype=np.float32)


def fit_baseline(
    splits: Mapping[str, LabeledSequences], lengths: Sequence[int] | None, metric: str,
    names: Sequence[str],
    embed: Callable[[LabeledSequences], npt.NDArray[np.float32]] | None = None,
) -> _BaselineResult:  # fmt: skip
    """Fit a baseline on the training rows, choose on the validation rows, measure both and test.

    With `embed` the vectors that it gives for rows, float32 (n, width), each number scaled by mean
    and standard deviation over the training rows. Else k-mer counts, with the longest k-mer chosen
    of `lengths`; with None, the overlap: for every row and class, the largest share of the row's
    distinct 16-mers (either strand) that one other training row of that class holds, and its square
    root, which tells a little from nothing. Where that one comes near a model, the model's metric
    says little about new sequences. `metric` chooses, `names` are measured. InputError where
    overlap has labels that are not classes, or a metric without a value on validation.
    """
    started = time.perf_counter()
    if embed is not None:
        vectors = {name: embed(rows) for name, rows in splits.items()}
        mean, spread = vectors["train"].mean(axis=0), vectors["train"].std(axis=0)
        for found in vectors.values():  # in place: they are the largest arrays here
            found -= mean
            found /= np.where(spread > 0, spread, 1)
        best = _choose(vectors, splits, metric, {}, patience=2)
    elif lengths is None:
        best = _choose(_overlaps(splits), splits, metric, {})
        if best.value == -math.inf:
            raise InputError(f"{metric} is not defined on the validation rows")
    else:
        # Past the best, weaker penalties only take longer.
        fits = [_choose(_words(splits, k), splits, metric, {"k": k}, patience=2) for k in lengths]
        best = max(fits, key=lambda one: one.value)
    measured = {
        name: metrics.measure(names, splits[name].kind, outputs, splits[name].labels)
        for name, outputs in best.outputs.items()
    }
    return best._replace(metrics=measured, seconds=time.perf_counter() - started)


def _words(splits: Mapping[str, LabeledSequences], k: int) -> dict[str, Any]:
    """Give k-mer counts, each divided by its standard deviation over the training rows."""
    from scipy import sparse

    found = {name: kmer_counts(rows, k) for name, rows in splits.items()}
    counts = found["train"]
    mean = np.asarray(counts.mean(axis=0)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    inverse = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    scale = sparse.diags(inverse.astype(np.float32))
    return {name: values @ scale for name, values in found.items()}


def _overlaps(splits: Mapping[str, LabeledSequences]) -> dict[str, Any]:
    train = splits["train"]
    if train.kind != "classes":
        found = f"these labels are of kind {train.kind}"
        raise InputError(f"the overlap baseline is for tasks with classes; {found}")
    kmers, found = RowKmers.of_each(splits), {}
    for name, own in kmers.items():
        shares = own.largest_shares(kmers["train"], train.labels, train.outputs)
        found[name] = np.concatenate([shares, np.sqrt(shares)], axis=1)
    return found


def _choose(
    features: Mapping[str, Any], splits: Mapping[str, LabeledSequences], metric: str,
    facts: dict[str, Any], patience: int = len(_PENALTIES),
) -> _BaselineResult:  # fmt: skip
    """Fit with every penalty until `patience` in a row are not better; choose on validation."""
    train, best, worse = splits["train"], None, 0
    columns = 1 if train.kind == "classes" and train.outputs == 2 else train.outputs
    parameters = (features["train"].shape[1] + 1) * columns
    for penalty in _PENALTIES:
        predict = _fit(features["train"], train.labels, train.kind, penalty)
        outputs = {name: predict(features[name]) for name in features if name != "train"}
        labels = splits["valid"].labels
        value = metrics.measure([metric], train.kind, outputs["valid"], labels)[metric]
        value = value if metrics.higher_is_better(metric) else -value
        value = -math.inf if math.isnan(value) else value
        worse += 1
        if best is None or value > best.value:
            chosen, worse = {**facts, "C": penalty}, 0
            best = _BaselineResult(value, outputs, chosen, parameters, {}, 0.0)
        if worse == patience:
            break
    assert best is not None
    return best


def _fit(features: Any, labels: npt.NDArray[Any], kind: str, penalty: float) -> _Predict:
    """Fit one model; give a function from features to outputs (n, K)."""
    if kind == "classes":
        return _logistic(features, labels, penalty)
    columns = []
    for column in labels.T:
        known = np.flatnonzero(np.isfinite(column))
        values = column[known]
        if kind == "multi_label" and len(np.unique(values)) < 2:
            constant = np.float32(_CERTAIN if len(values) and values[0] else -_CERTAIN)
            columns.append(lambda x, c=constant: np.full(x.shape[0], c, dtype=np.float32))
        elif kind == "multi_label":
            two = _logistic(features[known], values.astype(np.int64), penalty)
            columns.append(lambda x, f=two: f(x)[:, 1])
        else:
            columns.append(_ridge(features[known], values, penalty))
    return lambda x: np.stack([column(x) for column in columns], axis=1)


def _logistic(features: Any, labels: npt.NDArray[Any], penalty: float) -> _Predict:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, max_iter=_ITERATIONS, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)

    def predict(x: Any) -> npt.NDArray[np.float32]:
        scores = np.asarray(model.decision_function(x), dtype=np.float32)
        return np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores

    return predict


def _ridge(features: Any, values: npt.NDArray[Any], penalty: float) -> _Predict:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0 / penalty, solver="sparse_cg", random_state=0)
    model.fit(features, values.astype(np.float64))
    return lambda x: np.asarray(model.predict(x), dtype=np.float32)

"""What copying alone answers: logistic regression on how much of a row stands in a training row.

For every row and class, the feature is the largest share of the row's distinct 16-mers (either
strand) that one training row of that class holds, and the square root of that share, which tells a
little from nothing; a training row is not compared with itself. Nothing else of the sequence is
looked at. Where this comes near to a model's figure, the figure says little about new sequences.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from megabase.data.labelled import LabelledSequences
from megabase.data.words import RowWords, largest_shares, one_in
from megabase.tasks import metrics
from megabase.tasks.baselines import PENALTIES, BaselineResult, logistic, require_baseline
from megabase.tasks.benchmark_config import BenchmarkConfig
from megabase.tasks.suites.base import SuiteError, Task

__all__ = ["check_copies", "fit_copies"]


def check_copies(config: BenchmarkConfig, task: Task | None = None) -> None:
    """Refuse the baseline of copies where there are no classes, or no rows that it could read.

    Parameters
    ----------
    config
        The sweep.
    task
        A task of it; None for a suite that compares embeddings.

    Raises
    ------
    SuiteError
        With the name of the entry.
    """
    names = [entry.name for entry in config.entries if entry.start == "copies"]
    if names and task is None:
        raise SuiteError(
            f"{names[0]}: copies looks for test rows in training rows, and {config.suite} compares "
            "embeddings; leave it out"
        )
    if names and task is not None and task.kind != "classes":
        raise SuiteError(
            f"{names[0]}: copies answers tasks with classes; the labels of {task.name} are of "
            f"kind {task.kind}. Leave it out"
        )


def fit_copies(
    splits: Mapping[str, LabelledSequences], metric: str, names: Sequence[str]
) -> BaselineResult:
    """Fit the rule on the training rows and measure it.

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
    SuiteError
        For labels that are no classes.
    MissingDependencyError
        Without scikit-learn and scipy (the extra suites).
    """
    require_baseline()
    started = time.perf_counter()
    train = splits["train"]
    if train.kind != "classes":
        raise SuiteError(f"copies answers tasks with classes; these labels are {train.kind}")
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
        raise metrics.MetricError(f"{metric} is not defined on the validation rows")
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

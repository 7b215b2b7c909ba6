from __future__ import annotations

import numpy as np
import pytest

from megabase.benchmarking.config import BenchmarkConfig
from megabase.benchmarking.run import _check_overlap
from megabase.benchmarking.suites import Task
from megabase.data.labeled import LabelTable, label_splits
from megabase.errors import InputError
from megabase.evaluate.baselines import fit_baseline


def test_labels_that_are_not_classes_are_refused_with_the_name_of_the_entry() -> None:
    letters = ["".join(np.random.default_rng(i).choice(list("ACGT"), 40)) for i in range(6)]
    text = LabelTable("x.csv", letters, [("0.5",), ("1.5",)] * 3, ("value",))
    splits = label_splits({"train": text, "valid": text, "test": text}, "regression")
    config = BenchmarkConfig(suite="gue", output="out", models="kmer,overlap")
    task = Task("gue", "strength", splits, "pearson")
    with pytest.raises(InputError, match="strength, whose labels are of kind regression"):
        _check_overlap(config, task)
    with pytest.raises(InputError, match="overlap baseline is for tasks with classes"):
        fit_baseline(splits, None, "pearson", ["pearson"])
    _check_overlap(BenchmarkConfig(suite="gue", output="out", models="kmer"), task)

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry
from megabase.benchmarking.run import (
    _RECIPES,
    _finetune_settings,
    _recipe_settings,
    _with_settings,
)
from megabase.benchmarking.suites import Task
from megabase.benchmarking.suites.labeled import GENOMIC_BENCHMARKS, NUCLEOTIDE_TRANSFORMER
from megabase.data.labeled import LabelTable, label_splits
from megabase.errors import InputError
from megabase.tasks.config import FinetuneConfig
from megabase.training.run_folder import flatten

FOUND = [
    (file.stem, task)
    for file in sorted(_RECIPES.glob("*.yaml"))
    for task in yaml.safe_load(file.read_text())
]


@pytest.mark.parametrize(("suite", "task"), FOUND)
def test_every_recipe_is_settings_of_finetuning(suite: str, task: str) -> None:
    variants = yaml.safe_load((_RECIPES / f"{suite}.yaml").read_text())[task]
    assert variants
    for name, variant in variants.items():
        assert variant["source"], name
        settings = {k: v for k, v in variant.items() if k not in ("source", "for")}
        base = FinetuneConfig(train="x", output="y", family="hyenadna")
        run = _with_settings(base, settings)
        assert run.optim.lr == flatten(settings)["optim.lr"]


def task_of(suite: str, name: str) -> Task:
    rows = LabelTable("t", ["ACGT", "GGGG"], [("a",), ("b",)], ("label",))
    return Task(
        suite=suite, name=name, metric="accuracy", splits=label_splits({"train": rows}, "classes"),
        settings={"table.max_length": 251},
    )  # fmt: skip


def test_every_published_data_set_has_one() -> None:
    for suite, names, variant in (
        (
            "genomic-benchmarks",
            set(GENOMIC_BENCHMARKS) - {"drosophila_enhancers_stark"},
            "hyenadna",
        ),
        ("nucleotide-transformer", NUCLEOTIDE_TRANSFORMER, "caduceus"),
    ):
        assert all(_recipe_settings(variant, task_of(suite, name)) for name in names)


def test_what_is_given_wins_over_the_recipe() -> None:
    task = task_of("genomic-benchmarks", "human_nontata_promoters")
    config = BenchmarkConfig(suite="gue", output="o", settings={"epochs": 3}, recipe="caduceus_ph")
    entry = ModelEntry(name="m", start="caduceus", settings={"optim.lr": "5e-4"})
    run = _finetune_settings(config, task, entry, {"head.freeze": True})
    assert (run.epochs, run.optim.lr, run.optim.schedule) == (3, 5e-4, "published")
    assert (run.global_batch, run.table.max_length) == (256, 251)
    assert run.head.strand_average
    assert run.head.freeze
    with pytest.raises(InputError, match="no recipe 'nope'; it has hyenadna"):
        _recipe_settings("nope", task)
    with pytest.raises(InputError, match="no recipe"):
        _recipe_settings("default", replace(task, suite="table", name="mine"))

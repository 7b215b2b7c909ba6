from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry, flatten
from megabase.benchmarking.models import (
    RECIPES,
    _read_recipe,
    _with_settings,
    finetune_settings,
    recipe_settings,
)
from megabase.benchmarking.suites.base import Task
from megabase.benchmarking.suites.labeled import GENOMIC_BENCHMARKS, NUCLEOTIDE_TRANSFORMER
from megabase.data.labeled import LabelTable, label_splits
from megabase.errors import InputError
from megabase.tasks.config import FinetuneConfig

FOUND = [
    (file.stem, task)
    for file in sorted(RECIPES.glob("*.yaml"))
    for task in yaml.safe_load(file.read_text())
]


@pytest.mark.parametrize(("suite", "task"), FOUND)
def test_every_recipe_is_settings_of_finetuning(suite: str, task: str) -> None:
    variants = _read_recipe(suite, task)
    assert variants
    for name, variant in variants.items():
        assert variant["source"], name
        settings = {k: v for k, v in variant.items() if k not in ("source", "for")}
        base = FinetuneConfig(train="x", output="y", family="hyenadna")
        run = _with_settings(base, settings)
        assert run.optim.lr == flatten(settings)["optim.lr"]


def test_every_published_data_set_has_one() -> None:
    assert all("default" in _read_recipe("genomic-benchmarks", name) for name in GENOMIC_BENCHMARKS)
    assert all(
        "caduceus" in _read_recipe("nucleotide-transformer", name)
        for name in NUCLEOTIDE_TRANSFORMER
    )


def test_what_is_given_wins_over_the_recipe() -> None:
    rows = LabelTable("t", ["ACGT", "GGGG"], [("a",), ("b",)], ("label",))
    task = Task(
        suite="genomic-benchmarks", name="human_nontata_promoters", metric="accuracy",
        splits=label_splits({"train": rows}, "classes"),
        settings={"table.max_length": 251},
    )  # fmt: skip
    recipe = recipe_settings("caduceus_ph", task)
    config = BenchmarkConfig(suite="gue", output="o", settings={"epochs": 3})
    entry = ModelEntry(name="m", start="caduceus", settings={"optim.lr": "5e-4"})
    run = finetune_settings(config, task, entry, recipe=recipe, chosen={"head.freeze": True})
    assert (run.epochs, run.optim.lr, run.optim.schedule) == (3, 5e-4, "published")
    assert (run.global_batch, run.table.max_length) == (256, 251)
    assert run.head.strand_average
    assert run.head.freeze
    with pytest.raises(InputError, match="no recipe 'nope'; it has default, hyenadna"):
        recipe_settings("nope", task)
    with pytest.raises(InputError, match="no recipe"):
        recipe_settings("default", replace(task, suite="table", name="mine"))

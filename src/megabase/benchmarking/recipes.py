"""Recipes of the published tables: settings of fine-tuning by data set and by source.

One YAML file for each suite, ``megabase/recipes/benchmarks/SUITE.yaml``. Its keys are tasks, or
``*`` for every task of the suite; those of a task are variants (default, hyenadna, caduceus_ph,
...). A variant holds settings by nested or dotted name, a line ``source`` (where they come from)
and a line ``for`` (which models they are for).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megabase.benchmarking.suites.base import Task
from megabase.errors import InputError

__all__ = ["RECIPES", "read_recipe", "recipe_settings"]

RECIPES = Path(__file__).parents[1] / "recipes" / "benchmarks"
"""Folder of the recipes."""


def read_recipe(suite: str, task: str) -> dict[str, dict[str, Any]]:
    """Read the variants of a task; empty when it has no recipe."""
    import yaml

    file = RECIPES / f"{suite}.yaml"
    tasks = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return {**tasks.get("*", {}), **tasks.get(task, {})}


def recipe_settings(name: str | None, task: Task) -> dict[str, Any]:
    """Give the settings of a variant for a task.

    Raises
    ------
    InputError
        When the task has no such variant.
    """
    if name is None:
        return {}
    variants = read_recipe(task.suite, task.name)
    if name not in variants:
        held = ", ".join(variants) or "none"
        raise InputError(f"{task.suite} {task.name} has no recipe {name!r}; it has {held}")
    return {key: value for key, value in variants[name].items() if key not in ("source", "for")}

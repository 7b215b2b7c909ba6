"""From an entry of a sweep to the settings of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry
from megabase.benchmarking.suites.base import Task
from megabase.errors import ConfigError, InputError
from megabase.tasks.config import FinetuneConfig
from megabase.training.run_folder import flatten

RECIPES = Path(__file__).parents[1] / "recipes" / "benchmarks"
"""One YAML file for each suite: task (or ``*``: all), then variant, then settings of fine-tuning
and lines ``source`` (where they come from) and ``for`` (which models they are for)."""
DEFAULTS: dict[str, Any] = {"epochs": 10, "global_batch": 64, "log_every": 50}
"""What every model takes when nothing else is said, beside the defaults of fine-tuning."""
_NOT_SET = ("train", "valid", "test", "output", "seed", "resume", "overwrite", "force")
"""Fields of fine-tuning that the sweep itself fills in: a recipe cannot."""


def check_entry(config: BenchmarkConfig, entry: ModelEntry) -> None:
    """Check that a model exists and its settings are known, before anything is read or written."""
    base = FinetuneConfig(train="train", output="output", **entry.model_fields())
    first = {name: values[0] for name, values in entry.tune.items() if values}
    common = {**flatten(config.settings), **flatten(entry.settings), **first}
    for own in ({}, *config.task_settings.values(), *entry.task_settings.values()):
        settings = {**common, **flatten(own)}
        settings.pop("warmup", None)
        _with_settings(base, settings)


def open_entry(entry: ModelEntry, kinds: Sequence[str]) -> Any:
    """Load a model, or build it with fresh weights, as the first of these kinds that it can be."""
    import torch

    from megabase.models.auto import load_config, load_model
    from megabase.models.families import FAMILIES, family_of
    from megabase.models.presets import find_preset

    start = entry.model_fields()
    if unknown := sorted(set(entry.settings) - {"overrides"}):
        raise InputError(f"{entry.name}: no model is trained, so {unknown[0]} has no meaning")
    torch.manual_seed(0)
    folder = None
    if "model" in start:
        folder = None if start["model"] == "default" else start["model"]
        settings = load_config(folder)
        family = family_of(settings.model_type)
    else:
        name = start.get("family") or find_preset(start["preset"]).family
        family = FAMILIES[name]
        fields = dict(find_preset(start["preset"]).config) if "preset" in start else {}
        settings = family.config_class()(**{**fields, **entry.settings.get("overrides", {})})
    kind = next((kind for kind in kinds if family and kind in family.classes()), None)
    if family is None or kind is None:
        raise InputError(f"{entry.name} cannot be opened as {' or '.join(kinds)}")
    if "model" in start and not start.get("from_scratch"):
        return load_model(folder, kind).eval()
    return family.classes()[kind](settings).eval()  # pyright: ignore[reportArgumentType]


def _with_settings(config: FinetuneConfig, settings: Mapping[str, Any]) -> FinetuneConfig:
    """Set fields by dotted name; a ConfigError for a name that fine-tuning does not have."""
    # An empty table changes nothing.
    given = {name: value for name, value in flatten(settings).items() if value != {}}
    for name in _NOT_SET:
        if name in given:
            raise ConfigError(f"{name} is not for settings: the sweep itself fills it in")
    return config.with_values(given, "settings: ")


def finetune_settings(
    config: BenchmarkConfig, task: Task, entry: ModelEntry, chosen: Mapping[str, Any]
) -> FinetuneConfig:
    """Build the settings of one run; files, folder and seed are filled in by the runner.

    What is said later wins: defaults, the data's needs, the recipe, the sweep, the entry (each with
    what it says of all tasks before what it says of this one), what tuning chose.
    """
    metric = task.metric if task.kind != "multi_label" else "auroc"
    base = FinetuneConfig(train="train", output="output", **entry.model_fields())
    settings: dict[str, Any] = {**DEFAULTS, "monitor": metric, "table.kind": task.kind}
    settings["metrics"] = [metric, *(name for name in task.metrics if name != metric)]
    for more in (
        task.settings, _recipe_settings(config.recipe, task),
        config.settings, config.task_settings.get(task.name, {}),
        entry.settings, entry.task_settings.get(task.name, {}), chosen,
    ):  # fmt: skip
        settings.update(flatten(more))
    _warm_up(settings, int(task.splits["train"].lengths.max()))
    # The runner writes the rows of every split itself, under these names.
    columns = task.splits["train"].text.columns
    settings["table.sequence"] = "sequence"
    settings["table.label"] = None if columns == ("label",) else list(columns)
    return _with_settings(base, settings)


def _warm_up(settings: dict[str, Any], length: int) -> None:
    """Turn a list of warm-up lengths into stages: half of the epochs for all of them together."""
    wanted = settings.pop("warmup", None) or []
    shorter = sorted({int(w) for w in wanted if int(w) < length})
    if not shorter or "stages" in settings:
        return
    half = float(settings["epochs"]) / 2
    shares = [(w, half / len(shorter)) for w in shorter]
    settings["stages"] = [
        {"length": w, "epochs": epochs, "micro_batch": max(1, 65_536 // w)}
        for w, epochs in (*shares, (length, half))
    ]


def _recipe_settings(name: str | None, task: Task) -> dict[str, Any]:
    """Give the settings of a variant for a task; an InputError when it has no such variant."""
    if name is None:
        return {}
    import yaml

    file = RECIPES / f"{task.suite}.yaml"
    tasks = yaml.safe_load(file.read_text()) if file.is_file() else {}
    variants = {**tasks.get("*", {}), **tasks.get(task.name, {})}
    if name not in variants:
        held = ", ".join(variants) or "none"
        raise InputError(f"{task.suite} {task.name} has no recipe {name!r}; it has {held}")
    return {key: value for key, value in variants[name].items() if key not in ("source", "for")}

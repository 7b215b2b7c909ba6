"""The verbs that train and compare models: each takes settings, or a recipe, and gives a run."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from megabase.errors import ConfigError
from megabase.untrusted import parse_yaml, read_text, shown

if TYPE_CHECKING:
    from megabase.api import Model
    from megabase.benchmarking.config import BenchmarkConfig
    from megabase.tasks.config import FinetuneConfig, InContextConfig, PretrainConfig, PromptConfig

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path
    """Run folder."""
    result: Any
    """What the run came to: a record of the verb, also in ``result.json``."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test rows, or of the validation rows where there are no test rows."""
        return self.result.test or self.result.valid

    @cached_property
    def model(self) -> Model:
        """The model that was measured: the best on validation, or the last one."""
        from megabase.api import load

        return load(self.folder)


def pretrain(config: PretrainConfig | str | Path) -> Run:
    """Pretrain a language model on a genome, from settings or a recipe (YAML)."""
    from megabase.tasks import pretrain as task
    from megabase.tasks.config import PretrainConfig

    settings = _settings(config, PretrainConfig)
    return Run(Path(settings.output), task.pretrain(settings))


def finetune(config: FinetuneConfig | str | Path) -> Run:
    """Fine-tune a model on labeled sequences, from settings or a recipe (YAML)."""
    from megabase.tasks import finetune as task
    from megabase.tasks.config import FinetuneConfig

    settings = _settings(config, FinetuneConfig)
    return Run(Path(settings.output), task.finetune(settings))


def prompt(config: PromptConfig | str | Path) -> Run:
    """Tune a soft prompt for a frozen model, from settings or a recipe (YAML)."""
    from megabase.tasks.config import PromptConfig
    from megabase.tasks.prompt import learn_prompt

    settings = _settings(config, PromptConfig)
    return Run(Path(settings.output), learn_prompt(settings))


def icl(config: InContextConfig | str | Path) -> Run:
    """Measure few-shot in-context classification, from settings or a recipe (YAML)."""
    from megabase.tasks.config import InContextConfig
    from megabase.tasks.in_context import in_context

    settings = _settings(config, InContextConfig)
    return Run(Path(settings.output), in_context(settings))


def benchmark(config: BenchmarkConfig | str | Path) -> pl.DataFrame:
    """Measure models on a benchmark suite; give the table, one row for each model and task."""
    from megabase.benchmarking.config import BenchmarkConfig
    from megabase.benchmarking.run import run_benchmark
    from megabase.benchmarking.table import lines, read_records, write_tables

    settings = _settings(config, BenchmarkConfig)
    run_benchmark(settings)
    output = Path(settings.output)
    records = read_records(output)
    order = [entry.name for entry in settings.entries]
    write_tables(output, lines(records, order, settings.bootstrap), records)
    return pl.read_parquet(output / "summary.parquet")


def _settings(config: Any, kind: type[_Config]) -> _Config:
    """Give settings as they are, or read a recipe."""
    if isinstance(config, kind):
        return config
    if not isinstance(config, str | Path):
        raise ConfigError(f"expected {kind.__name__} or the path of a recipe, found {config!r}")
    path = Path(config)
    return _make(kind, parse_yaml(read_text(path, ConfigError), path, ConfigError), str(path), "")


def _make(kind: Any, values: Any, path: str, group: str) -> Any:
    """Make settings of a mapping, those below them too."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected fields of {kind.__name__}, found {shown(values)}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {group}{near[0]}?" if near else ""
            raise ConfigError(f"{path}: there is no field {group}{name}{hint}")
        hint = hints[name]
        rows = next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), None)
        if dataclasses.is_dataclass(hint):
            value = _make(hint, value, path, f"{group}{name}.")
        elif rows is not None and isinstance(value, list):
            value = tuple(
                _make(rows, row, path, f"{group}{name}.") if isinstance(row, Mapping) else row
                for row in value
            )
        made[name] = value
    return kind(**made)

"""The verbs that train and compare models: each takes settings, or a recipe, and gives a run.

``on_record`` is called with each record of ``metrics.jsonl`` as it is written, in the first
process: a dictionary whose ``kind`` is ``train``, ``validation``, ``skipped`` or ``checkpoint``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from megabase.benchmarking.config import BenchmarkConfig
from megabase.errors import ConfigError
from megabase.settings import RunConfig, Settings
from megabase.tasks.config import FinetuneConfig, InContextConfig, PretrainConfig, PromptConfig
from megabase.training.logging import Listener, RunLog
from megabase.untrusted import parse_yaml, read_text

if TYPE_CHECKING:
    from megabase.api import Model

_Config = TypeVar("_Config", bound=Settings)


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    folder: Path
    """Run folder."""
    result: Any
    """What the run came to: a record of the verb, also in ``result.json``."""
    frozen: str | None = None
    """Model that the run left as it was: under a soft prompt, or asked with demonstrations."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test rows, or of the validation rows where there are no test rows.

        Of pretraining ``loss`` (nats a token) and ``perplexity`` of the best validation. Empty when
        nothing was measured.
        """
        return self.result.test or self.result.valid

    @cached_property
    def model(self) -> "Model":
        """The model that was measured: the best on validation, or the last one."""
        from megabase.api import load

        if self.frozen is None:
            return load(self.folder)
        learned = self.folder / "prompt"
        return load(self.frozen, prompt=learned if learned.is_dir() else None)


def pretrain(config: PretrainConfig | str | Path, on_record: Listener | None = None) -> Run:
    """Pretrain a language model on a genome, from settings or a recipe (YAML)."""
    return _ran(_settings(config, PretrainConfig), on_record)


def finetune(config: FinetuneConfig | str | Path, on_record: Listener | None = None) -> Run:
    """Fine-tune a model on labeled sequences, from settings or a recipe (YAML)."""
    return _ran(_settings(config, FinetuneConfig), on_record)


def prompt(config: PromptConfig | str | Path, on_record: Listener | None = None) -> Run:
    """Tune a soft prompt for a frozen model, from settings or a recipe (YAML)."""
    settings = _settings(config, PromptConfig)
    return _ran(settings, on_record, settings.model)


def icl(config: InContextConfig | str | Path, on_record: Listener | None = None) -> Run:
    """Measure few-shot in-context classification, from settings or a recipe (YAML)."""
    settings = _settings(config, InContextConfig)
    return _ran(settings, on_record, None if settings.tune == "all" else settings.model)


def sweep(
    config: RunConfig, values: Mapping[str, Any], draws: int | None = None, draw_seed: int = 0,
    on_record: Listener | None = None,
) -> pl.DataFrame:  # fmt: skip
    """Run combinations of values of some settings; give the table, a row for each run.

    Each has a folder in the output folder. All are planned before the first one starts. With
    ``resume``, finished runs are kept and the others go on or start. A run whose loss is not finite
    is a row without metrics.

    Parameters
    ----------
    config
        Settings of any task, which the values change.
    values
        Field, by dotted name -> list of values, or, to draw from, ``{"low": 1e-4, "high": 1e-2}``
        (both included; whole numbers when both are; even in the logarithm with ``"log": True``).
    draws
        Number of different combinations to draw; None runs all.
    draw_seed
        Seed of the draws; a larger number of draws begins with the same ones.

    Raises
    ------
    MegabaseError
        For a field that does not exist or cannot have a value, and for what the task refuses.
    """
    from megabase.tasks import sweep as task

    with RunLog.heard_by(on_record):
        return task.sweep(config, values, draws, draw_seed).table


def benchmark(config: BenchmarkConfig | str | Path) -> pl.DataFrame:
    """Measure models on a benchmark suite; give the table, one row for each model and task."""
    from megabase.benchmarking.run import run_benchmark
    from megabase.benchmarking.table import Tables

    settings = _settings(config, BenchmarkConfig)
    run_benchmark(settings)
    output = Path(settings.output)
    order = [entry.name for entry in settings.entries]
    Tables(output, order=order, resamples=settings.bootstrap).write(output)
    return pl.read_parquet(output / "summary.parquet")


def _ran(settings: RunConfig, on_record: Listener | None, frozen: str | None = None) -> Run:
    from megabase.tasks.sweep import verb_of

    with RunLog.heard_by(on_record):
        return Run(Path(settings.output), verb_of(settings)(settings), frozen)


def _settings(config: Any, kind: type[_Config]) -> _Config:
    if isinstance(config, kind):
        return config
    if not isinstance(config, str | Path):
        raise ConfigError(f"expected {kind.__name__} or the path of a recipe, found {config!r}")
    path = Path(config)
    values = parse_yaml(read_text(path, ConfigError), path, ConfigError)
    return kind.of(values, f"{path}: ")

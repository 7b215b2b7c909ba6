"""Sweeps: a run for every combination of values of some settings, and one table of them."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console

from megabase.errors import ConfigError, MegabaseError, NotFiniteError
from megabase.evaluate.metrics import higher_is_better
from megabase.genome.files import atomic_file, write_whole
from megabase.settings import RunConfig
from megabase.tasks.config import FinetuneConfig, PretrainConfig, PromptConfig, to_yaml
from megabase.tasks.finetune import finetune
from megabase.tasks.in_context import in_context
from megabase.tasks.pretrain import pretrain
from megabase.tasks.prompt import learn_prompt
from megabase.tasks.run import RunResult
from megabase.training.run_folder import RunFolder, check_run
from megabase.untrusted import shown

_OWN = ("output", "resume", "overwrite", "force")
"""Settings that the sweep itself fills in, or that change no number."""
_LONGEST = 80  # letters of the name of a run; longer ones are cut, and a hash tells them apart
_TRIES = 1000  # draws for each combination that is wanted, before there seem to be no others


class Sweep(NamedTuple):
    """What became of the runs, in order."""

    results: list[RunResult]
    table: pl.DataFrame
    """A row for each run: the values, ``run`` (its folder), ``trained_steps``, ``trained_tokens``,
    ``minutes`` of training, ``best_step``, metrics such as ``valid_loss``, ``notes``."""
    summary: pl.DataFrame
    """A row for each combination without the seeds: ``runs``, sums of minutes and tokens, means of
    the metrics and their standard deviations (``valid_loss_sd``)."""

    @property
    def monitor(self) -> str:
        """The metric that chose the checkpoints; the loss where there is none."""
        known = (getattr(one, "monitor", "none") for one in self.results)
        return next((name for name in known if name != "none"), "loss")

    @property
    def best(self) -> RunResult | None:
        """The best run by that metric; None without validation."""
        name = self.monitor
        found = [one for one in self.results if math.isfinite(one.valid.get(name, math.nan))]
        better = max if higher_is_better(name) else min
        return better(found, key=lambda one: one.valid[name], default=None)


def verb_of(config: RunConfig) -> Callable[..., Any]:
    """Give the function that runs settings of a kind."""
    verbs: Any = {FinetuneConfig: finetune, PromptConfig: learn_prompt, PretrainConfig: pretrain}
    return verbs.get(type(config), in_context)


def sweep(
    config: RunConfig, values: Mapping[str, Any], draws: int | None = None, draw_seed: int = 0, *,
    dry_run: bool = False, console: Console | None = None,
) -> Sweep:  # fmt: skip
    """Run combinations as :func:`megabase.runs.sweep`; the tables are written after every run.

    A signal ends the sweep: the last result is that of the run it stopped.
    """
    verb = verb_of(config)
    output, runs = Path(config.output), dict[str, tuple[dict[str, Any], RunConfig]]()
    for given in _combinations(values, draws, draw_seed):
        one = config.with_values(given, "sweep: ")
        held = {name: _value_of(one, name) for name in given}
        name = _name(held)
        resume = config.resume and (output / name / "config.yaml").is_file()
        runs[name] = held, replace(one, output=str(output / name), resume=resume)
        check_run(runs[name][1], to_yaml(runs[name][1]))
    for name, (_, one) in runs.items():
        try:
            if dry_run or not one.resume:
                verb(one, dry_run=True, console=console if dry_run else None)
        except MegabaseError as error:
            error.args = (f"{name}: {error}",)
            raise
    done = Sweep([], pl.DataFrame(), pl.DataFrame())
    if dry_run:
        return done
    with RunFolder(output).owned():
        for _, one in runs.values():
            try:
                result = verb(one, console=console)
            except NotFiniteError as error:
                lacking: Any = {"valid": {}, "test": {}, "signal": None}
                result = RunResult(run=one.output, notes=[str(error)], **lacking)
            assert result is not None  # of a dry run alone
            done.results.append(result)
            if result.signal is not None:
                break
            ran = zip((held for held, _ in runs.values()), done.results, strict=False)
            done = Sweep(done.results, *_tables(list(ran)))
            with atomic_file(output / "results.parquet", overwrite=True) as file:
                done.table.write_parquet(file)
            write_whole(output / "results.tsv", done.table.write_csv(separator="\t"))
            if "seed" in values:
                write_whole(output / "summary.tsv", done.summary.write_csv(separator="\t"))
    return done


def _combinations(
    values: Mapping[str, Any], draws: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Give the values of each run; a ConfigError for what cannot be tried."""
    if not values:
        raise ConfigError("sweep: there is no field; give values, such as {optim.lr: [1e-3, 6e-4]}")
    for name, tried in values.items():
        if name in _OWN:
            raise ConfigError(f"sweep: {name} is not for values: the sweep itself fills it in")
        if isinstance(tried, Mapping) and draws is not None:
            _draw(name, tried, np.random.default_rng(0))
        elif isinstance(tried, list | tuple) and not tried:
            raise ConfigError(f"sweep: {name} has no values; give at least one")
        elif not isinstance(tried, list | tuple):
            raise ConfigError(
                f"sweep: {name} is {shown(tried)}; expected a list of values of a field, such as "
                "optim.lr: [1e-3, 6e-4] (a range, {low: 1e-4, high: 1e-2}, is for draws)"
            )
    if draws is None:
        for one in itertools.product(*values.values()):
            yield dict(zip(values, one, strict=True))
        return
    if draws < 1:
        raise ConfigError(f"sweep: draws is {draws}; it must be at least 1")
    random, found = np.random.default_rng(seed), dict[str, dict[str, Any]]()
    for _ in range(_TRIES * draws):
        one = {name: _draw(name, tried, random) for name, tried in values.items()}
        found.setdefault(str(one), one)
        if len(found) == draws:
            break
    if len(found) < draws:
        raise ConfigError(
            f"sweep: draws is {draws}, and there are {len(found)} combinations; take fewer, or "
            "leave it out to run all"
        )
    yield from found.values()


def _draw(name: str, tried: Any, random: np.random.Generator) -> Any:
    """Draw one of several values, or a number of a range: of three digits, unless it is whole."""
    if not isinstance(tried, Mapping):
        return tried[random.integers(len(tried))]
    try:
        low, high = (float(tried[end]) for end in ("low", "high"))  # YAML takes 1e-3 for text
        if not (0 if tried.get("log") else -np.inf) < low < high < np.inf:
            raise ValueError
        if set(tried) - {"low", "high", "log"} or not isinstance(tried.get("log", False), bool):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"sweep: {name} is {dict(tried)}; expected low below high (above 0 with log: true), "
            "such as {low: 1e-4, high: 1e-2, log: true}"
        ) from None
    whole = isinstance(tried["low"], int) and isinstance(tried["high"], int)
    ends = np.array([low - whole / 2, high + whole / 2])
    log = tried.get("log", False)
    drawn = np.exp(random.uniform(*np.log(ends))) if log else random.uniform(*ends)
    return min(max(round(drawn), int(low)), int(high)) if whole else float(f"{drawn:.3g}")


def _value_of(config: Any, name: str) -> Any:
    """Give a field by dotted name, as the settings hold it."""
    for part in name.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config


def _text(value: Any) -> str:
    """Write a value on one line: words as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=vars)


def _name(values: Mapping[str, Any]) -> str:
    """Name a run after its values: always the same name for the same ones, and no other's."""
    text = "-".join(f"{name}-{_text(value)}" for name, value in values.items())
    name = re.sub(r"[^\w.+-]+", "_", text)[:_LONGEST]
    return name if name == text else f"{name}-{sha256(text.encode()).hexdigest()[:8]}"


def _tables(
    runs: Sequence[tuple[Mapping[str, Any], RunResult]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Give the table and the summary of a :class:`Sweep`."""
    columns: dict[str, list[Any]] = {}
    for name in runs[0][0]:
        column = [values[name] for values, _ in runs]
        kinds = {type(value) for value in column if value is not None}
        plain = kinds <= {int, float} or kinds in ({bool}, {str})
        columns[name] = column if plain else [_text(value) for value in column]
    known = [vars(one) for _, one in runs]
    columns["run"] = [Path(one["run"]).name for one in known]
    columns["trained_steps"] = [one.get("steps") for one in known]
    columns["trained_tokens"] = [one.get("trained_tokens") for one in known]
    columns["minutes"] = [one.get("training_seconds", 0.0) / 60 for one in known]
    columns["best_step"] = [one.get("best_step") for one in known]
    metrics: list[str] = []
    for split in ("valid", "test"):
        for name in dict.fromkeys(name for one in known for name in one[split]):
            columns[f"{split}_{name}"] = [one[split].get(name) for one in known]
            metrics.append(f"{split}_{name}")
    columns["notes"] = ["; ".join(one["notes"]) for one in known]
    table = pl.DataFrame(columns, strict=False)
    by = [pl.col(name) for name in runs[0][0] if name != "seed"] or [pl.lit("all").alias("setting")]
    summary = table.group_by(by, maintain_order=True).agg(
        pl.len().alias("runs"), pl.col("minutes", "trained_tokens").sum(),
        *(pl.col(name).mean() for name in metrics),
        *(pl.col(name).std().alias(f"{name}_sd") for name in metrics if "seed" in runs[0][0]),
    )  # fmt: skip
    return table, summary

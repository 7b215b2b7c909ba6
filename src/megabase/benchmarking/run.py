"""The runner: a suite, models, a protocol and seeds become runs, and runs become one table.

Every run has a folder of its own under ``OUTPUT/runs``, named by a hash of all that decides its
metrics, with a ``record.json`` once it is finished. A sweep that was stopped finds the finished
records, continues the run it was in, and goes on; the table is made from the records alone.
"""

import importlib
import itertools
import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from rich.console import Console

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry
from megabase.benchmarking.rows import Splitter, Unit
from megabase.benchmarking.suites import RECORD_FORMAT, SUITES, Suite, Task, choose_tasks
from megabase.data.labeled import ONE_STRAND, LabeledSequences
from megabase.errors import ConfigError, InputError, MissingDependencyError, RunError
from megabase.evaluate import metrics
from megabase.evaluate.baselines import fit_baseline
from megabase.genome.files import LOCK_NAME, Lock, atomic_file, without_nan, write_json
from megabase.inference.embedding import Embedder
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.finetune import finetune
from megabase.tasks.labeled_data import digest, hash_of, start_record
from megabase.tasks.run import write_arrays
from megabase.training.process import Terminated
from megabase.training.run_folder import RunFolder, environment, flatten

_RECIPES = Path(__file__).parents[1] / "recipes" / "benchmarks"
"""One YAML file for each suite: task (or ``*``: all), then variant, then settings of fine-tuning
and lines ``source`` (where they come from) and ``for`` (which models they are for)."""
_DEFAULTS: dict[str, Any] = {"log_every": 50}
"""What every model takes when nothing else is said, beside the defaults of fine-tuning."""
_WARMED_EPOCHS = 10.0  # epochs of a run with warm-up lengths that names none
_NOT_SET = ("train", "valid", "test", "output", "seed", "resume", "overwrite", "force")
"""Fields of fine-tuning that the sweep itself fills in: a recipe cannot."""


@dataclass(frozen=True)
class Job:
    """One run: what decides its metrics."""

    task: Task
    entry: ModelEntry
    unit: Unit
    splits: Mapping[str, LabeledSequences]
    rows_digest: str
    apart: npt.NDArray[np.bool_]  # test rows that meet no training and no validation row
    before: Mapping[str, Any] | None = None  # record of the run that this one continues


def run_benchmark(
    config: BenchmarkConfig, *, console: Console | None = None,
    done: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run a sweep and give its records, in order.

    `done` is called after every finished run, to bring the table up to date. MegabaseError for
    data, models or settings that cannot be used, before the first run where possible;
    KeyboardInterrupt when a signal ended it after a checkpoint: ``resume`` continues.
    """
    output = Path(config.output)
    folder = RunFolder(output)
    Lock(output / LOCK_NAME, output).refuse_used()
    folder.refuse_taken(resume=config.resume, overwrite=config.overwrite)
    if folder.taken and not (output / "benchmark.json").is_file():
        raise RunError(f"output folder {output} holds no sweep; name another folder")
    with folder.owned():
        module = f"megabase.benchmarking.suites.{SUITES[config.suite][0]}"
        suite: Suite = importlib.import_module(module).SUITE
        names = suite.names(config)
        if config.task_settings or any(entry.task_settings for entry in config.entries):
            # Settings of a task that is not run this time are not a mistake.
            everything = suite.names(replace(config, tasks=[]))
            config = _settings_by_task(config, list(dict.fromkeys([*names, *everything])))
        suite.require()
        for entry in config.entries:
            if entry.is_baseline:
                MissingDependencyError.load(
                    "sklearn", "suites", "the k-mer baseline", "scikit-learn"
                )
                entry.check_embedded()
            else:
                _check_entry(config, entry)
        if suite.fit is not None or suite.load is None:
            _check_overlap(config)
        _start(config, output)
        sweep = _Sweep(config, output, suite, console, done)
        if suite.load is None:
            return [one for name in names for one in suite.run(config, name, output, sweep.show)]
        return [record for name in names for record in sweep.run(suite.load(config, name))]


def _settings_by_task(config: BenchmarkConfig, tasks: Sequence[str]) -> BenchmarkConfig:
    """Name the tasks of ``task_settings`` in full, out of all of the suite's data."""

    def named(given: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, settings in given.items():
            (task,) = choose_tasks(tasks, [name], f"task_settings: {config.suite}")
            found[task] = {**found.get(task, {}), **flatten(settings)}
        return found

    entries = [replace(entry, task_settings=named(entry.task_settings)) for entry in config.entries]
    return replace(config, task_settings=named(config.task_settings), models=entries)


def _start(config: BenchmarkConfig, output: Path) -> None:
    if config.overwrite:
        for name in ("runs", "data", "leaks", "embeddings"):
            shutil.rmtree(output / name, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    starts: dict[str, Any] = {}
    for entry in config.entries:
        if not entry.is_baseline:
            starts[entry.name] = start_record(_base(entry).trained)
    values = {
        "format": RECORD_FORMAT, "config": asdict(config), "environment": environment(),
        "starts": starts,
    }  # fmt: skip
    if config.resume:
        RunFolder(output).refuse_changed(values, "benchmark.json")
    write_json(output / "benchmark.json", json.loads(json.dumps(values, default=str)))


def _check_overlap(config: BenchmarkConfig, task: Task | None = None) -> None:
    """Refuse overlap where there are no classes, and it and embeddings where no rows are read."""
    kind, where = None, config.suite
    if task is not None:
        kind, where = task.kind, f"{task.name}, whose labels are of kind {task.kind}"
    for entry in config.entries:
        if entry.embedded is not None and task is None:
            raise InputError(
                f"{entry.name}: a linear model over embeddings reads labeled sequences, and the "
                f"suite {where} has none; leave it out"
            )
        if entry.start == "overlap" and kind != "classes":
            raise InputError(
                f"{entry.name}: overlap looks for test rows in training rows of the same class, "
                f"which does not fit {where}; leave it out"
            )


def _base(entry: ModelEntry) -> FinetuneConfig:
    """Give the settings of fine-tuning that say what the model is."""
    return FinetuneConfig(train="train", output="output", **entry.model_fields())


def _check_entry(config: BenchmarkConfig, entry: ModelEntry) -> None:
    """Check that a model exists and its settings are known, before anything is read or written."""
    base = _base(entry)
    first = {name: values[0] for name, values in entry.tune.items() if values}
    common = {**flatten(config.settings), **flatten(entry.settings), **first}
    for own in ({}, *config.task_settings.values(), *entry.task_settings.values()):
        settings = {**common, **flatten(own)}
        settings.pop("warmup", None)
        _with_settings(base, settings)


def _with_settings(config: FinetuneConfig, settings: Mapping[str, Any]) -> FinetuneConfig:
    """Set fields by dotted name; a ConfigError for a name that fine-tuning does not have."""
    # An empty table changes nothing.
    given = {name: value for name, value in flatten(settings).items() if value != {}}
    for name in _NOT_SET:
        if name in given:
            raise ConfigError(f"{name} is not for settings: the sweep itself fills it in")
    return config.with_values(given, "settings: ")


def _finetune_settings(
    config: BenchmarkConfig, task: Task, entry: ModelEntry, chosen: Mapping[str, Any]
) -> FinetuneConfig:
    """Build the settings of one run; files, folder and seed are filled in by the runner.

    What is said later wins: defaults, the data's needs, the recipe, the sweep, the entry (each with
    what it says of all tasks before what it says of this one), what tuning chose.
    """
    metric = task.metric if task.kind != "multi_label" else "auroc"
    settings: dict[str, Any] = {**_DEFAULTS, "monitor": metric, "table.kind": task.kind}
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
    return _with_settings(_base(entry), settings)


def _warm_up(settings: dict[str, Any], length: int) -> None:
    """Turn a list of warm-up lengths into stages: half of the epochs for all of them together."""
    wanted = settings.pop("warmup", None) or []
    shorter = sorted({int(w) for w in wanted if int(w) < length})
    if not shorter or "stages" in settings:
        return
    half = float(settings.get("epochs") or _WARMED_EPOCHS) / 2
    shares = [(w, half / len(shorter)) for w in shorter]
    settings["stages"] = [
        {"length": w, "epochs": epochs, "micro_batch": max(1, 65_536 // w)}
        for w, epochs in (*shares, (length, half))
    ]


def _recipe_settings(name: str | None, task: Task) -> dict[str, Any]:
    """Give the settings of a variant for a task; an InputError when it has no such variant."""
    if name is None:
        return {}
    file = _RECIPES / f"{task.suite}.yaml"
    tasks = yaml.safe_load(file.read_text()) if file.is_file() else {}
    variants = {**tasks.get("*", {}), **tasks.get(task.name, {})}
    if name not in variants:
        held = ", ".join(variants) or "none"
        raise InputError(f"{task.suite} {task.name} has no recipe {name!r}; it has {held}")
    return {key: value for key, value in variants[name].items() if key not in ("source", "for")}


class _Sweep:
    """All runs of a sweep; what several tasks need is kept here."""

    def __init__(
        self, config: BenchmarkConfig, output: Path, suite: Suite, console: Console | None,
        done: Callable[[], None] | None,
    ) -> None:  # fmt: skip
        self._config, self._output, self._fit = config, output, suite.fit
        self._console, self._done = console, done
        self._earlier: dict[tuple[str, str], Mapping[str, Any]] = {}
        """(model, unit) -> record of its run on the task before."""

    def show(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False)

    def run(self, task: Task) -> Iterator[dict[str, Any]]:
        """Run every model on a task; give a record for each run."""
        config = self._config
        if config.metric not in (None, task.metric):
            metrics.check([config.metric], task.kind)
            others = (name for name in (task.metric, *task.metrics) if name != config.metric)
            task = replace(task, metric=config.metric, metrics=tuple(others))
        _check_overlap(config, task)
        splitter = Splitter(config)
        task = splitter.checked(task, self._console)
        if config.together is not None:
            note = (
                f"rows that share at least {config.together:.0%} of their 16-mers, directly or "
                "through others, stay on one side of every split made here"
            )
            task = replace(task, notes=(*task.notes, note))
        for entry in config.entries:
            chosen: dict[str, Any] = {}
            seen: set[str] = set()
            tuning = 0.0
            folds = range(config.folds) if config.protocol == "kfold" else (None,)
            units = [Unit(seed, fold) for seed in config.seed_numbers for fold in folds]
            for number, unit in enumerate(units):
                splits = splitter.split(task, unit)
                key = hash_of({name: digest(rows) for name, rows in splits.items()})
                if entry.is_baseline and key in seen:
                    continue  # without a seed of its own: the same rows give the same metrics
                seen.add(key)
                place = (entry.name, unit.name)
                before = self._earlier.get(place) if entry.carry else None
                job = Job(task, entry, unit, splits, key, splitter.apart(splits), before)
                if number == 0 and entry.tune:
                    chosen, tuning = self._tune(job)
                record = self._record(job, chosen, tuning)
                self._earlier[place] = record
                value = record["test"].get(task.metric)
                shown = "not defined" if value is None else f"{value:.4f}"
                self.show(
                    f"{task.name}  {entry.name}  {unit.name}: {task.metric} {shown}  "
                    f"({record['seconds'] / 60:.1f} min)"
                )
                yield record
                if self._done is not None:
                    self._done()

    def _key(self, job: Job, settings: Any) -> str:
        """Name a run by a hash of all that decides its metrics."""
        config = self._config
        folds = config.folds if config.protocol == "kfold" else None
        return hash_of({
            "protocol": config.protocol, "folds": folds, "data": job.rows_digest,
            "settings": settings, "metric": job.task.metric,
        })  # fmt: skip

    def _settings(self, job: Job, chosen: Mapping[str, Any]) -> tuple[FinetuneConfig, Any]:
        """Give the settings of a run, as they are and as JSON holds them."""
        run = _finetune_settings(self._config, job.task, job.entry, chosen)
        # "force" was once a field of every run, and is part of the hash of their folders' names.
        return run, json.loads(json.dumps({**asdict(run), "force": False}, default=str))

    def _carried(
        self, before: Mapping[str, Any], run: FinetuneConfig, settings: Mapping[str, Any]
    ) -> tuple[FinetuneConfig, dict[str, Any]]:
        """Start a run from an earlier one: its settings, also as the record keeps them.

        The record names the earlier run by task and folder: where the sweep lies decides no metric.
        """
        fresh: dict[str, Any] = {
            "family": None, "preset": None, "from_scratch": False, "overrides": {}
        }  # fmt: skip
        place = self._output / "runs" / f"{before['suite']}.{before['task']}" / before["folder"]
        named = {**settings, **fresh, "model": f"{before['task']} {before['folder']}"}
        return replace(run, model=str(place.absolute()), **fresh), named

    def _record(self, job: Job, chosen: Mapping[str, Any], tuning: float) -> dict[str, Any]:
        """Run one seed of one model, or give the record of an earlier one."""
        config, task, entry, unit = self._config, job.task, job.entry, job.unit
        run: FinetuneConfig | None = None
        if self._fit is not None:
            own = asdict(getattr(config, config.suite))
            settings: Any = {**entry.settings, config.suite: own, "start": entry.start}
        elif entry.is_baseline:
            words = entry.words
            settings = {"overlap": True} if words is None else {"kmer": words}
            if entry.embedded is not None:
                settings = {"embeddings": entry.embedded, **start_record(entry.embedded)}
        else:
            run, settings = self._settings(job, chosen)
            if job.before is not None:
                run, settings = self._carried(job.before, run, settings)
        key = self._key(job, settings)
        slug = re.sub(r"[^\w.-]", "-", Path(entry.name).name)
        parent = self._output / "runs" / f"{task.suite}.{task.name}"
        folder = parent / f"{slug}-{config.protocol}-{unit.name}-{key}"
        file = folder / "record.json"
        if file.is_file():
            return json.loads(file.read_text())
        names = [task.metric, *task.metrics]
        earlier = job.before["task"] if job.before is not None else None
        carried = [f"{entry.name} continues its run of {earlier}"] if earlier else []
        if self._fit is not None:
            result = self._fit(config, job, self._output, folder)
        elif run is None:
            result = _fit_baseline(job, folder, names)
        else:
            files = _write_splits(self._output, job)
            result = _finetune(replace(run, **files, seed=unit.seed, output=str(folder)))
            result["chosen"] = dict(chosen)
        record = {
            "format": RECORD_FORMAT, "suite": task.suite, "task": task.name, "model": entry.name,
            "start": entry.start, "compare": entry.compare,
            "overrides": settings.get("overrides", {}),
            "key": hash_of(
                {"model": settings, "protocol": config.protocol, "drop": config.drop_leaks}
                | ({"resplit": config.resplit_seed} if config.resplit_seed else {})
                | ({"together": config.together} if config.together is not None else {})
            ),
            "protocol": config.protocol, "recipe": config.recipe, "seed": unit.seed,
            "fold": unit.fold, "metric": task.metric, "metrics": names, "kind": task.kind,
            "classes": list(job.splits["train"].classes), "groups": dict(task.groups),
            "official": task.official, "length": task.length,
            "published": list(task.published),
            "rows": {name: len(rows) for name, rows in job.splits.items()},
            "test_rows": digest(job.splits["test"]), "settings": settings,
            "tuning_seconds": tuning, "folder": folder.name,
            **result,
            "notes": [*task.notes, *carried, *result["notes"]],
        }  # fmt: skip
        record = without_nan(_measured_further(record, job, folder))
        write_json(file, record)
        return record

    def _tune(self, job: Job) -> tuple[dict[str, Any], float]:
        """Train every combination of a grid without the test rows; keep the best on validation."""
        best: tuple[float, dict[str, Any]] | None = None
        seconds = 0.0
        files = {**_write_splits(self._output, job), "test": None}
        tune = job.entry.tune
        for values in itertools.product(*tune.values()):
            chosen = dict(zip(tune, values, strict=True))
            run, settings = self._settings(job, chosen)
            key = self._key(job, {**settings, "tuning": True})
            folder = self._output / "runs" / f"{job.task.suite}.{job.task.name}" / f"tuning-{key}"
            file = folder / "tuned.json"
            if not file.is_file():
                result = _finetune(replace(run, **files, seed=job.unit.seed, output=str(folder)))
                write_json(file, {"chosen": chosen, **result})
            found = json.loads(file.read_text())
            seconds += found["seconds"]
            value = found["valid"].get(found["monitor"])
            sign = 1 if metrics.higher_is_better(found["monitor"]) else -1
            value = -math.inf if value is None else sign * value
            self.show(
                f"{job.task.name}  {job.entry.name}  tuning {chosen}: validation "
                f"{found['monitor']} {abs(value):.4f}"
            )
            if best is None or value > best[0]:
                best = (value, chosen)
        return ({} if best is None else best[1]), seconds


def _embed_rows(embedder: Embedder, rows: LabeledSequences) -> npt.NDArray[np.float32]:
    return embedder.pooled([rows.sequence(i) for i in range(len(rows))])[0]


def _fit_baseline(job: Job, folder: Path, names: list[str]) -> dict[str, Any]:
    """Fit k-mer counts, overlap or embeddings, and keep the outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    metric = job.task.metric if job.task.kind != "multi_label" else "auroc"
    words, model = job.entry.words, job.entry.embedded
    family, size, embed = "overlap" if words is None else "kmer", 0, None
    if model is not None:
        both = job.splits["train"].oriented() < ONE_STRAND
        embedder = Embedder(
            model, pooling="all", long="chunks", strands="both" if both else "forward"
        )
        family, size = embedder.model.config.model_type, embedder.model.num_parameters()
        embed = partial(_embed_rows, embedder)
    found = fit_baseline(job.splits, words, metric, names, embed)
    labels = {f"{name}_labels": job.splits[name].labels for name in found.outputs}
    write_arrays(folder / "outputs.npz", {**found.outputs, **labels})
    return {
        "family": family, "parameters": size + found.parameters,
        "trained_parameters": found.parameters, "seconds": found.seconds,
        "training_seconds": found.seconds, "valid": found.metrics["valid"],
        "test": found.metrics["test"], "chosen": found.chosen, "epochs": None, "steps": None,
        "notes": [],
    }  # fmt: skip


def _finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Run a fine-tuning, from its last checkpoint if it was interrupted."""
    folder = RunFolder(Path(config.output))
    started, log = ((folder.path / name).is_file() for name in ("config.yaml", "metrics.jsonl"))
    lines = folder.metrics() if started and log else []
    before = max((line.get("seconds", 0.0) for line in lines), default=0.0)
    result = finetune(replace(config, resume=started), console=None)
    if result is None or result.signal is not None:
        interrupted = result is not None and result.signal == signal.SIGINT
        raise KeyboardInterrupt if interrupted else Terminated
    names = ("family", "parameters", "trained_parameters", "training_seconds", "valid", "test",
        "epochs", "steps", "best_step", "monitor", "tokens_per_second", "notes")  # fmt: skip
    return {**{x: getattr(result, x) for x in names}, "seconds": result.seconds + before}


def _write_splits(output: Path, job: Job) -> dict[str, str]:
    """Write the rows of a run as Parquet, once for all models; give their paths."""
    folder = output / "data" / f"{job.task.suite}.{job.task.name}-{job.rows_digest}"
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for name, rows in job.splits.items():
        path = folder / f"{name}.parquet"
        paths[name] = str(path)
        if path.is_file():
            continue
        text = rows.text.take(rows.rows)
        columns = dict(zip(text.columns, zip(*text.labels, strict=True), strict=True))
        with atomic_file(path, overwrite=True) as file:
            pl.DataFrame({"sequence": text.sequences, **columns}).write_parquet(file)
    return paths


def _measured_further(record: dict[str, Any], job: Job, folder: Path) -> dict[str, Any]:
    """Add medians by group, and the metrics of the test rows apart where some are not."""
    task, count = job.task, int(job.apart.sum())
    with np.load(folder / "outputs.npz") as kept:
        outputs, labels = kept["test"], kept["test_labels"]
    medians = metrics.median_by_group("auroc", outputs, labels, task.groups) if task.groups else {}
    test = {**record["test"], **{f"median_auroc_{name}": x for name, x in medians.items()}}
    if not 0 < count < len(job.apart):
        return {**record, "test": test}
    apart = metrics.measure(record["metrics"], task.kind, outputs[job.apart], labels[job.apart])
    return {**record, "test": test, "rows_apart": count, "test_apart": apart}

"""The folder of a run: its one reader and writer.

``config.yaml`` (re-creates the run), ``environment.json``, ``data.json``, ``metrics.jsonl``,
``checkpoints/step-00000100/`` and the links ``best`` and ``last``. A folder in use is refused,
cleared only on request, and resumed with the same settings only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from megabase import __version__
from megabase.data.regions import Intervals, Regions
from megabase.errors import ConfigError, InputError, MegabaseError, RunError
from megabase.genome.files import LOCK_NAME, Lock, write_json, write_whole, writing
from megabase.genome.store import Genome
from megabase.settings import RETIRED, RunConfig
from megabase.untrusted import parse_yaml, parsing, read_json, read_text, shown

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_FILES = (
    "config.yaml", "environment.json", "data.json", "metrics.jsonl", "result.json", "outputs.npz",
    "best", "last", "evaluation.json", "evaluation-context.svg", "evaluation-baselines.svg",
    "report.html",
)  # fmt: skip
"""What a run writes, and overwriting may delete; anything else in the folder is the user's."""
_FOLDERS = ("checkpoints", "prompt", "tensorboard", "wandb")
"""Folders that a run writes; the same rule as for its files."""
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Of the launchers that start a process for each device; the first one has 0 in all of them."""
_FREE = {
    "output", "devices", "eval_every", "eval_batch", "checkpoint_every", "keep", "log_every",
    "log", "max_non_finite", "patience", "activation_checkpointing", "checkpointing_stretch",
}  # fmt: skip
"""Free to change on resume: they alter neither the data nor the arithmetic of a step."""
_ANNOUNCED = {"steps", "tokens", "stages", "optim", "precision", "compile"}
"""May be changed knowingly: a longer budget moves the learning rate of the steps to come."""
_PACKAGES = ("torch", "lightning-fabric", "transformers", "numpy", "safetensors", "polars", "pysam")
"""Packages whose version can change a number of the run."""
_LEVELS = 3  # folders to look in, from a model up: run/checkpoints/step-00000100
_SHA256 = re.compile(r"[0-9a-f]{64}")  # a checksum, which messages shorten
_LONGEST = 80  # characters of a value in a message: about a line of a terminal


@dataclass(frozen=True)
class RunFolder:
    """The records of a run, read from its folder without loading a model."""

    path: Path  # the folder
    error: type[MegabaseError] = RunError
    """Class of the error about a file that is missing or damaged."""

    def config(self) -> dict[str, Any]:
        """Read ``config.yaml``."""
        file = self.path / "config.yaml"
        config = parse_yaml(read_text(file, self.error), file, self.error)
        if not isinstance(config, dict):
            raise self.error(f"{file}: expected the settings of a run, found {shown(config)}")
        return config

    def record(self, name: str) -> dict[str, Any]:
        """Read a JSON record, such as ``data.json``."""
        return read_json(self.path / name, self.error)

    def metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``; a last line that is cut short is ignored."""
        file = self.path / "metrics.jsonl"
        lines = read_text(file, self.error).splitlines()
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
                if not isinstance(records[-1], dict):
                    raise ValueError(f"expected an object, found {shown(records.pop())}")
            except (ValueError, RecursionError) as error:
                if number < len(lines):  # the last is what a running or killed process was writing
                    text = f"{file}, line {number} is not a JSON record: {error}"
                    raise self.error(text) from error
        return records

    def checkpoint(self) -> Path | None:
        """Give the best checkpoint, the last one without validation; None before the first."""
        return next((self.path / x for x in ("best", "last") if (self.path / x).is_dir()), None)

    def parameters(self, checkpoint: Path) -> int:
        """Count trained weights, shared ones once: those with a moment in the optimizer."""
        moments = checkpoint / "training_state" / "optimizer.safetensors"
        sizes = self._tensor_sizes(moments)
        ends = ("exp_avg", "momentum_buffer")  # of AdamW and of Muon
        trained = {name: size for name, size in sizes.items() if name.endswith(ends)}
        return sum((trained or self._tensor_sizes(checkpoint / "model.safetensors")).values())

    def optimizer(self, checkpoint: Path) -> str:
        """Tell by its state which optimizer a rule chose, where the settings leave it open."""
        sizes = self._tensor_sizes(checkpoint / "training_state" / "optimizer.safetensors")
        return "muon" if any(name.endswith("momentum_buffer") for name in sizes) else "adamw"

    def _tensor_sizes(self, path: Path) -> dict[str, int]:
        if not path.is_file():
            return {}
        with parsing(path, self.error), safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: math.prod(file.get_slice(name).get_shape()) for name in names}

    @property
    def taken(self) -> bool:
        """Whether the folder holds anything but a lock."""
        return self.path.is_dir() and any(path.name != LOCK_NAME for path in self.path.iterdir())

    @staticmethod
    @contextlib.contextmanager
    def started(
        config: RunConfig, resolved: str, fabric: Fabric, data: Mapping[str, Any]
    ) -> Iterator[Path]:
        """Own the folder of a run, its settings, environment and inputs recorded. A collective.

        The error (the folder is taken, in use, cannot be written, or the inputs have changed) is
        raised in all processes.
        """
        run = Path(config.output)
        fabric.barrier()  # every process has checked the folder before the first one fills it
        failure: MegabaseError | None = None
        with contextlib.ExitStack() as stack:
            if fabric.global_rank == 0:
                try:
                    stack.enter_context(RunFolder(run).owned())
                    check_run(
                        config, resolved, owned=True
                    )  # another job may have come and gone since
                    _start_run(config, resolved, data)
                except MegabaseError as error:
                    failure = error
            if fabric.broadcast(failure is not None):
                raise failure or RunError(f"the first process cannot begin the run in {run}")
            yield run

    def refuse_taken(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a file, and a folder that holds something without leave to go on or replace."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"output {self.path} is a file; name a folder")
        if self.taken and not (resume or overwrite):
            raise RunError(
                f"output folder {self.path} exists and is not empty; continue it with resume=True, "
                "replace it with overwrite=True, or name another folder"
            )

    def refuse_changed(self, data: Mapping[str, Any], name: str = "data.json") -> None:
        """Refuse to resume with inputs whose recorded ``sha256`` differs: the error names them."""
        if not (self.path / name).is_file():
            return
        found = differences(self.record(name), json.loads(json.dumps(data, default=str)))
        sums = [text for key, text in found.items() if key.rpartition(".")[2] == "sha256"]
        if changed := [text for text in sums if "None" not in text.split()]:
            raise self.error(
                f"the run in {self.path} was made from other inputs ({'; '.join(changed)}); give "
                "it the same ones again, or start anew in another folder or with overwrite=True"
            )

    def finished_result(
        self, resolved: str, data: Mapping[str, Any], config: Any = None
    ) -> dict[str, Any] | None:
        """Give ``result.json`` of a run that is complete and was made with these settings.

        `resolved` are those of `config` as YAML. `data` is what the run would record of its inputs
        now; an error when they are others.
        """
        file, saved = self.path / "result.json", read_text(self.path / "config.yaml", self.error)
        free = _FREE - {"patience"}  # one that ended early may go on
        if not file.is_file() or _changed_settings(saved, resolved, config, free):
            return None
        self.refuse_changed(data)
        values = self.record(file.name)
        with parsing(file, self.error, "expected the result of a run"):
            for split in ("valid", "test"):
                values[split] = {k: math.nan if v is None else v for k, v in values[split].items()}
        return values

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Be the one job that writes it (else InUseError); its first process holds the lock."""
        if any(int(os.environ.get(name) or 0) for name in _RANKS):
            yield
            return
        run = self.path
        made = not run.exists()
        with writing(run):
            run.mkdir(parents=True, exist_ok=True)
        lock = Lock(run / LOCK_NAME, run)
        lock.acquire()
        try:
            yield
        except KeyboardInterrupt as stop:
            if not getattr(stop, "__notes__", None):  # a run in a folder of runs has said so
                stop.add_note(f"continue with --resume (what is finished is in {run})")
            raise
        finally:
            lock.release()
            if made:
                with contextlib.suppress(OSError):
                    run.rmdir()  # only when nothing came of it


class RunData(RunFolder):
    """The folder of a run that was trained on a genome."""

    @cached_property
    def data(self) -> dict[str, Any]:
        """Contents of ``data.json``."""
        return self.record("data.json")

    @property
    def genome_path(self) -> Path:
        """Where the genome store was."""
        return Path(self.data["genome"]["path"])

    @property
    def genome_checksum(self) -> str:
        """sha256 of the genome."""
        return str(self.data["genome"]["sha256"])

    @property
    def longest(self) -> int | None:
        """Tokens of the longest training windows; None when the run does not say."""
        with parsing(self.path / "config.yaml", self.error):
            lengths = [stage.get("length") for stage in self.config().get("stages") or []]
            return max((int(length) for length in lengths if length), default=None)

    def regions(self, store: Genome, part: Literal["train", "validation", "test"]) -> Regions:
        """Give the regions of a part of the split; empty when the run had no such part.

        An InputError when `store` is not the genome of the run, or the split cannot be worked out
        again.
        """
        if store.checksum != self.genome_checksum:
            raise self.error(
                f"{store.path} is not the genome of the run {self.path}: its sha256 is "
                f"{store.checksum[:12]}, that of the run {self.genome_checksum[:12]}"
            )
        with parsing(self.path / "data.json", self.error):
            split = self.data["splits"][part]
            if len(split["regions"]) == split["number_of_regions"]:
                return Regions.read(store, split["regions"])
            # The record lists only the beginning: the split is worked out again.
            settings: dict[str, Any] = self.config()["data"]
            if settings["windows"] == "intervals" and part == "train":
                found = Regions.of(*Intervals.read(store, settings["intervals"], "train"))
            else:
                names = ("include", "exclude", "validation", "test")
                found = Regions.split(store, **{key: settings[key] for key in names})[part]
            if found.total != split["bases"]:
                raise self.error(
                    f"the {part} regions of the run {self.path} cannot be worked out again from "
                    f"its config.yaml: found {found.total:,} bases, expected {split['bases']:,}; "
                    "name them yourself (a BED file)"
                )
            return found

    @classmethod
    def find(cls, folder: str | Path) -> RunData | None:
        """Find the run of a model: from its run folder, or a checkpoint inside one.

        None when there is none, or when it was trained on labeled sequences, not on a genome.
        """
        start = Path(folder).expanduser().absolute()
        if not start.is_dir():
            return None
        for path in (start, start.resolve(), *start.resolve().parents[: _LEVELS - 1]):
            if all((path / name).is_file() for name in ("data.json", "config.yaml")):
                run = cls(path, InputError)
                with parsing(path / "data.json", InputError):
                    if "kind" in run.data and "genome" not in run.data:
                        return None  # labels of a kind: a fine-tuning
                    _ = run.data["genome"]["sha256"], run.data["splits"]["train"]
                return run
        return None

    @staticmethod
    def evaluated(
        run: RunData | None, genome: Genome | None, regions: Iterable[str] | None,
        train_regions: Iterable[str] | None,
    ) -> tuple[Genome, Regions, Regions | None]:  # fmt: skip
        """Settle the genome, the regions to evaluate on, and the training regions where known.

        What is not named is that of the `run` of the model; of its split nothing is taken for a
        `genome` of other bases. A ConfigError when there is no genome, or nothing says where to
        evaluate.
        """
        own = run
        if genome is None:
            if run is None:
                advice = "name a store made by `megabase genome build`"
                raise ConfigError(f"genome=... is missing: {advice}")
            genome = Genome(run.genome_path)
        elif run is not None and genome.checksum != run.genome_checksum:
            own = None  # another genome on purpose: the split of the run says nothing about it
        if regions:
            found = Regions.read(genome, regions)
        elif own is None:
            raise ConfigError("regions=... is missing: name contigs, regions or BED files")
        else:
            found = own.regions(genome, "test")
            if not len(found):
                raise ConfigError(f"the run {own.path} held nothing out for test; give regions=...")
        if train_regions:
            return genome, found, Regions.read(genome, train_regions)
        return genome, found, None if own is None else own.regions(genome, "train")


def check_run(config: RunConfig, resolved: str, *, owned: bool = False) -> list[str]:
    """Check the output folder without touching it; list what differs from the settings resumed.

    `resolved` are the settings as YAML, as they would be saved. A RunError when the folder is
    taken, there is nothing to resume, or the run was made with settings that cannot change
    half-way; an InUseError when it is in use, unless this process has `owned` it.
    """
    run = Path(config.output)
    if not owned:
        Lock(run / LOCK_NAME, run).refuse_used()
    RunFolder(run).refuse_taken(resume=config.resume, overwrite=config.overwrite)
    saved = run / "config.yaml"
    if config.resume:
        if not saved.is_file():
            raise RunError(f"there is no run to resume in {run}: {saved} is missing")
        changes = _changed_settings(read_text(saved, RunError), resolved, config)
        fixed = [text for name, text in changes.items() if name.split(".")[0] not in _ANNOUNCED]
        if fixed:
            raise RunError(
                f"the run in {run} was made with other settings: {'; '.join(fixed)}; resume with "
                f"the settings in {saved}, or start anew in another folder"
            )
        return list(changes.values())
    if not RunFolder(run).taken:
        return []
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    strangers = sorted(names.difference(_FILES, _FOLDERS))
    if strangers or not saved.exists():
        what = f"it holds {', '.join(strangers[:3])}" if strangers else "it has no config.yaml"
        raise RunError(
            f"output folder {run} is not only a run ({what}), so overwrite=True does not delete it"
        )
    return []


def _changed_settings(
    before: str, after: str, config: Any = None, free: Collection[str] = _FREE
) -> dict[str, str]:
    """Compare saved settings, but `free` ones and defaults that an older version did not have."""
    old, new = (parse_yaml(text, "config.yaml", RunError) or {} for text in (before, after))
    with parsing("config.yaml", RunError, "expected the settings of a run"):
        for name in RETIRED:
            if name not in new:
                old.pop(name, None)
        found = differences(old, new)
    kept = {name: text for name, text in found.items() if name.split(".")[0] not in free}
    return {name: kept[name] for name in kept if not _is_new_default(config, old, name)}


def _is_new_default(config: Any, record: Any, name: str) -> bool:
    """Tell whether a setting is not in the record of an older version and has its default."""
    for part in name.split("."):
        known = {field.name: field for field in fields(config)} if is_dataclass(config) else {}
        if part not in known or not isinstance(record, dict):
            return False
        if part not in record:
            make = known[part].default_factory
            default = known[part].default if make is MISSING else make()
            return getattr(config, part) == default
        config, record = getattr(config, part), record[part]
    return False


def _start_run(config: RunConfig, resolved: str, data: Mapping[str, Any]) -> None:
    """Make the folder ready: cleared if requested, with its records in it. First process only."""
    run = Path(config.output)
    if config.resume:
        RunFolder(run).refuse_changed(data)
    with writing(run):
        if config.overwrite and not config.resume and run.is_dir():
            for name in (*_FOLDERS, *_FILES):
                path = run / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        record, file = environment(), run / "environment.json"
        if not config.resume:
            write_whole(run / "config.yaml", resolved)
        elif file.exists():  # a resumed run adds its environment to those of the first
            first = json.loads(file.read_text())
            record = {**first, "resumed": [*first.get("resumed", ()), record]}
        write_json(file, record)
        write_json(run / "data.json", data)


def environment() -> dict[str, Any]:
    """Collect versions, machine, devices and commit: nothing personal, no environment variables."""
    import torch

    program = Path(sys.argv[0])  # where it lies is a fact of the machine, not of the run
    return {
        "megabase": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(Path(__file__).parent),
        "command": ["megabase" if program.stem == "__main__" else program.name, *sys.argv[1:]],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(folder: Path) -> dict[str, Any] | None:
    """Give commit and whether files differ from it; None outside a checkout of the project."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()

    try:
        # An installed package may lie inside another project's checkout: that commit is not ours.
        if not (Path(ask("rev-parse", "--show-toplevel")) / "src" / "megabase").is_dir():
            return None
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Compare two records; dotted name of each difference -> "name: old then, new now"."""
    old, new = flatten(before), flatten(now)
    return {
        name: f"{name}: {_short(old.get(name))} then, {_short(new.get(name))} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested values into dotted names (optim.lr); an empty table stays a value."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return f"sha256 {value[:12]}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

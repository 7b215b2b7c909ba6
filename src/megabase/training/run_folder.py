"""The folder of a run: refused when taken, cleared only when asked, the same settings on resume.

``config.yaml`` (re-creates the run), ``environment.json``, ``data.json``, ``metrics.jsonl``,
``checkpoints/step-00000100/`` and the links ``best`` and ``last``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.errors import MegabaseError, RunError
from megabase.genome.files import write_json, write_whole, writing
from megabase.genome.ownership import LOCK_NAME, Lock
from megabase.settings import TrainConfig
from megabase.training.provenance import differences, record_environment
from megabase.untrusted import parse_yaml, parsing, read_json, read_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "changed_settings",
    "check_run",
    "finished_result",
    "folder_taken",
    "own_folder",
    "refuse_changed",
    "start_run",
    "started_run",
]

_FILES = (
    "config.yaml", "environment.json", "data.json", "metrics.jsonl", "result.json", "outputs.npz",
    "best", "last", "evaluation.json", "evaluation-context.svg", "evaluation-floors.svg",
    "report.html",
)  # fmt: skip
_FOLDERS = ("checkpoints", "prompt")

# Of the launchers that start a process for each device; the first one has 0 in all of them.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")

# Free to change on resume: they alter neither the data nor the arithmetic of a step.
_FREE = {
    "output", "devices", "eval_every", "eval_batch", "checkpoint_every", "keep", "log_every",
    "max_non_finite", "patience", "activation_checkpointing", "checkpointing_stretch",
}  # fmt: skip
# May be changed knowingly: a longer budget moves the learning rate of the steps to come.
_ANNOUNCED = {"steps", "tokens", "stages", "optim", "precision", "compile"}


def check_run(config: TrainConfig, resolved: str) -> list[str]:
    """Check the output folder without touching it.

    Parameters
    ----------
    config
        Settings of the run.
    resolved
        The same as YAML, as they would be saved.

    Returns
    -------
    list of str
        What differs from the settings of the run that is resumed, to be told.

    Raises
    ------
    RunError
        When the folder is taken, when there is nothing to resume, or when the run was made with
        settings that cannot change half-way.
    InUseError
        When a run that is alive writes it.
    """
    run = Path(config.output)
    Lock(run / LOCK_NAME, run).refuse_used()
    return _check(config, resolved)


def _check(config: TrainConfig, resolved: str) -> list[str]:
    run = Path(config.output)
    if run.exists() and not run.is_dir():
        raise RunError(f"output {run} is a file; name a folder")
    taken = folder_taken(run)
    if config.resume:
        return _check_resume(run, resolved)
    if not taken:
        return []
    if not config.overwrite:
        raise RunError(
            f"output folder {run} exists and is not empty; continue it with resume=True, replace "
            "it with overwrite=True, or name another folder"
        )
    strangers = sorted(
        path.name
        for path in run.iterdir()
        if path.name not in (*_FILES, *_FOLDERS) and not path.name.startswith(".")
    )
    if "config.yaml" not in os.listdir(run) or strangers:
        what = f"it holds {', '.join(strangers[:3])}" if strangers else "it has no config.yaml"
        raise RunError(
            f"output folder {run} is not only a run ({what}), so overwrite=True does not delete it"
        )
    return []


def folder_taken(run: Path) -> bool:
    """Whether an output folder holds anything but a lock."""
    return run.is_dir() and any(path.name != LOCK_NAME for path in run.iterdir())


def _check_resume(run: Path, resolved: str) -> list[str]:
    saved = run / "config.yaml"
    if not saved.is_file():
        raise RunError(f"there is no run to resume in {run}: {saved} is missing")
    changes = changed_settings(read_text(saved, RunError), resolved)
    fixed = [text for name, text in changes.items() if name.split(".")[0] not in _ANNOUNCED]
    if fixed:
        raise RunError(
            f"the run in {run} was made with other settings: {'; '.join(fixed)}; resume with "
            f"the settings in {saved}, or start anew in another folder"
        )
    return list(changes.values())


def changed_settings(before: str, after: str) -> dict[str, str]:
    """Compare two saved configurations; free settings are left out.

    Returns
    -------
    dict
        As :func:`megabase.training.provenance.differences`.
    """
    old, new = (parse_yaml(text, "config.yaml", RunError) or {} for text in (before, after))
    with parsing("config.yaml", RunError, "expected the settings of a run"):
        found = differences(old, new)
    return {name: text for name, text in found.items() if name.split(".")[0] not in _FREE}


def start_run(config: TrainConfig, resolved: str, data: Mapping[str, Any] | None = None) -> Path:
    """Make the folder ready: cleared if asked, with its records in it. First process only.

    Raises
    ------
    RunError
        When `data` differs from what the run that is resumed was trained on.
    OutputError
        When the folder cannot be written.
    """
    run = Path(config.output)
    if config.resume:
        refuse_changed(run, data or {})
    with writing(run):
        if config.overwrite and not config.resume and run.is_dir():
            for name in (*_FOLDERS, *_FILES):
                path = run / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            write_whole(run / "config.yaml", resolved)
        if data is not None:
            record_environment(run / "environment.json", resumed=config.resume)
            write_json(run / "data.json", data)
    return run


def refuse_changed(run: Path, data: Mapping[str, Any], name: str = "data.json") -> None:
    """Refuse to go on with other inputs: compare all digests that a run recorded.

    Parameters
    ----------
    run
        Folder of the run.
    data
        What the run would record now; the values named ``sha256`` are compared.
    name
        File of the record.

    Raises
    ------
    RunError
        Naming every input that differs, with both digests.
    """
    if not (run / name).is_file():
        return
    before = read_json(run / name, RunError)
    found = differences(before, json.loads(json.dumps(data, default=str)))
    changed = [
        text
        for key, text in found.items()
        if key.rpartition(".")[2] == "sha256" and "None" not in text.split()
    ]
    if changed:
        raise RunError(
            f"the run in {run} was made from other inputs ({'; '.join(changed)}); give it the same "
            "ones again, or start anew in another folder or with overwrite=True"
        )


def finished_result(
    run: Path, resolved: str, data: Callable[[], Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Give ``result.json`` of a run that is complete and was made with these settings.

    Parameters
    ----------
    run
        Folder of the run.
    resolved
        Settings as they would be saved.
    data
        Gives what the run would record of its inputs now.

    Raises
    ------
    RunError
        When the inputs are others now.
    """
    file = run / "result.json"
    saved = run / "config.yaml"
    if not file.is_file() or changed_settings(read_text(saved, RunError), resolved):
        return None
    refuse_changed(run, data())
    values = read_json(file, RunError)
    with parsing(file, RunError, "expected the result of a run"):
        for split in ("valid", "test"):
            values[split] = {k: math.nan if v is None else v for k, v in values[split].items()}
    return values


@contextlib.contextmanager
def own_folder(run: Path) -> Iterator[None]:
    """Be the one job that writes a folder; the processes of a job share it, the first holds it.

    Raises
    ------
    InUseError
        When another job does.
    """
    if any(int(os.environ.get(name) or 0) for name in _RANKS):
        yield
        return
    made = not run.exists()
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    lock = Lock(run / LOCK_NAME, run)
    lock.acquire()
    try:
        yield
    except KeyboardInterrupt as stop:
        if not getattr(stop, "__notes__", None):  # a run in a folder of runs has said so
            stop.add_note(f"go on with --resume (what is finished is in {run})")
        raise
    finally:
        lock.release()
        if made:
            with contextlib.suppress(OSError):
                run.rmdir()  # only when nothing came of it


@contextlib.contextmanager
def started_run(
    config: TrainConfig, resolved: str, fabric: Fabric, data: Mapping[str, Any]
) -> Iterator[Path]:
    """Own the folder of a run, with its settings, environment and inputs recorded. A collective.

    Parameters
    ----------
    config, resolved
        As for :func:`check_run`.
    fabric
        Launched Lightning Fabric.
    data
        What the run is made from; on resume compared with the record.

    Raises
    ------
    RunError, OutputError
        In all processes, when the folder is taken or in use, or cannot be written, or the inputs
        are others than before.
    """
    run = Path(config.output)
    fabric.barrier()  # every process has checked the folder before the first one fills it
    failure: MegabaseError | None = None
    with contextlib.ExitStack() as stack:
        if fabric.global_rank == 0:
            try:
                stack.enter_context(own_folder(run))
                _check(config, resolved)  # another job may have come and gone since
                start_run(config, resolved, data)
            except MegabaseError as error:
                failure = error
        if fabric.broadcast(failure is not None):
            raise failure or RunError(f"the first process cannot begin the run in {run}")
        yield run

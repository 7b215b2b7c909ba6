"""The folder of a run: refused when taken, cleared only when asked, the same settings on resume.

``config.yaml`` (re-creates the run), ``environment.json``, ``data.json``, ``metrics.jsonl``,
``checkpoints/step-00000100/`` and the links ``best`` and ``last``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from megabase.training.config import ConfigError, TrainConfig

__all__ = ["RunFolderError", "changed_settings", "check_run", "start_run"]

_FILES = (
    "config.yaml", "environment.json", "data.json", "metrics.jsonl", "result.json", "outputs.npz",
    "best", "last", "evaluation.json", "evaluation-context.svg", "evaluation-floors.svg",
    "report.html",
)  # fmt: skip
_FOLDERS = ("checkpoints", "prompt")

# Free to change on resume: they alter neither the data nor the arithmetic of a step.
_FREE = {
    "output", "devices", "eval_every", "eval_batch", "checkpoint_every", "keep", "log_every",
    "max_non_finite", "patience", "activation_checkpointing", "checkpointing_stretch",
}  # fmt: skip
# May be changed knowingly: a longer budget moves the learning rate of the steps to come.
_ANNOUNCED = {"steps", "tokens", "stages", "optim", "precision", "compile"}


class RunFolderError(ConfigError):
    """The output folder cannot be used as asked."""


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
    RunFolderError
        When the folder is taken, when there is nothing to resume, or when the run was made with
        settings that cannot change half-way.
    """
    run = Path(config.output)
    if run.exists() and not run.is_dir():
        raise RunFolderError(f"output {run} is a file; name a folder")
    taken = run.is_dir() and any(run.iterdir())
    if config.resume:
        return _check_resume(run, resolved)
    if not taken:
        return []
    if not config.overwrite:
        raise RunFolderError(
            f"output folder {run} exists and is not empty; continue it with --resume, replace it "
            "with --overwrite, or name another folder"
        )
    strangers = sorted(
        path.name
        for path in run.iterdir()
        if path.name not in (*_FILES, *_FOLDERS) and not path.name.endswith(".tmp")
    )
    if "config.yaml" not in os.listdir(run) or strangers:
        what = f"it holds {', '.join(strangers[:3])}" if strangers else "it has no config.yaml"
        raise RunFolderError(
            f"output folder {run} is not only a run ({what}), so --overwrite does not delete it"
        )
    return []


def _check_resume(run: Path, resolved: str) -> list[str]:
    saved = run / "config.yaml"
    if not saved.is_file():
        raise RunFolderError(f"there is no run to resume in {run}: {saved} is missing")
    changes = changed_settings(saved.read_text(), resolved)
    fixed = [text for name, text in changes.items() if name.split(".")[0] not in _ANNOUNCED]
    if fixed:
        raise RunFolderError(
            f"the run in {run} was made with other settings: {'; '.join(fixed)}; resume with "
            f"--config {saved}, or start anew in another folder"
        )
    return list(changes.values())


def changed_settings(before: str, after: str) -> dict[str, str]:
    """Compare two saved configurations; free settings are left out.

    Returns
    -------
    dict
        Dotted name of the setting -> "name old -> new".
    """
    old, new = _flat(yaml.safe_load(before) or {}), _flat(yaml.safe_load(after) or {})
    return {
        name: f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted({*old, *new})
        if name.split(".")[0] not in _FREE and old.get(name) != new.get(name)
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def start_run(config: TrainConfig, resolved: str) -> Path:
    """Make the folder ready: cleared if asked, with ``config.yaml`` in it. First process only."""
    run = Path(config.output)
    if config.overwrite and not config.resume and run.is_dir():
        for name in (*_FOLDERS, *_FILES):
            path = run / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    if not config.resume:
        temporary = run / ".config.yaml.tmp"
        temporary.write_text(resolved)
        os.replace(temporary, run / "config.yaml")
    return run

"""Model folders that are either whole or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from megabase.errors import OutputError
from megabase.genome.files import real_place, write_json, writing


def save_model_folder(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: Any,
    records: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder that transformers loads, whole or not at all.

    Its parent must exist; `records` are JSON files to put next to the model, by name. `overwrite`
    replaces an earlier model folder, never one that holds anything else (:class:`OutputError`).
    """
    folder = Path(folder).expanduser()
    check_output(folder, overwrite)
    final = real_place(folder)  # a link stays, and what it names is replaced
    token = uuid.uuid4().hex[:8]
    partial = final.parent / f".{final.name}.partial-{token}"
    replaced = final.parent / f".{final.name}.replaced-{token}"
    try:
        with writing(folder):
            partial.mkdir()
            write_model(partial, model, tokenizer)
            for name, record in (records or {}).items():
                write_json(partial / name, record)
            if final.exists():
                final.rename(replaced)
            partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def write_model(
    folder: Path, model: PreTrainedModel, tokenizer: Any, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write weights, configuration and tokenizer into a folder that exists.

    `state` is a full state dict in place of the model's own, which may be sharded.
    """
    # The library's bar over the files it writes would cut through a run's own.
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, state_dict=None if state is None else dict(state))
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    # Give files the mode a plain open would: safetensors makes them private to the user.
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that must not be written (:class:`OutputError`)."""
    if not folder.parent.is_dir():
        raise OutputError(f"{folder.parent}: there is no such folder to write {folder.name} into")
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"{folder}: exists already; choose another name or pass overwrite=True")
    if not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a model folder; it is not replaced")
    if any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise OutputError(f"{folder}: holds something else than a model; it is not replaced")

"""Checkpoints that are either whole or absent, and a run that continues from them exactly.

A checkpoint is a folder ``checkpoints/step-00000100``: the model in its own format and
``training_state/`` with weights, optimizer state and counters. It is written under a temporary
name, flushed to the disk and renamed, so a folder with a final name is complete. Nothing is
pickled. One process, DDP and FSDP write and read the same files.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from megabase.errors import OutputError, RunError
from megabase.genome.files import new_name, write_whole, writing
from megabase.training.run_folder import RunFolder
from megabase.untrusted import build, parsing, read_json, shown

SaveModel = Callable[[Path, Mapping[str, torch.Tensor]], None]
"""Writes the model into a folder, given its full state dict on the CPU."""
_State = tuple[dict[str, Any], dict[str, Any]]  # state dicts of the model and of the optimizer

_STEP = re.compile(r"step-(\d{8,})$")  # eight digits sort as text; longer runs still read
_PARTIAL = ".partial-"  # hidden, and no name of a checkpoint
_SEPARATOR = "/"  # between a parameter's name and the name of its optimizer value


@dataclass
class Progress:
    """Where a run stands: everything the loop carries from step to step besides tensors."""

    step: int = 0  # optimizer steps done, skipped ones included
    tokens: int = 0  # input positions seen
    non_finite: int = 0  # steps skipped for a loss or gradient that was not finite
    best_loss: float | None = None  # loss of the best validation so far, in nats per target
    best_step: int | None = None  # step of ``best_loss``
    best_score: float | None = None
    """Monitored metric of the best validation (the loss, unless the task names another)."""
    stale: int = 0  # validations since the best one
    seconds: float = 0.0  # time spent training, over all sessions of the run
    scaler: dict[str, float] | None = None  # state of what scales the loss of float16


class Checkpoints:
    """The checkpoints of a run: its folder ``checkpoints``, and the links ``last`` and ``best``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / "checkpoints"

    def finished(self) -> list[Path]:
        """Give the complete checkpoints, oldest first."""
        names = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in names if _STEP.match(path.name)), key=_step_of)

    @staticmethod
    def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
        """Collect the full model and optimizer state on the CPU of the first process.

        A collective: every process calls it. With FSDP the others get empty dictionaries.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(module, options=options)
        # What was gathered from shards has a copy for each name of a shared tensor.
        first: dict[nn.Parameter, str] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if first.setdefault(parameter, name) in weights and name in weights:
                weights[name] = weights[first[parameter]]
        return weights, get_optimizer_state_dict(module, optimizer, options=options)

    def save(self, progress: Progress, state: _State, save_model: SaveModel) -> Path:
        """Write the checkpoint of ``progress.step``; point ``last`` at it, and ``best`` if it is.

        A RunError when the disk is full or cannot be written; earlier checkpoints are kept then.
        """
        final = self.folder / f"step-{progress.step:08d}"
        partial = self.folder / f"{_PARTIAL}{final.name}-{uuid.uuid4().hex[:8]}"
        try:
            with writing(self.run, "make room or lower keep"):
                (partial / "training_state").mkdir(parents=True)
                save_model(partial, state[0])
                _write_state(partial / "training_state", progress, state)
                _flush(*partial.rglob("*"), partial)
                if final.exists():
                    # Only after a resume that repeats this step; the numbers are the same.
                    shutil.rmtree(final)
                partial.rename(final)
                _flush(self.folder)
                _write_link(self.run / "last", final.relative_to(self.run))
                if progress.best_step == progress.step:
                    _write_link(self.run / "best", final.relative_to(self.run))
        except OutputError as error:
            earlier = [path.name for path in self.finished() if path != final]
            kept = f"the checkpoint {earlier[-1]} is whole" if earlier else "there is none before"
            raise RunError(
                f"checkpoint {final.name} is not saved: {error}; {kept}; continue with resume=True"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # gone once it has its final name
        return final

    @staticmethod
    def progress_of(checkpoint: Path) -> Progress:
        """Read the counters of a checkpoint."""
        with parsing(checkpoint / "training_state" / "state.json", RunError):
            return build(Progress, _record(checkpoint)["progress"])

    @staticmethod
    def load(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Put a checkpoint's weights and optimizer state into place; give its counters.

        A collective with DDP and FSDP: every process reads the files. A RunError when files are
        missing or do not belong to this model.
        """
        record = _record(checkpoint)
        folder = checkpoint / "training_state"
        with parsing(folder, RunError):
            tensors: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
            values = load_file(folder / "optimizer.safetensors")
            for name, first in record["aliases"].items():
                tensors[name] = tensors[first]
            entries: dict[str, dict[str, Any]] = {}
            for path, value in values.items():
                name, key = path.rsplit(_SEPARATOR, 1)
                entries.setdefault(name, {})[key] = value
            for name, plain in record["optimizer"]["plain"].items():
                entries.setdefault(name, {}).update(plain)
            groups = record["optimizer"]["param_groups"]
            for group in groups:
                group["betas"] = tuple(group["betas"])
        options = StateDictOptions(full_state_dict=True)
        state: Any = {"state": entries, "param_groups": groups}
        try:
            # The optimizer first: torch makes a step of rate 0 to create its state.
            set_optimizer_state_dict(module, optimizer, state, options=options)
            set_model_state_dict(module, tensors, options=options)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = shown(str(error).partition("\n")[0])
            raise RunError(
                f"{checkpoint} does not fit this model: {reason}; resume with the settings of the "
                "run"
            ) from error
        return Checkpoints.progress_of(checkpoint)

    def prune(self, keep: int, best_step: int | None) -> None:
        """Delete all but the newest ``keep`` checkpoints and the best one."""
        for path in self.finished()[:-keep]:
            if _step_of(path) != best_step:
                # Renamed first: a deletion cut short leaves no half checkpoint under a final name.
                doomed = path.with_name(f"{_PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def clean(self, step: int) -> None:
        """Delete what a killed process left half written, and the records of steps after `step`."""
        for path in self.folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.run.glob(".*.tmp.*"):
            path.unlink(missing_ok=True)
        path = self.run / "metrics.jsonl"
        if path.exists():
            kept = (record for record in RunFolder(self.run).metrics() if record["step"] <= step)
            write_whole(path, "".join(f"{json.dumps(record)}\n" for record in kept))


def _step_of(path: Path) -> int:
    match = _STEP.match(path.name)
    return int(match.group(1)) if match else -1


def _write_state(folder: Path, progress: Progress, state: _State) -> None:
    model, optimizer = state
    shared: dict[int, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.items():
        # safetensors holds no tensor twice: tied weights are written once, with their other names.
        first = shared.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if first != name and tensors[first].shape == tensor.shape:
            aliases[name] = first
        else:
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")
    values: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                values[f"{name}{_SEPARATOR}{key}"] = value.contiguous()
            else:
                plain.setdefault(name, {})[key] = value
    save_file(values, folder / "optimizer.safetensors")
    groups = {"param_groups": optimizer["param_groups"], "plain": plain}
    record = {"format": 1, "progress": asdict(progress), "aliases": aliases, "optimizer": groups}
    (folder / "state.json").write_text(json.dumps(record, indent=1) + "\n")


def _record(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "training_state" / "state.json"
    record = read_json(path, RunError)
    if record.get("format") != 1:
        raise RunError(
            f"{path} has format {shown(record.get('format'))}; this version reads format 1: "
            "use the megabase that wrote it"
        )
    return record


def _write_link(link: Path, target: Path) -> None:
    """Point a symbolic link at a path relative to its folder, replacing another in one step."""
    temporary = new_name(link)
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)


def _flush(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""What is said of a model: its name and hash, where it runs, and with how many threads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from megabase.errors import InputError
from megabase.evaluate.log_probs import evaluating as inference_mode

__all__ = [
    "ModelSpec",
    "choose_device",
    "inference_mode",
    "model_digest",
    "shown_name",
    "threads",
]

ModelSpec = str | Path | nn.Module | None
"""A folder, run, preset or Hub name; None for the packaged model; or a model as it is."""


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use so many threads for tensor operations; restored afterwards. None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str | None = None) -> torch.device:
    """Give the device of this name; when None a GPU if there is one, else the CPU.

    Raises
    ------
    InputError
        When torch does not know the device or cannot use it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r}: {str(error).splitlines()[0]}") from None
    return device


def model_digest(model: nn.Module) -> str:
    """Give the sha256 over a model's configuration and weights.

    The same for a model in memory, in a folder, and on any device; names of files do not matter.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        values = config.to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            values.pop(name, None)
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):  # offloaded, which accelerate has done
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        state = get_state_dict_offloaded_model(model)
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shown_name(spec: str | Path | None, folder: Path) -> str:
    """Give the name of a model for outputs: never a path of this machine.

    A checkpoint is named after its run, such as ``tuned/step-00000100``.

    Parameters
    ----------
    spec
        What the model was asked for by.
    folder
        Where it was found.
    """
    if spec is not None and Path(spec).expanduser().exists():
        folder = folder.resolve()
        in_run = folder.parent.name == "checkpoints"
        return f"{folder.parent.parent.name}/{folder.name}" if in_run else folder.name
    return "megabase default" if spec in (None, "default") else str(spec)

"""What is known about a model in memory: name, hash, device, and how it predicts bases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from megabase.data.vocabulary import LOGIT_COLUMNS
from megabase.errors import InputError

__all__ = [
    "ModelSpec",
    "choose_device",
    "evaluation_mode",
    "inference_mode",
    "language_model_kind",
    "model_digest",
    "shown_name",
    "threads",
]

ModelSpec = str | Path | nn.Module | None
"""A folder, run, preset or Hub name; None for the packaged model; or a model as it is."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside a ``with`` block; restore the mode of every module."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside a ``with`` block; restore the modes."""
    with evaluation_mode(model), torch.inference_mode():
        yield


def language_model_kind(model: nn.Module) -> Literal["causal", "masked"]:
    """Say how a model gives a probability to a base.

    Parameters
    ----------
    model
        A model with a language-model head and one token for each base.

    Returns
    -------
    str
        ``"causal"``: from the bases before it. ``"masked"``: from both sides, itself hidden.

    Raises
    ------
    InputError
        When the model has no such head, has other tokens than bases, or was given a next-token head
        although its positions see later ones.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if (getattr(config, "vocab_size", None) or 0) > LOGIT_COLUMNS:
        raise InputError(
            f"{name} has a vocabulary of {config.vocab_size:,} tokens: it reads words of several "  # pyright: ignore[reportOptionalMemberAccess]
            "bases, and gives no probability to single ones; use a model of characters"
        )
    if name.endswith("ForMaskedLM"):
        return "masked"
    if "For" in name and not name.endswith("ForCausalLM"):
        raise InputError(
            f"{name} has no language-model head; load the model as causal-lm or masked-lm, from a "
            "folder that has that head"
        )
    if hasattr(model, "config_class") and not hasattr(model, "get_output_embeddings"):
        raise InputError(f"{name} has no language-model head")
    if "For" not in name and getattr(model, "base_model_prefix", None):
        raise InputError(
            f"{name} has no language-model head; load the model as causal-lm or masked-lm"
        )
    if getattr(config, "is_causal_model", True) is False:
        raise InputError(
            f"{name} is bidirectional, so its next-token head sees what it predicts; use a causal "
            "model, or one trained on masked bases"
        )
    return "causal"


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

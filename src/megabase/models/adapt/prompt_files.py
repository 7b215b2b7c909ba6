"""Saved prompts: ``prompt.json`` and ``prompt.safetensors``, tied to one model by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from megabase import __version__
from megabase.errors import ModelError
from megabase.genome.files import write_json, write_whole
from megabase.models.adapt.prompt_spec import PromptSpec
from megabase.models.adapt.prompting import PromptedModel
from megabase.models.auto import load_model
from megabase.models.checkpoints.finite import require_finite_weights
from megabase.untrusted import build, parsing, read_json, shown

__all__ = [
    "PROMPT_FILES",
    "SavedPrompt",
    "load_prompt",
    "prompt_bytes",
    "read_prompt",
    "save_prompt",
    "weights_hash",
]

PROMPT_FILES = ("prompt.json", "prompt.safetensors")
"""Files of a saved prompt."""

_FORMAT = 1


@dataclass(frozen=True)
class SavedPrompt:
    """A saved prompt before it meets its model."""

    folder: Path
    """Where it lies."""
    model: str
    """Name of the model that it was made for, as it was given then."""
    model_hash: str
    """:func:`weights_hash` of that model."""
    spec: PromptSpec
    """What it is."""
    tensors: Mapping[str, Tensor]
    """Its numbers, by the names of :class:`PromptedModel`."""
    facts: Mapping[str, Any]
    """Further facts of its making, such as the padding side and the strands."""


def weights_hash(model: PreTrainedModel, *, next_token: bool = False) -> str:
    """Give a checksum of a model's weights.

    Parameters
    ----------
    model
        The model; a head for labels does not count.
    next_token
        Whether the next-token head counts, too.

    Returns
    -------
    str
        SHA-256 in hexadecimal over names, types, shapes and values of the tensors of the base
        model, in the order of their names.
    """
    digest = hashlib.sha256(str(model.config.model_type).encode())
    tensors = dict(model.base_model.state_dict())
    if next_token and (head := model.get_output_embeddings()) is not None:
        tensors |= {f"next_token.{name}": value for name, value in head.state_dict().items()}
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_prompt(
    prompted: PromptedModel,
    folder: str | Path,
    *,
    model: str,
    state: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
    spec: PromptSpec | None = None,
) -> None:
    """Write a prompt; the model itself is named, not copied.

    Parameters
    ----------
    prompted
        What to save.
    folder
        Folder; made when it is missing.
    model
        Name of the model: a folder, a Hub name, or ``default``.
    state
        State dict in place of the prompt's own.
    facts
        Further facts, plain values.
    spec
        What is saved in place of the prompt's own (with solved examples added).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec or prompted.spec
    record = {
        "format": _FORMAT,
        "megabase": __version__,
        "model": model,
        "model_hash": weights_hash(prompted.model, next_token=spec.answer == "label_tokens"),
        **asdict(spec),
        "facts": dict(facts or {}),
    }
    tensors = {name: value.contiguous() for name, value in (state or prompted.state_dict()).items()}
    write_json(folder / PROMPT_FILES[0], record)
    write_whole(folder / PROMPT_FILES[1], save(tensors))


def prompt_bytes(folder: str | Path) -> int:
    """Give the size of a saved prompt."""
    return sum((Path(folder) / name).stat().st_size for name in PROMPT_FILES)


def read_prompt(path: str | Path) -> SavedPrompt:
    """Read a saved prompt without its model.

    Parameters
    ----------
    path
        Folder of a prompt, or a run folder of ``megabase prompt``.

    Returns
    -------
    SavedPrompt

    Raises
    ------
    ModelError
        When there is none, or its files are damaged.
    """
    given = Path(path).expanduser()
    places = [given, given / "prompt", given / "best", given / "last"]
    folder = next((place for place in places if (place / PROMPT_FILES[0]).is_file()), None)
    if folder is None:
        what = "there is no such folder" if not given.is_dir() else f"it holds no {PROMPT_FILES[0]}"
        raise ModelError(
            f"{given}: is no prompt ({what}); expected a folder written by megabase prompt"
        )
    file = folder / PROMPT_FILES[0]
    record = read_json(file, ModelError)
    with parsing(file, ModelError, "expected a prompt that megabase wrote"):
        if record["format"] != _FORMAT:
            raise ModelError(
                f"{file} has format {shown(record['format'])}; this version reads {_FORMAT}: use "
                f"the megabase that wrote it ({shown(record.get('megabase'))})"
            )
        values: dict[str, Any] = {}
        for field in fields(PromptSpec):
            value = record[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        spec = build(PromptSpec, values)
        saved = SavedPrompt(
            folder, record["model"], record["model_hash"], spec, {}, record.get("facts", {})
        )
        if not isinstance(saved.model, str) or not isinstance(saved.model_hash, str):
            raise TypeError("model and model_hash must be text")
        if not isinstance(saved.facts, dict):
            raise TypeError("facts must be an object")
    with parsing(folder / PROMPT_FILES[1], ModelError, "expected a prompt that megabase wrote"):
        tensors = load_file(folder / PROMPT_FILES[1])
    held = sum(tensor.numel() for tensor in tensors.values())
    if spec.length > max(held, 1) or spec.block > _LONGEST_BLOCK:
        raise ModelError(f"{file}: claims {spec.length:,} vectors; the prompt has {held:,} numbers")
    return replace(saved, tensors=tensors)


_LONGEST_BLOCK = 1 << 24


def load_prompt(
    path: str | Path,
    model: str | Path | PreTrainedModel | None = None,
    *,
    device: str | torch.device | None = None,
) -> PromptedModel:
    """Load a prompt together with the model that it was made for.

    Parameters
    ----------
    path
        As for :func:`read_prompt`.
    model
        The model, or where to load it from (see :func:`megabase.models.load_model`); by default the
        name that the prompt was saved with.
    device
        Where a model that is loaded here goes; the CPU by default.

    Returns
    -------
    PromptedModel
        In evaluation mode. Its ``config`` has the class names in ``id2label``, its ``max_length``
        is the longest sequence.

    Raises
    ------
    ModelError
        When the prompt cannot be read, or the model is another one.
    ModelError
        When there is no such model.
    """
    saved = read_prompt(path)
    label_tokens = saved.spec.answer == "label_tokens"
    name = saved.model if model is None else model
    if isinstance(name, PreTrainedModel):
        found, name = name, str(name.config.name_or_path or type(name).__name__)
    else:
        spec = None if name == "default" else name
        found = load_model(spec, "causal-lm" if label_tokens else "base", device=device)
    given = weights_hash(found, next_token=label_tokens)
    if given != saved.model_hash:
        raise ModelError(
            f"the prompt {saved.folder} belongs to another model: it was made for {saved.model} "
            f"(weights {saved.model_hash[:12]}), and {name} has the weights {given[:12]}; give it "
            "that model, or make a prompt for this one"
        )
    with parsing(saved.folder / PROMPT_FILES[0], ModelError):
        prompted = PromptedModel(found, saved.spec)
    try:
        prompted.load_state_dict(saved.tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{saved.folder}: the prompt's numbers do not fit ({reason})") from error
    if isinstance(model, PreTrainedModel):
        require_finite_weights(found, str(name))
    require_finite_weights(prompted, str(saved.folder))
    return prompted.eval()

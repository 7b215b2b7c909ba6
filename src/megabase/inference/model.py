"""A model ready to be asked: loaded by name or taken as it is, with its name and hash.

Scores need a model with a language-model head and one token for each base; that is checked here.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from megabase.inference.errors import InferenceError
from megabase.inference.log_probs import evaluating as inference_mode
from megabase.inference.log_probs import language_model_kind

__all__ = [
    "LanguageModel",
    "ModelSpec",
    "choose_device",
    "inference_mode",
    "load_language_model",
    "model_digest",
    "require_length",
    "shown_name",
    "threads",
]

ModelSpec = str | Path | nn.Module | None
"""A folder, run, preset or Hub name; None for the packaged model; or a model as it is."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model over bases.

    Parameters
    ----------
    model
        The module; ``model(input_ids=ids).logits`` has one row for each position.
    name
        Its name, for outputs.
    digest
        sha256 over configuration and weights.
    masked
        Whether it predicts hidden bases from both sides (otherwise the next base).
    longest
        Longest input in positions; None when there is no limit.
    """

    model: nn.Module
    name: str
    digest: str
    masked: bool
    longest: int | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))


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
    InferenceError
        When torch does not know the device or cannot use it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InferenceError(f"device {name!r}: {str(error).splitlines()[0]}") from None
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
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_language_model(
    spec: ModelSpec = None, device: str | torch.device | None = None
) -> LanguageModel:
    """Load a model that gives probabilities to bases.

    Parameters
    ----------
    spec
        A folder, run, preset or Hub name, None for the packaged model; or a module, which stays
        on its device and in its mode.
    device
        Where a loaded model goes; the CPU when None.

    Returns
    -------
    LanguageModel

    Raises
    ------
    ModelNotFoundError, ModelKindError, CheckpointError
        When there is no such model, or it has no language-model head.
    LogProbsError
        When a module is none, or its tokens are not single bases.
    """
    if isinstance(spec, nn.Module):
        model, name = spec, type(spec).__name__
        _require_token_input(model)
    else:
        from megabase.models.auto import find_kind, load_config, load_model, resolve_model

        folder = resolve_model(spec)
        config = load_config(folder)
        kind, _ = find_kind(folder, config)
        if kind not in ("causal-lm", "masked-lm"):
            what = (config.architectures or [config.model_type])[0]
            raise InferenceError(
                f"{folder}: is a {what} ({kind}), which gives no probabilities to bases; scores "
                "need a model with a language-model head (causal-lm or masked-lm)"
            )
        model, name = load_model(folder, kind=kind, device=device), shown_name(spec, folder)
    masked = language_model_kind(model) == "masked"
    longest = getattr(getattr(model, "config", None), "max_length", None)
    return LanguageModel(model, name, model_digest(model), masked, longest)


def _require_token_input(model: nn.Module) -> None:
    known = inspect.signature(model.forward).parameters
    if "input_ids" in known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    raise InferenceError(
        f"{type(model).__name__} is no language model: it takes no input_ids; give a model of "
        "megabase, or a folder or name of one"
    )


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


def require_length(model: LanguageModel, length: int, what: str) -> None:
    """Refuse inputs that the model cannot take.

    Raises
    ------
    InferenceError
        When `length` positions are too many.
    """
    if model.longest is not None and length > model.longest:
        raise InferenceError(
            f"{what} of {length:,} does not fit the model {model.name}, whose longest input is "
            f"{model.longest:,} positions"
        )

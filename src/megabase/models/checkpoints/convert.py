"""Published checkpoints of any family into model folders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from megabase import __version__
from megabase.errors import CheckpointError
from megabase.models.auto import find_checkpoint, load_model, load_tokenizer
from megabase.models.checkpoints.reader import Weights, read_weights
from megabase.models.checkpoints.save import check_output, save_model_folder
from megabase.models.families import FAMILIES, Family
from megabase.models.tokenizers.character import DNATokenizer
from megabase.untrusted import parsing

__all__ = ["Conversion", "convert_checkpoint", "lengthen_model", "model_from_weights"]


@dataclass(frozen=True)
class Conversion:
    """A model made from a checkpoint."""

    model: PreTrainedModel
    """In evaluation mode."""
    family: str
    """Name of the family."""
    notes: tuple[str, ...]
    """What was decided that the files do not say, or say differently."""
    dropped: tuple[str, ...]
    """Names of the checkpoint that are no part of the model."""
    folder: Path | None = None
    """Where it was written."""


def model_from_weights(weights: Weights, **overrides: Any) -> Conversion:
    """Build a model from published weights, whatever the family.

    Parameters
    ----------
    weights
        As :func:`.reader.read_weights` gives them.
    **overrides
        Fields of the family's configuration that win over what is inferred.

    Returns
    -------
    Conversion
        Not yet written.

    Raises
    ------
    CheckpointError
        When no family knows the names, or the weights do not fit.
    """
    names = list(weights.tensors)
    readers = [(family, family.converter()) for family in FAMILIES]
    for family, reader in readers:
        if reader is not None and reader.recognizes(names):
            made = reader.convert(weights, **overrides)
            return Conversion(made.model, family.name, tuple(made.notes), tuple(made.dropped))
    known = ", ".join(family.name for family, reader in readers if reader is not None)
    raise CheckpointError(
        f"{weights.path}: the tensor names are of no family that is converted ({known}); "
        f"found {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    )


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> Conversion:
    """Read a published checkpoint and write a model folder.

    Parameters
    ----------
    source
        File or folder (see :func:`.reader.read_weights`), a preset's name, or
        a Hub repository.
    destination
        Folder to write.
    config
        A ``config.json`` to use instead of the one beside the weights.
    overwrite
        Replace an earlier model folder.
    **overrides
        Fields of the family's configuration that win over what is inferred.

    Returns
    -------
    Conversion
        What was made, and where.

    Raises
    ------
    CheckpointError
        When the checkpoint cannot be read or does not fit.
    MegabaseError
        When the source is missing or the destination stands in the way.
    """
    folder = Path(destination).expanduser()
    check_output(folder, overwrite)
    path = find_checkpoint(source)
    weights = read_weights(path, config)
    made = model_from_weights(weights, **{k: v for k, v in overrides.items() if v is not None})
    record = {
        "megabase": __version__,
        "source": str(source),
        "sha256": _checksums(weights),
        "model": type(made.model).__name__,
        "notes": list(made.notes),
        "left_out": list(made.dropped),
    }
    tokenizer = _tokenizer(path, made)
    save_model_folder(folder, made.model, tokenizer, {"conversion.json": record}, overwrite)
    return Conversion(made.model, made.family, made.notes, made.dropped, folder)


def lengthen_model(
    source: str | Path, destination: str | Path, longest: int, overwrite: bool = False
) -> Conversion:
    """Write a trained HyenaDNA with room for longer inputs.

    Parameters
    ----------
    source
        As for :func:`~megabase.models.auto.resolve_model`: default, a model folder, a run folder.
    destination
        Folder to write.
    longest
        Positions of the new longest input.
    overwrite
        Replace an earlier model folder.

    Returns
    -------
    Conversion
        What was made, and where.

    Raises
    ------
    MegabaseError
        When the model cannot be made longer (see
        :func:`~megabase.models.hyenadna.modeling.lengthen`) or the destination stands in the way.
    """
    from megabase.models.hyenadna.modeling import lengthen

    folder = Path(destination).expanduser()
    check_output(folder, overwrite)
    model = load_model(source)
    longer = lengthen(model, longest)
    note = (
        f"the longest input was {model.config.max_seq_len:,} positions and is {longest:,}: filters "
        "are as they were for the lags they had, and nothing was trained beyond them"
    )
    record = {
        "megabase": __version__,
        "source": str(source),
        "model": type(longer).__name__,
        "notes": [note],
    }
    tokenizer = load_tokenizer(source)
    tokenizer.model_max_length = longest
    save_model_folder(folder, longer, tokenizer, {"conversion.json": record}, overwrite)
    return Conversion(longer, "hyenadna", (note,), (), folder)


def _checksums(weights: Weights) -> dict[str, str]:
    sums = {}
    for file in weights.files:
        with file.open("rb") as stream:
            sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums


def _tokenizer(source: Path, made: Conversion) -> Any:
    """Take the tokenizer beside the weights if it is one of ours, else a new one."""
    family: Family = next(family for family in FAMILIES if family.name == made.family)
    tokenizer_class = family.tokenizer_classes()[0]
    folder = source if source.is_dir() else source.parent
    limit = getattr(made.model.config, "max_length", None)
    if tokenizer_class is DNATokenizer and (folder / "tokenizer_config.json").is_file():
        with parsing(folder / "tokenizer_config.json", CheckpointError):
            return DNATokenizer.from_pretrained(folder)
    for_config = getattr(tokenizer_class, "for_config", None)
    if for_config is not None:  # its vocabulary depends on the model
        return for_config(made.model.config)
    return tokenizer_class(model_max_length=limit)

"""Convert published checkpoints of any family into model folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from megabase import __version__
from megabase.errors import CheckpointError
from megabase.models.auto import find_checkpoint, load_model, load_tokenizer
from megabase.models.checkpoints.published import ConvertedModel
from megabase.models.checkpoints.reader import Weights, read_weights
from megabase.models.checkpoints.save import check_output, save_model_folder
from megabase.models.families import all_families, family_of
from megabase.models.tokenizers.character import DNATokenizer
from megabase.untrusted import parsing


def _model_from_weights(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights, whatever the family; nothing is written.

    Overrides are fields of the family's configuration that win over what is inferred.
    """
    names = list(weights.tensors)
    readers = [(family.name, reader) for family in all_families() if (reader := family.converter())]
    for _, reader in readers:
        if reader.recognizes(names):
            return reader.convert(weights, **overrides)
    raise CheckpointError(
        f"{weights.path}: the tensor names are of no family that is converted "
        f"({', '.join(name for name, _ in readers)}); "
        f"found {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    )


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> ConvertedModel:
    """Read a published checkpoint and write a model folder.

    `source` is a file or folder (see :func:`.reader.read_weights`), a preset's name, or a Hub
    repository; `config` a ``config.json`` in place of the one next to the weights. Overrides are
    fields of the family's configuration that win over what is inferred.
    """
    check_output(Path(destination).expanduser(), overwrite)
    path = find_checkpoint(source)
    weights = read_weights(path, config)
    made = _model_from_weights(weights, **{k: v for k, v in overrides.items() if v is not None})
    sums: dict[str, str] = {}
    for file in weights.files:
        with file.open("rb") as stream:
            sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    record = {
        "megabase": __version__,
        "source": str(source),
        "sha256": sums,
        "model": type(made.model).__name__,
        "notes": list(made.notes),
        "left_out": list(made.dropped),
    }
    tokenizer = _tokenizer(path, made.model.config)
    save_model_folder(destination, made.model, tokenizer, {"conversion.json": record}, overwrite)
    return made


def lengthen_model(
    source: str | Path, destination: str | Path, longest: int, overwrite: bool = False
) -> ConvertedModel:
    """Write a trained HyenaDNA with room for inputs of `longest` positions.

    `source` is as for :func:`~megabase.models.auto.resolve_model`; see
    :func:`~megabase.models.hyenadna.modeling.lengthen` for which models can be made longer.
    """
    from megabase.models.hyenadna.modeling import lengthen

    check_output(Path(destination).expanduser(), overwrite)
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
    save_model_folder(destination, longer, tokenizer, {"conversion.json": record}, overwrite)
    return ConvertedModel(longer, (note,), ())


def _tokenizer(source: Path, config: Any) -> Any:
    """Take the tokenizer next to the weights if it is one of ours, else a new one."""
    family = family_of(config.model_type)
    assert family is not None  # its converter has made the model
    tokenizer_class = family.tokenizer_classes()[0]
    folder = source if source.is_dir() else source.parent
    if tokenizer_class is DNATokenizer and (folder / "tokenizer_config.json").is_file():
        with parsing(folder / "tokenizer_config.json", CheckpointError):
            return DNATokenizer.from_pretrained(folder)
    for_config = getattr(tokenizer_class, "for_config", None)
    if for_config is not None:  # its vocabulary depends on the model
        return for_config(config)
    return tokenizer_class(model_max_length=getattr(config, "max_length", None))

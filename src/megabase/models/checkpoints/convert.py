"""Published checkpoints of any family into model folders, which are either whole or absent."""

import copy
import importlib
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from megabase import __version__
from megabase.errors import CheckpointError, MegabaseError, OutputError
from megabase.genome.files import file_digest, real_place, write_json, writing
from megabase.layers.hyena import PositionalFeatures
from megabase.models.auto import find_checkpoint, load_model, load_tokenizer
from megabase.models.checkpoints.reader import ConvertedModel, Weights, read_weights
from megabase.models.families import FAMILIES, family_of
from megabase.models.tokenizers.character import DNATokenizer
from megabase.untrusted import parsing


def _model_from_weights(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights, whatever the family; nothing is written."""
    names = list(weights.tensors)
    for family in FAMILIES.values():
        if family.recognizes(names):
            reader: Any = importlib.import_module(family.module)
            return reader.convert(weights, **overrides)
    known = ", ".join(family.name for family in FAMILIES.values() if family.telling)
    raise CheckpointError(
        f"{weights.path}: the tensor names are of no family that is converted ({known}); "
        f"found {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    )


def convert_checkpoint(
    source: str | Path, destination: str | Path, config: str | Path | None = None,
    overwrite: bool = False, **overrides: Any,
) -> ConvertedModel:  # fmt: skip
    """Read a published checkpoint and write a model folder.

    `source` is a file or folder (see :func:`.reader.read_weights`), a preset's name, or a Hub
    repository; `config` a ``config.json`` in place of the one next to the weights. Overrides are
    fields of the family's configuration that win over what is inferred.
    """
    _check_output(Path(destination).expanduser(), overwrite)
    path = find_checkpoint(source)
    weights = read_weights(path, config)
    made = _model_from_weights(weights, **{k: v for k, v in overrides.items() if v is not None})
    sums = {file.name: file_digest(file) for file in weights.files}
    record = {"sha256": sums, "left_out": list(made.dropped)}
    tokenizer = _tokenizer(path, made.model.config)
    _save_model_folder(source, destination, made, tokenizer, record)
    return made


def lengthen_model(
    source: str | Path, destination: str | Path, longest: int, overwrite: bool = False
) -> ConvertedModel:
    """Write a trained HyenaDNA with room for inputs of `longest` positions.

    `source` is as for :func:`~megabase.models.auto.resolve_model`. Outputs for inputs that it took
    before are the same. MegabaseError for another family, a two-sided model, tables or positions
    that were learned, or a length that is not above the present one.
    """
    _check_output(Path(destination).expanduser(), overwrite)
    model = load_model(source)
    longer = _lengthen(model, longest)
    note = (
        f"the longest input was {model.config.max_seq_len:,} positions and is {longest:,}: filters "
        "are as they were for the lags they had, and nothing was trained beyond them"
    )
    tokenizer = load_tokenizer(source)
    tokenizer.model_max_length = longest
    made = ConvertedModel(longer, (note,), ())
    _save_model_folder(source, destination, made, tokenizer, {})
    return made


def _lengthen(model: PreTrainedModel, longest: int) -> PreTrainedModel:
    """Give a longer model of the same class and parameters; the given one is not changed."""
    config: Any = model.config
    if config.model_type != "hyenadna":
        raise MegabaseError(
            f"the model is of the kind {config.model_type!r}; only hyenadna is made longer this way"
        )
    if config.bidirectional != "none" or config.lr_pos_emb or config.max_position_embeddings:
        raise MegabaseError(
            "the model is two-sided or has learned positions; only a HyenaDNA that reads left to "
            "right, with computed positions, is made longer"
        )
    if longest <= config.max_seq_len:
        raise MegabaseError(
            f"the new longest input is {longest:,}, and the model takes {config.max_seq_len:,} "
            "already; give more"
        )
    longer_config = copy.deepcopy(config)
    longer_config.max_seq_len = longest
    longer: PreTrainedModel = type(model)(longer_config)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, PositionalFeatures):
            state[f"{name}.z"], state[f"{name}.t"] = _tables(module, longest)
    longer.load_state_dict(state)
    return longer.train(model.training)


def _tables(module: PositionalFeatures, longest: int) -> tuple[Tensor, Tensor]:
    """Continue the tables of a filter: ``z`` (1, longest, features) and ``t`` (1, longest, 1)."""
    known, bands = module.l_max, (module.features - 1) // 2
    lag = torch.arange(known, longest, dtype=torch.float64)[:, None]
    time = lag / (known - 1)
    band = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    phase = band * (2 * math.pi * lag / known)
    features = torch.cat([time.clamp(max=1), phase.cos(), -phase.sin()], dim=-1)
    z, t = module.z.detach(), module.t
    return torch.cat([z, features[None].to(z)], dim=1), torch.cat([t, time[None].to(t)], dim=1)


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


def _save_model_folder(
    source: str | Path, destination: str | Path, made: ConvertedModel, tokenizer: Any,
    record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write a folder that transformers loads, atomically, in place of an earlier one."""
    folder = Path(destination).expanduser()
    told = {"megabase": __version__, "source": str(source), "model": type(made.model).__name__}
    final = real_place(folder)  # a link stays, and what it names is replaced
    token = uuid.uuid4().hex[:8]
    partial = final.parent / f".{final.name}.partial-{token}"
    replaced = final.parent / f".{final.name}.replaced-{token}"
    try:
        with writing(folder):
            partial.mkdir()
            write_model(partial, made.model, tokenizer)
            told |= {"notes": list(made.notes), **record}
            write_json(partial / "conversion.json", told)
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


def _check_output(folder: Path, overwrite: bool) -> None:
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

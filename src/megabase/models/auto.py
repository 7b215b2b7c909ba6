"""From a name to a model: folders, training runs, Hub repositories and the packaged default.

:func:`load_model` is strict where transformers is lenient: a missing tensor is an error that names
it, never a freshly drawn number.
"""

import hashlib
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from megabase.errors import CheckpointError, ConfigError, ModelError
from megabase.models.checkpoints.checks import check_config, require_finite_weights
from megabase.models.checkpoints.reader import read_weights, require_fit
from megabase.models.families import FAMILIES, KINDS, family_of
from megabase.models.presets import PRESETS
from megabase.models.tokenizers.kmer import DNABERTTokenizer
from megabase.untrusted import parsing, read_json, shown

DEFAULT_MODEL = Path(__file__).parent / "default"
"""Folder of the causal model inside the package."""
MASKED_MODEL = DEFAULT_MODEL.with_name("default_masked")
"""Folder of the masked one."""
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")  # owner/name
_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt")  # of a model folder: never code or pickles
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.ckpt", "*.bin")  # of what convert reads
_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")  # to hint at convert


def resolve_model(spec: str | Path | None = None) -> Path:
    """Find the folder of a model.

    Parameters
    ----------
    spec
        None or ``default`` for the causal model inside the package, ``default-masked`` for the
        masked one; a model folder; a run folder (its
        best checkpoint, else its last); a preset's name; or a Hub repository (``owner/name``),
        which is fetched unless it is in the local cache. ModelError says what was found instead.
    """
    if spec is None:
        return _packaged(DEFAULT_MODEL)
    if not isinstance(spec, (str, os.PathLike)):
        raise ModelError(f"a model is a folder, a name, or a module; found {type(spec).__name__}")
    path = Path(spec).expanduser()
    with parsing(shown(str(spec)), ModelError, "expected a model"):
        is_folder = path.is_dir()  # an OSError for a name longer than names can be
    if is_folder:
        return _folder(path)
    if str(spec) in ("default", "default-masked"):  # as people name them on the command line
        return _packaged(DEFAULT_MODEL if str(spec) == "default" else MASKED_MODEL)
    if path.is_file():
        hint = ""
        if path.suffix in _CHECKPOINT_SUFFIXES:
            hint = f"; make one of it with: megabase convert {path} FOLDER"
        raise ModelError(f"{path}: is a file; expected a model folder{hint}")
    if repository := _repository(spec, "hub"):
        return _folder(_fetch(repository, _HUB_FILES))
    raise ModelError(
        f"{spec}: there is no such folder, and it is neither a preset (megabase info --list) "
        "nor a Hub repository (owner/name)"
    )


def _packaged(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(
            "this installation has no packaged default model; name a model folder, "
            "a run folder or a Hub repository"
        )
    return folder


def _folder(path: Path) -> Path:
    """Find the model inside a folder that exists."""
    if (path / "config.json").is_file():
        return path
    for link in ("best", "last"):
        if (path / link / "config.json").is_file():
            return (path / link).resolve()
    if any((folder / "prompt.json").is_file() for folder in (path, path / "prompt", path / "last")):
        raise ModelError(
            f"{path}: holds a soft prompt and no model; name the model that it was made for, and "
            f"the prompt beside it (megabase predict MODEL FILE --prompt {path})"
        )
    if (path / "checkpoints").is_dir():
        raise ModelError(
            f"{path}: is a training run without a finished checkpoint; "
            "continue it as it was begun, with resume=True"
        )
    weights = sorted(file.name for file in path.iterdir() if file.suffix in _CHECKPOINT_SUFFIXES)
    hint = f"; make one of {weights[0]} with: megabase convert {path} FOLDER" if weights else ""
    raise ModelError(f"{path}: has no config.json, so it is not a model folder{hint}")


def _repository(spec: str | Path, kind: str) -> str | None:
    """Give the Hub repository of a preset (its ``hub`` or ``checkpoint``) or of a name like one."""
    name = str(spec)
    if name in PRESETS:
        return getattr(PRESETS[name], kind)
    named = isinstance(spec, str) and _HUB_NAME.match(name)
    return name if named and not Path(name.split("/")[0]).is_dir() else None


def _fetch(repository: str, patterns: Sequence[str]) -> Path:
    """Give the local copy of a Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{repository}: is not a local folder, and cannot be fetched from the Hub ({reason})"
        ) from error
    for file in filter(Path.is_symlink, folder.iterdir()):
        _require_intact(file)
    return folder


def _require_intact(file: Path) -> None:
    """Compare a file of the cache with its checksum, which is the name of what it links to.

    That is a sha256, or, of small files, git's sha1; mirrors that give neither are not checked.
    """
    blob = file.resolve()
    if not blob.is_file() or len(blob.name) not in (40, 64):
        return
    with blob.open("rb") as content:
        if len(blob.name) == 64:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        else:
            git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
            found = hashlib.file_digest(content, git.copy).hexdigest()
    if found != blob.name:
        raise ModelError(
            f"{file}: is damaged: its checksum is {found}, that of the Hub {blob.name}; "
            f"delete {blob}, and it is fetched again"
        )


def find_checkpoint(spec: str | Path) -> Path:
    """Find a checkpoint to convert: a file or folder as it is, else a Hub repository.

    `spec` is a path, a preset's name (its original checkpoint) or ``owner/name``.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path
    if repository := _repository(spec, "checkpoint"):
        return _fetch(repository, _CHECKPOINT_FILES)
    raise ModelError(f"{spec}: there is no such file, folder, preset or Hub repository")


def load_config(spec: str | Path | None = None) -> PreTrainedConfig:
    """Read the configuration of a model; `spec` as for :func:`resolve_model`.

    ModelError when its family is unknown or its configuration is damaged.
    """
    path = resolve_model(spec)
    file = path / "config.json"
    content = check_config(read_json(file, ModelError), file, ModelError)
    model_type = content.get("model_type")
    if model_type == "bert" and _is_dnabert(content, path):
        # The published folders call themselves just "bert"; the vocabulary tells.
        content["model_type"] = model_type = "dnabert"
        names = content.get("architectures") or []
        content["architectures"] = [name.replace("Bert", "DNABERT", 1) for name in names]
    family = family_of(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = (family.config_class().model_type for family in FAMILIES.values())
        published = model_type is None and "d_model" in content
        hint = "; a published checkpoint becomes a model folder with: megabase convert"
        hint = hint if published else f"; {FAMILIES.advice}"
        raise ModelError(
            f"{file}: model_type is {shown(model_type)}; expected one of {', '.join(known)}{hint}"
        )
    with parsing(file, ModelError, "the settings of a model are expected"):
        config = family.config_class().from_dict(content)
        config.name_or_path = str(path)
    return config


def _is_dnabert(settings: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a folder whose settings say ``bert`` has a vocabulary of k-mers."""
    vocabulary = folder / "vocab.txt"
    try:
        told = not vocabulary.exists() or DNABERTTokenizer.read_k(vocabulary) > 0
    except ModelError:
        return False
    return told and settings.get("vocab_size") in [4**k + 5 for k in range(3, 7)]


def open_model(
    spec: str | Path | None = None, kind: str | None = None
) -> tuple[Path, Any, str, type[PreTrainedModel]]:
    """Find a model: its folder, configuration, kind and class; `spec` as for :func:`resolve_model`.

    The kind, one of :data:`~megabase.models.families.KINDS`, is by default what the model was saved
    as; a ModelError when its family has no class of the requested `kind`.
    """
    path = resolve_model(spec)
    config = load_config(path)
    family = family_of(config.model_type)
    classes = family.classes() if family is not None else {}
    if kind is None:
        by_name = {model_class.__name__: kind for kind, model_class in classes.items()}
        known = (by_name[name] for name in config.architectures or [] if name in by_name)
        kind = next(known, next(iter(classes), "base"))
    if kind not in KINDS:
        raise ModelError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    if kind not in classes:
        raise ModelError(
            f"{path}: is a {config.model_type} model, which cannot be loaded as {kind}; "
            f"it has {', '.join(classes)}"
        )
    return path, config, kind, classes[kind]


def load_model(
    spec: str | Path | None = None, kind: str | None = None, *, new_head: bool = False,
    device: str | torch.device | None = None, dtype: torch.dtype | None = None, **overrides: Any,
) -> PreTrainedModel:  # fmt: skip
    """Load a model with its weights, in evaluation mode.

    Parameters
    ----------
    spec
        As for :func:`resolve_model`.
    kind
        One of :data:`~megabase.models.families.KINDS`; by default what the folder was saved as.
    new_head
        Allow a head that the folder has no weights for: it is drawn anew, for training. Weights of
        the old head are left out.
    device
        Where the model goes; the CPU by default.
    dtype
        Type of the weights; float32 by default.
    **overrides
        Fields of the configuration that are changed, such as ``num_labels``.

    Raises
    ------
    ModelError
        When there is no such model, its family is unknown, or it has no such head.
    CheckpointError
        Naming every missing, unexpected and mis-shaped tensor.
    NotFiniteError
        Naming a tensor that holds NaN or infinity.
    """
    path, config, kind, model_class = open_model(spec, kind)
    for name, value in overrides.items():
        setattr(config, name, value)
    tensors = read_weights(path).tensors
    _check_size(model_class, config, tensors, path)
    # The tensors are read here, so that transformers opens no file of the folder: neither a pickle
    # nor an adapter, an index or a distributed checkpoint that names other files.
    with _quiet(), parsing(path, CheckpointError, "it cannot be loaded"):
        loaded: Any = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype or torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    model: PreTrainedModel = loaded[0]
    model.config.name_or_path = str(path)
    _check(model, kind, loaded[1], path, new_head)
    require_finite_weights(model, str(path))
    torch.nn.Module.to(model, torch.device(device or "cpu"))
    return model.eval()


# Torch remembers the constructors that a device context redirects as it first finds them, and
# transformers replaces one (linspace) while it loads a model. Seen before that, all of them stay on
# the meta device in _check_size, whatever the settings of a folder ask to allocate.
with torch.device("meta"):
    torch.empty(0)
_SPARE_NUMBERS = 1 << 26
"""What a model may have beyond twice the numbers of its weights: a new head, shared tensors."""


def _check_size(
    model_class: type[PreTrainedModel], config: PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor], path: Path,
) -> None:  # fmt: skip
    """Refuse settings of a far larger model than the weights are of, before it is allocated."""
    with parsing(path / "config.json", CheckpointError), torch.device("meta"):
        wanted = sum(value.numel() for value in model_class(config).state_dict().values())
    found = sum(value.numel() for value in tensors.values())
    if wanted > 2 * found + _SPARE_NUMBERS:
        raise CheckpointError(
            f"{path}: config.json describes a model of {wanted:,} numbers, and the weights have "
            f"{found:,}; they are of different models"
        )


def _check(model: PreTrainedModel, kind: str, info: Any, path: Path, new_head: bool) -> None:
    tied = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    apart = (pair for pair in tied if operator.is_not(*map(model.get_parameter, pair)))
    if parted := [" and ".join(pair) for pair in apart]:
        raise CheckpointError(
            f"{path}: the configuration ties tensors that have different values in the file "
            f"({'; '.join(parted)}); load it with tie_word_embeddings=False (the head) or "
            "bidirectional_weight_tie=False (the two directions)"
        )
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""

    def is_head(name: str) -> bool:
        # The pooler of a BERT serves classifiers alone: masked prediction does not train it.
        above = not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")
        return above and kind != "base" and prefix != ""

    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    require_fit(
        path,
        type(model).__name__,
        missing=[name for name in missing if not is_head(name)],
        # What lies outside the base model is another head, which this kind does not use.
        unexpected=[
            name for name in unexpected if prefix and name.startswith(prefix) and not is_head(name)
        ],
        mismatched=[
            (name, tuple(want), tuple(found))
            for name, found, want in sorted(tuple(row) for row in info["mismatched_keys"])
            if not (new_head and is_head(name))
        ],
    )
    head = [name for name in missing if is_head(name)]
    if head and not new_head:
        others = [name for name in unexpected if not name.startswith(prefix)]
        raise ModelError(
            f"{path}: has no {kind} head (missing: {', '.join(head)}"
            + (f"; it has {', '.join(others)}" if others else "")
            + "); load it as another kind, or give it a new head to train (new_head=True)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bar and the load report of transformers; ours replaces them."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(spec: str | Path | None = None) -> Any:
    """Load the tokenizer of a model; the family's own when the folder has none."""
    path = resolve_model(spec)
    config: Any = load_config(path)
    if config.model_type != "dnabert":
        family = family_of(config.model_type)
        usual = family.tokenizer_classes()[0] if family else None
        return read_tokenizer(path, usual, getattr(config, "max_length", None))
    # Whatever its tokenizer_config.json names.
    if not (path / "vocab.txt").exists():
        return DNABERTTokenizer(k=int(config.k or 0))
    with parsing(path / "vocab.txt", ModelError):
        tokenizer = DNABERTTokenizer.from_pretrained(path)
        if tokenizer.vocab_size != config.vocab_size:
            raise ConfigError(
                f"{path}: the model reads {config.vocab_size} tokens, its vocab.txt has "
                f"{tokenizer.vocab_size} ({tokenizer.k}-mers); they are of different models"
            )
    return tokenizer


def read_tokenizer(folder: Path, usual: Any = None, longest: int | None = None) -> Any:
    """Read the tokenizer of a folder with one of our classes; ModelError when it names another.

    `usual` is the class when the folder names none, and `longest` the longest input in tokens when
    it does not say.
    """
    file = folder / "tokenizer_config.json"
    said = read_json(file, ModelError) if file.is_file() else {}
    ours = {
        kind.__name__: kind for family in FAMILIES.values() for kind in family.tokenizer_classes()
    }
    name = said.get("tokenizer_class")
    # A name and nothing else: auto_map, which names code of the folder, is not followed.
    tokenizer_class = usual if name is None else ours.get(name) if isinstance(name, str) else None
    if tokenizer_class is None:
        raise ModelError(
            f"{file}: tokenizer_class is {shown(name)}; expected one of {', '.join(ours)}"
        )
    extra = {} if said else {"model_max_length": longest}
    with parsing(file, ModelError, "the files of a tokenizer are expected"):
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True, **extra)
        tokenizer.get_vocab()
        tokenizer("ACGT")  # some damage shows in use alone
    return tokenizer

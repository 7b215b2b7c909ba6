"""The one loader of every verb: a model by name or as it is, with its tokenizer, name and hash."""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from megabase.data.vocabulary import LOGIT_COLUMNS
from megabase.errors import InputError
from megabase.models.adapt.prompt import PromptedModel, load_prompt, read_prompt
from megabase.models.auto import load_model, load_tokenizer, open_model, resolve_model
from megabase.models.checkpoints.checks import model_digest, require_finite_weights
from megabase.models.families import family_of
from megabase.models.heads import HEADS
from megabase.models.tokenizers.encoder import TokenEncoder
from megabase.untrusted import parse_yaml, read_text

_TRACKS_KIND, _ = HEADS["tracks"]  # tracks are an output at every token
_SHOWN_CLASSES = 20  # outputs that an error message lists: about two lines


@dataclass(frozen=True)
class Loaded:
    """A model ready for inference."""

    model: Any  # the module
    kind: str  # one of megabase.models.families.KINDS
    name: str  # for outputs: never a path of this machine
    folder: Path | None = None  # None for a model in memory
    both_strands: bool = False
    """Whether the metrics of its training are those of both strands averaged."""

    @cached_property
    def encoder(self) -> TokenEncoder:
        """From base codes to its tokens."""
        config = self.model.config
        if self.folder is not None:
            tokenizer = load_tokenizer(self.folder)
        else:
            family = family_of(config.model_type)
            assert family is not None  # the loader refused others
            tokenizer = family.tokenizer_classes()[0]()
            rows = int(getattr(config, "vocab_rows", config.vocab_size))
            if len(tokenizer.get_vocab()) > rows:
                raise InputError(
                    f"{self.name} has {rows:,} rows of embeddings, fewer than its usual tokenizer "
                    "has tokens; save model and tokenizer in a folder, and name that"
                )
        if isinstance(self.model, PromptedModel):
            return TokenEncoder(tokenizer)
        return TokenEncoder(tokenizer, _uses_special_tokens(self.folder, config.model_type))

    @cached_property
    def digest(self) -> str:
        """sha256 over configuration and weights, those of a soft prompt included."""
        if not isinstance(self.model, PromptedModel):
            return model_digest(self.model)
        both = model_digest(self.model.model) + model_digest(self.model)
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def masked(self) -> bool:
        """Whether it predicts hidden bases from both sides (otherwise the next base)."""
        return self.kind == "masked-lm"

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU when they wait elsewhere for the call of their module."""
        found = (parameter.device for parameter in self.model.parameters())
        return next((device for device in found if device.type != "meta"), torch.device("cpu"))

    @property
    def longest(self) -> int | None:
        """Longest sequence in tokens; None when there is no limit."""
        # A soft prompt takes positions of the model, which the prompted model has counted.
        prompted = isinstance(self.model, PromptedModel)
        holder = self.model if prompted else getattr(self.model, "config", None)
        return getattr(holder, "max_length", None)

    @property
    def padded(self) -> bool:
        """Whether sequences of different lengths may share a batch without a trace."""
        config = self.model.config
        causal = getattr(config, "is_causal_model", config.model_type == "megabase_mamba")
        return self.encoder.per_base and bool(causal)

    def require_length(self, length: int, what: str) -> None:
        """Refuse inputs of more positions than the model takes (:class:`InputError`)."""
        if self.longest is not None and length > self.longest:
            raise InputError(
                f"{what} of {length:,} does not fit the model {self.name}, whose longest input is "
                f"{self.longest:,} positions"
            )

    def class_names(self) -> tuple[str, ...]:
        """Give the names of the outputs of a head, by number."""
        names = {int(i): str(name) for i, name in (self.model.config.id2label or {}).items()}
        return tuple(names[i] for i in sorted(names))


ModelSpec = str | Path | nn.Module | Loaded | None
"""A folder, run, preset or Hub name; None for the packaged model; or a model as it is."""


def load(
    spec: ModelSpec = None, *, head: Literal["own", "none", "language"] = "own",
    prompt: str | Path | None = None, device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:  # fmt: skip
    """Load a model for inference, and check its weights once.

    Parameters
    ----------
    spec
        Model folder, run folder, preset or Hub name; None or ``default`` for the packaged model;
        a module, which stays on its device and in its mode; or what an earlier call gave, which is
        given back as it is.
    head
        ``own``: the one it was saved with. ``none``: left out where the family allows it.
        ``language``: it must give probabilities to single bases; a module then need not be of
        megabase, if it takes ``input_ids``.
    prompt
        Folder of a soft prompt for this model; the model then gives the prompt's answers.
    device, dtype
        Where a loaded model goes, and the type of its weights; the CPU and float32 when None.

    Raises
    ------
    NotFiniteError
        When a weight is NaN or infinite.
    InputError
        When the model does not have the head that is wanted, or a module is of another library.
    """
    if prompt is not None:
        return _load_prompted(spec.model if isinstance(spec, Loaded) else spec, prompt, device)
    if isinstance(spec, Loaded):
        if head == "language":
            language_model_kind(spec.model)
        return spec
    if isinstance(spec, nn.Module):
        return _given(spec, head)
    folder, config, saved, _ = open_model(spec)
    family = family_of(config.model_type)
    bare = head == "none" and family is not None and "base" in family.classes()
    if head == "language" and saved not in ("causal-lm", "masked-lm"):
        what = (config.architectures or [config.model_type])[0]
        raise InputError(
            f"{folder}: is a {what} ({saved}), which gives no probabilities to bases; scores "
            "need a model with a language-model head (causal-lm or masked-lm)"
        )
    # The body of a masked model has no pooler, which the bare class of a BERT would miss.
    inside = bare and saved == "masked-lm"
    as_kind = saved if inside or not bare else "base"
    model: Any = load_model(folder, as_kind, device=device, dtype=dtype)
    model = model.base_model if inside else model
    kind = f"{language_model_kind(model)}-lm" if head == "language" else "base" if bare else saved
    both = bool(getattr(model.config, "strand_average", False))
    return Loaded(model, kind, _shown_name(spec, folder), folder, both)


def _uses_special_tokens(folder: Path | None, model_type: str) -> bool:
    """Tell whether a model reads special tokens around a sequence.

    A fine-tuning run says so in its ``config.yaml``; otherwise it is a habit of the family. The
    folder is None for a model in memory.
    """
    family = family_of(model_type)
    habit = family is not None and family.special_tokens
    parents = () if folder is None else (folder, *folder.resolve().parents[:2])
    file = next((p / "config.yaml" for p in parents if (p / "config.yaml").is_file()), None)
    if file is None:
        return habit
    settings = parse_yaml(read_text(file, InputError), file, InputError)
    head = settings.get("head") if isinstance(settings, dict) else None
    wanted = head.get("special_tokens", "auto") if isinstance(head, dict) else "auto"
    return habit if wanted == "auto" else wanted == "yes"


def _given(model: nn.Module, head: str) -> Loaded:
    """Take a module as it is."""
    name, config = type(model).__name__, getattr(model, "config", None)
    family = family_of(getattr(config, "model_type", ""))
    if head == "language":
        known = inspect.signature(model.forward).parameters
        if "input_ids" not in known and all(p.kind is not p.VAR_KEYWORD for p in known.values()):
            raise InputError(
                f"{name} is not a language model: it takes no input_ids; give a model of "
                "megabase, or a folder or name of one"
            )
        kind = f"{language_model_kind(model)}-lm"
    elif family is None:
        raise InputError(f"{name} is not a model of megabase")
    else:
        kinds = {found.__name__: kind for kind, found in family.classes().items()}
        kind = kinds.get(name, "base")
    require_finite_weights(model, name)
    return Loaded(model, kind, name, None, bool(getattr(config, "strand_average", False)))


def _load_prompted(
    spec: str | Path | nn.Module | None, prompt: str | Path, device: str | torch.device | None
) -> Loaded:
    """Load a model together with a soft prompt."""
    folder: Path | None = None
    if isinstance(spec, PreTrainedModel):
        prompted, name = load_prompt(prompt, spec), type(spec).__name__
    elif isinstance(spec, nn.Module):
        raise InputError(f"a prompt cannot be given to {type(spec).__name__}")
    else:
        folder = resolve_model(spec)
        prompted, name = load_prompt(prompt, folder, device=device), _shown_name(spec, folder)
    kind, _ = HEADS[prompted.spec.kind]
    strands = bool(read_prompt(prompt).facts.get("strand_average", False))
    return Loaded(prompted, kind, f"{name} + prompt {Path(prompt).name}", folder, strands)


def _shown_name(spec: str | Path | None, folder: Path) -> str:
    """Give the name of a model for outputs; of a checkpoint with its run, ``tuned/step-100``."""
    if spec is not None and Path(spec).expanduser().exists():
        folder = folder.resolve()
        in_run = folder.parent.name == "checkpoints"
        return f"{folder.parent.parent.name}/{folder.name}" if in_run else folder.name
    packaged = spec in (None, "default", "default-masked")
    return f"megabase {spec or 'default'}" if packaged else str(spec)


def language_model_kind(model: nn.Module) -> Literal["causal", "masked"]:
    """Tell how a model gives a probability to a base: ``causal`` or ``masked``.

    Causal: from the bases before it; masked: from both sides, itself hidden. Raises
    :class:`InputError` when the model has no language-model head, has other tokens than bases, or
    was given a next-token head although its positions see later ones.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    size = getattr(config, "vocab_size", None) or 0
    if size > LOGIT_COLUMNS:
        raise InputError(
            f"{name} has a vocabulary of {size:,} tokens: its tokens are longer "
            "than a base, so it gives no probability to single bases; use a character-level model"
        )
    if name.endswith("ForMaskedLM"):
        return "masked"
    headless = getattr(model, "base_model_prefix", None) and "For" not in name
    headless = headless or ("For" in name and not name.endswith("ForCausalLM"))
    if headless or (hasattr(model, "config_class") and not hasattr(model, "get_output_embeddings")):
        raise InputError(
            f"{name} has no language-model head; load the model as causal-lm or masked-lm, from a "
            "folder that has that head"
        )
    if getattr(config, "is_causal_model", True) is False:
        raise InputError(
            f"{name} is bidirectional, so its next-token head sees what it predicts; use a causal "
            "model, or one trained on masked bases"
        )
    return "causal"


def track_names(spec: ModelSpec) -> tuple[str, ...]:
    """Name the tracks of a model that has numbers for every base; nothing for another."""
    if isinstance(spec, Loaded):
        config, kind = spec.model.config, spec.kind
    elif isinstance(spec, nn.Module):
        config: Any = getattr(spec, "config", None)
        kind = _TRACKS_KIND if type(spec).__name__.endswith("ForTokenClassification") else ""
    else:
        _, config, kind, _ = open_model(spec)
    if kind != _TRACKS_KIND or getattr(config, "label_kind", None) != "tracks":
        return ()
    return tuple(str(name) for _, name in sorted(config.id2label.items()))


def find_class(names: Sequence[str], wanted: str | int | None, model: str) -> int:
    """Give the number of an output by its name or number; :class:`InputError` for another.

    None is the only one.
    """
    known = ", ".join(names[:_SHOWN_CLASSES])
    if wanted is None and len(names) > 1:
        raise InputError(f"{model} has {len(names)} outputs; name one as the target: {known}")
    wanted = 0 if wanted is None else wanted
    for number, name in enumerate(names):
        if wanted in (name, number):
            return number
    if str(wanted).isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise InputError(f"{model} has no output {wanted!r}; it has {known}")


@contextmanager
def inference_mode(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Switch dropout, and gradients unless they are wanted, off inside a ``with`` block.

    Masks inside are those of :class:`TokenEncoder`, padded on the right. The mode of every module
    is restored.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    base: Any = getattr(model, "base_model", model)
    before, base.padded_side = getattr(base, "padded_side", None), "right"
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        base.padded_side = before
        for module, flag in training.items():
            module.training = flag


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Use this many threads for tensor operations inside a block; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str | None = None) -> torch.device:
    """Give the device of this name if torch can use it; for None a GPU if available, or the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r}: {str(error).splitlines()[0]}") from None
    return device

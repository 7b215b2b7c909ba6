"""The model families, and their registration with the ``Auto`` classes of transformers.

Importing this module makes every built-in family known, so ``AutoModelForCausalLM.from_pretrained``
loads a folder of a known family with our classes and never with code from the folder. Others add a
family with :func:`register_family`, or with an entry point of the group ``megabase.families`` whose
value is the :class:`Family`.
"""

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from megabase.registry import Registry

_AUTO_CLASSES: dict[str, tuple[str, Any]] = {
    "causal-lm": ("ForCausalLM", AutoModelForCausalLM),
    "masked-lm": ("ForMaskedLM", AutoModelForMaskedLM),
    "sequence-classification": ("ForSequenceClassification", AutoModelForSequenceClassification),
    "token-classification": ("ForTokenClassification", AutoModelForTokenClassification),
    "base": ("", AutoModel),
}
"""What a class is for, by the end of its name, as in transformers."""
KINDS: tuple[str, ...] = tuple(_AUTO_CLASSES)
"""What a model is for: the names of the heads, and ``base`` for none."""
# The tokenizer of most families, one token a base, and that of decoders over k-mers.
_TOKENIZERS = "megabase.models.tokenizers"  # where they are
_CHARACTERS, _KMERS = f"{_TOKENIZERS}.character:DNATokenizer", f"{_TOKENIZERS}.kmer:KmerTokenizer"


@dataclass(frozen=True)
class Family:
    """One family of models."""

    name: str
    """Name in settings and on the command line."""
    module: str
    """Module of its classes. Their names end with what they are for, as in transformers:
    ``...ForCausalLM``, ``...ForMaskedLM``, ``...ForSequenceClassification``,
    ``...ForTokenClassification``; the one without ``For`` is the bare model."""
    tokenizers: tuple[str, ...] = (_CHARACTERS,)
    """Tokenizer classes as ``module:class``. The first is used when a folder names none; the
    others answer when a folder's ``tokenizer_config.json`` names them."""
    telling: str = ""
    """Pattern that tells published weights, or ours, of the family: it is searched, with ``^`` and
    ``$`` at line ends, in the sorted names of the tensors, one a line. The module then makes models
    of them: it has ``convert(weights, **overrides)``."""
    pretrained: bool = False
    """Whether ``megabase pretrain`` trains it: it reads one token a base."""
    length_field: str | None = None
    """Setting of a new model that limits the length of its input."""
    special_tokens: bool = False
    """Whether it reads a sequence between special tokens."""

    def classes(self) -> Mapping[str, type[PreTrainedModel]]:
        """Give the model classes by kind (see :data:`KINDS`)."""
        return _classes(self)

    def config_class(self) -> type[PreTrainedConfig]:
        """Give the configuration class."""
        config_class = next(iter(self.classes().values())).config_class
        if config_class is None:
            raise RuntimeError(f"the classes of family {self.name!r} have no config_class")
        return config_class

    def tokenizer_classes(self) -> tuple[Any, ...]:
        """Give the tokenizer classes, the family's own first."""
        pairs = (reference.split(":") for reference in self.tokenizers)
        return tuple(getattr(importlib.import_module(module), name) for module, name in pairs)

    def recognizes(self, names: Iterable[str]) -> bool:
        """Whether tensor names are those of published weights of the family."""
        found = re.search(self.telling, "\n".join(sorted(names)), re.MULTILINE | re.DOTALL)
        return self.telling != "" and found is not None


@cache
def _classes(family: Family) -> Mapping[str, type[PreTrainedModel]]:
    """Sort the model classes of a family's module by kind."""
    found: dict[str, type[PreTrainedModel]] = {}
    for name, member in vars(importlib.import_module(family.module)).items():
        ours = isinstance(member, type) and issubclass(member, PreTrainedModel)
        if not ours or name.startswith("_") or not member.__module__.startswith(family.module):
            continue
        # The last suffix, "", is in every name.
        kind = next(kind for kind, (suffix, _) in _AUTO_CLASSES.items() if suffix in name)
        found.setdefault(kind, member)
    return MappingProxyType({kind: found[kind] for kind in KINDS if kind in found})


def _register_with_transformers(family: Family) -> None:
    """Make the Auto classes know a family."""
    config_class = family.config_class()
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for kind, model_class in family.classes().items():
        _AUTO_CLASSES[kind][1].register(config_class, model_class, exist_ok=True)
    classes = family.tokenizer_classes()
    for tokenizer in classes:
        # The first one stays the family's own; each becomes known by its name.
        own: Any = {"tokenizer_class": classes[0], "slow_tokenizer_class": tokenizer}
        AutoTokenizer.register(config_class, **own, exist_ok=True)


FAMILIES: Registry[Family] = Registry("family", "megabase.families", _register_with_transformers)
"""Every family by name."""


def register_family(family: Family) -> None:
    """Make a family known to megabase and to the ``Auto`` classes of transformers.

    Its name and the ``model_type`` of its configuration must not be taken (ConfigError).
    """
    FAMILIES.register(family.name, family)


def family_of(model_type: str) -> Family | None:
    """Give the family of a ``model_type``, or None when it is not known."""
    families = FAMILIES.values()
    return next((one for one in families if one.config_class().model_type == model_type), None)


def _built_in(name: str, *tokenizers: str, **facts: Any) -> Family:
    return Family(name, f"megabase.models.{name}", tokenizers or (_CHARACTERS,), **facts)


for _family in (
    _built_in(
        "hyenadna", _CHARACTERS, f"{_TOKENIZERS}.character:HyenaDNATokenizer", _KMERS,
        pretrained=True, length_field="max_seq_len",
        telling=r"\.mixer\.(layer\.)?filter_fn\.bias$",
    ),
    _built_in(
        "gpt", _CHARACTERS, _KMERS, pretrained=True, length_field="max_position_embeddings"
    ),
    _built_in("mamba", pretrained=True, telling=r"\.mixer\.A_log$"),
    _built_in(
        "caduceus", _CHARACTERS, f"{_TOKENIZERS}.character:CaduceusTokenizer",
        pretrained=True, telling=r"\.mamba_fwd\.A_log$",
    ),
    _built_in(
        "cnn", _CHARACTERS, f"{_TOKENIZERS}.table:LetterTokenizer",
        # Names that together no other family has.
        telling=(
            r"^(model\.)?cnn_model\.0\.weight$.*^(model\.)?dense_model\.0\.weight$"
            r".*^(model\.)?dense_model\.1\.weight$"
        ),
    ),
    _built_in(
        "deepsea",
        # Of the stand-alone file, the prediction and the variant-effect model, and wrapped ones.
        telling=r"^([12]\.|model\.|module\.)?12\.1\.bias$.*^([12]\.|model\.|module\.)?14\.1\.bias$",
    ),
    _built_in(
        "dnabert", f"{_TOKENIZERS}.kmer:DNABERTTokenizer", special_tokens=True,
        # The pooler of BigBird has another name.
        telling=(
            r"\A(?!.*^(bert\.)?pooler\.weight$).*^(bert\.)?embeddings\.word_embeddings\.weight$"
            r".*^(bert\.)?encoder\.layer\.0\.attention\.self\.query\.weight$"
        ),
    ),
    _built_in("bigbird", _CHARACTERS, f"{_TOKENIZERS}.bpe:BPETokenizer", special_tokens=True),
):  # fmt: skip
    register_family(_family)

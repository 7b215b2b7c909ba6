"""The model families, and their registration with the ``Auto`` classes of transformers.

A family is a package ``megabase.models.<name>`` with ``configuration.py`` and ``modeling.py``. The
classes in the ``__all__`` of ``modeling.py`` say by their names what they are for:
``...ForCausalLM``, ``...ForMaskedLM``, ``...ForSequenceClassification``,
``...ForTokenClassification``; the one without ``For`` is the bare model. The table here adds what
names cannot tell: the tokenizer, and the names under which published folders ask for it.

``import megabase.models`` registers everything, so ``AutoModelForCausalLM.from_pretrained`` loads
a folder of a known family with our classes and never with code from the folder.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, ModuleType
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

__all__ = ["FAMILIES", "KINDS", "Family", "family_of", "register"]

_AUTO_CLASSES: dict[str, tuple[str, Any]] = {
    "causal-lm": ("ForCausalLM", AutoModelForCausalLM),
    "masked-lm": ("ForMaskedLM", AutoModelForMaskedLM),
    "sequence-classification": ("ForSequenceClassification", AutoModelForSequenceClassification),
    "token-classification": ("ForTokenClassification", AutoModelForTokenClassification),
    "base": ("", AutoModel),
}
KINDS: tuple[str, ...] = tuple(_AUTO_CLASSES)
"""What a model is for: the names of the heads, and ``base`` for none."""

_CHARACTERS = "megabase.models.tokenizers.character:DNATokenizer"
_KMERS = "megabase.models.tokenizers.kmer:KmerTokenizer"


@dataclass(frozen=True)
class Family:
    """One family of models."""

    name: str
    """Package in ``megabase.models``."""
    tokenizers: tuple[str, ...] = (_CHARACTERS,)
    """Tokenizer classes as ``module:class``. The first is used when a folder names none; the
    others answer when a folder's ``tokenizer_config.json`` asks for them by name."""

    def _module(self, part: str) -> ModuleType | None:
        name = f"megabase.models.{self.name}"
        if importlib.util.find_spec(name) is None or not importlib.util.find_spec(f"{name}.{part}"):
            return None
        return importlib.import_module(f"{name}.{part}")

    @property
    def available(self) -> bool:
        """Whether this installation has the family."""
        return self._module("modeling") is not None

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
        return tuple(_load(reference) for reference in self.tokenizers)

    def converter(self) -> ModuleType | None:
        """Give the module that makes models of this family from published weights.

        Such a ``convert.py`` has ``recognizes(names) -> bool``, and ``convert(weights,
        **overrides)`` that returns the model, notes and dropped names; None when there is none.
        """
        module = self._module("convert")
        complete = module is not None and all(
            hasattr(module, name) for name in ("recognizes", "convert")
        )
        return module if complete else None


FAMILIES: tuple[Family, ...] = (
    Family(
        "hyenadna", (_CHARACTERS, "megabase.models.tokenizers.character:HyenaDNATokenizer", _KMERS)
    ),
    Family("gpt", (_CHARACTERS, _KMERS)),
    Family("mamba"),
    Family("caduceus", (_CHARACTERS, "megabase.models.tokenizers.character:CaduceusTokenizer")),
    Family("cnn", (_CHARACTERS, "megabase.models.tokenizers.table:LetterTokenizer")),
    Family("deepsea"),
    Family("dnabert", ("megabase.models.tokenizers.kmer:DNABERTTokenizer",)),
    Family("bigbird", (_CHARACTERS, "megabase.models.tokenizers.bpe:BPETokenizer")),
)


@cache
def _classes(family: Family) -> Mapping[str, type[PreTrainedModel]]:
    module = family._module("modeling")
    found: dict[str, type[PreTrainedModel]] = {}
    for name in getattr(module, "__all__", ()):
        member = getattr(module, name)
        if not isinstance(member, type) or not issubclass(member, PreTrainedModel):
            continue
        for kind, (suffix, _) in _AUTO_CLASSES.items():
            if name.endswith(suffix) if suffix else "For" not in name:
                found.setdefault(kind, member)
                break
    return MappingProxyType(found)


@cache
def register() -> None:
    """Register every available family with the ``Auto`` classes of transformers."""
    for family in FAMILIES:
        if not family.available or not family.classes():
            continue
        config_class = family.config_class()
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for kind, model_class in family.classes().items():
            _AUTO_CLASSES[kind][1].register(config_class, model_class, exist_ok=True)
        classes = family.tokenizer_classes()
        for tokenizer in classes:
            # The first one stays the family's own; each becomes known by its name.
            AutoTokenizer.register(
                config_class,
                tokenizer_class=classes[0],
                slow_tokenizer_class=tokenizer,
                exist_ok=True,
            )


def _load(reference: str) -> Any:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def family_of(model_type: str) -> Family | None:
    """Give the family of a ``model_type``, or None when it is not one of ours."""
    for family in FAMILIES:
        if family.available and family.classes() and family.config_class().model_type == model_type:
            return family
    return None

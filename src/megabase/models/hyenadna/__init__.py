"""HyenaDNA: a decoder whose positions are mixed by long implicit convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megabase.models.hyenadna.configuration import HyenaDNAConfig
    from megabase.models.hyenadna.modeling import (
        HyenaDNAForCausalLM,
        HyenaDNAForSequenceClassification,
        HyenaDNAForTokenClassification,
        HyenaDNAModel,
    )

__all__ = [
    "HyenaDNAConfig",
    "HyenaDNAForCausalLM",
    "HyenaDNAForSequenceClassification",
    "HyenaDNAForTokenClassification",
    "HyenaDNAModel",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    part = "configuration" if name == "HyenaDNAConfig" else "modeling"
    return getattr(import_module(f"{__name__}.{part}"), name)

"""Caduceus: bidirectional Mamba, without and with equivariance under reverse complement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megabase.models.caduceus.configuration import CaduceusConfig
    from megabase.models.caduceus.modeling import (
        CaduceusForMaskedLM,
        CaduceusForSequenceClassification,
        CaduceusForTokenClassification,
        CaduceusModel,
    )

__all__ = [
    "CaduceusConfig",
    "CaduceusForMaskedLM",
    "CaduceusForSequenceClassification",
    "CaduceusForTokenClassification",
    "CaduceusModel",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    part = "configuration" if name == "CaduceusConfig" else "modeling"
    return getattr(import_module(f"{__name__}.{part}"), name)

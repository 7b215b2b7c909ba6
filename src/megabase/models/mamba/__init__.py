"""Mamba: a causal selective state-space model, with next-token and classification heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megabase.models.mamba.configuration import MambaConfig
    from megabase.models.mamba.modeling import (
        MambaForCausalLM,
        MambaForSequenceClassification,
        MambaForTokenClassification,
        MambaModel,
    )

__all__ = [
    "MambaConfig",
    "MambaForCausalLM",
    "MambaForSequenceClassification",
    "MambaForTokenClassification",
    "MambaModel",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    part = "configuration" if name == "MambaConfig" else "modeling"
    return getattr(import_module(f"{__name__}.{part}"), name)

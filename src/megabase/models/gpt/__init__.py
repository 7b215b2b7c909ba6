"""The Transformer baseline: the shell of HyenaDNA with causal attention and learned positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megabase.models.gpt.configuration import GPTConfig
    from megabase.models.gpt.modeling import (
        GPTForCausalLM,
        GPTForSequenceClassification,
        GPTForTokenClassification,
        GPTModel,
    )

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    part = "configuration" if name == "GPTConfig" else "modeling"
    return getattr(import_module(f"{__name__}.{part}"), name)

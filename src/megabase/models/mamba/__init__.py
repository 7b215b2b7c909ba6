"""Mamba: a language model of selective state spaces, which reads in one direction."""

from megabase.models.mamba.modeling import (
    MambaConfig,
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

"""The Transformer baseline of HyenaDNA: its decoder with causal attention, learned positions."""

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

"""DNABERT: BERT over k-mers of DNA."""

from megabase.models.dnabert.configuration import DNABERTConfig
from megabase.models.dnabert.modeling import (
    DNABERTForMaskedLM,
    DNABERTForSequenceClassification,
    DNABERTModel,
)

__all__ = [
    "DNABERTConfig",
    "DNABERTForMaskedLM",
    "DNABERTForSequenceClassification",
    "DNABERTModel",
]

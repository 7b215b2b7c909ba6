"""DNABERT: BERT over k-mers of DNA."""

from megabase.models.dnabert.modeling import (
    DNABERTConfig,
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

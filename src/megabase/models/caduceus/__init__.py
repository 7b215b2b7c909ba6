"""Caduceus: bidirectional Mamba, without and with equivariance under reverse complement."""

from megabase.models.caduceus.modeling import (
    CaduceusConfig,
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

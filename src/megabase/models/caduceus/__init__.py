"""Caduceus: bidirectional Mamba, without and with equivariance under reverse complement."""

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

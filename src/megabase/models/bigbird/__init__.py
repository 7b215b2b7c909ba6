"""BigBird: BERT with block-sparse attention, over byte pairs of DNA."""

from megabase.models.bigbird.configuration import GenomicBigBirdConfig
from megabase.models.bigbird.modeling import (
    GenomicBigBirdForMaskedLM,
    GenomicBigBirdForSequenceClassification,
    GenomicBigBirdModel,
)

__all__ = [
    "GenomicBigBirdConfig",
    "GenomicBigBirdForMaskedLM",
    "GenomicBigBirdForSequenceClassification",
    "GenomicBigBirdModel",
]

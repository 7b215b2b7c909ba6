"""DeepSEA: the convolutional network of chromatin profiles."""

from megabase.models.deepsea.configuration import DeepSEAConfig
from megabase.models.deepsea.modeling import DeepSEAForSequenceClassification

__all__ = ["DeepSEAConfig", "DeepSEAForSequenceClassification"]

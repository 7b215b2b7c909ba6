"""DeepSEA: the convolutional network of chromatin profiles."""

from megabase.models.deepsea.modeling import DeepSEAConfig, DeepSEAForSequenceClassification

__all__ = ["DeepSEAConfig", "DeepSEAForSequenceClassification"]

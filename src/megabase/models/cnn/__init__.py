"""The convolutional classifier of GenomicBenchmarks, and the Caduceus paper's variant of it."""

from megabase.models.cnn.modeling import GenomicCNNConfig, GenomicCNNForSequenceClassification

__all__ = ["GenomicCNNConfig", "GenomicCNNForSequenceClassification"]

"""DeepSEA: the convolutional network of chromatin profiles."""

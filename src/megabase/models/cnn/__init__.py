"""The convolutional classifier of GenomicBenchmarks, and the Caduceus paper's variant of it."""

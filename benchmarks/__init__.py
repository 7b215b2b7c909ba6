"""Measurements of the models on the machine at hand: ``python -m benchmarks``."""

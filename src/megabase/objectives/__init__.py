"""Objectives: from a model and a batch to a loss sum, the weight of its targets, and metrics."""

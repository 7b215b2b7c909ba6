"""Measures of models and the baselines that need none: metrics, intervals, k-mers, overlap."""

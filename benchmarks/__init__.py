"""Measurements of megabase: speed and memory (``python -m benchmarks``), and scripts."""

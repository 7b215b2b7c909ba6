"""Speed and memory of the models, measured on the machine at hand."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the package `benchmarks`: measurements run in processes that start here."""

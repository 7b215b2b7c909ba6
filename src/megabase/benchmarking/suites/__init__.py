"""Benchmark suites: where the data lie, how they are split, what is measured, what was published.

Each module has a ``SUITE``, a :class:`~megabase.benchmarking.suites.base.Suite`.
"""

from __future__ import annotations

SUITES: dict[str, tuple[str, str]] = {
    "genomic-benchmarks": ("labeled", "eight tasks of regulatory elements, accuracy"),
    "nucleotide-transformer": ("labeled", "eighteen tasks, MCC and F1"),
    "gue": ("labeled", "genome understanding evaluation, MCC"),
    "chromatin": ("chromatin", "chromatin profiles from coordinates or peak files, median AUROC"),
    "species": ("species", "which species a segment is from, accuracy at growing length"),
    "biotype": ("biotype", "gene biotypes from frozen embeddings, weighted F1"),
    "variants": ("variants", "labeled variants, scored without training on the labels, AUPRC"),
    "table": ("labeled", "any labeled files"),
}
"""Name on the command line -> module here, what it is."""

"""Genomes: the base alphabet, coordinates, memory-mapped stores and interval tables.

The package needs numpy alone to fetch DNA; pysam and polars are imported by :mod:`.tables` when a
table is read. Everything inside is 0-based and half-open.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megabase.genome.alphabet import decode, encode, reverse_complement
    from megabase.genome.interval import Interval, Strand, Variant
    from megabase.genome.store import Contig, GenomeStore
    from megabase.genome.tables import read_bed, read_gff, read_vcf, write_bed

__all__ = [
    "Contig",
    "GenomeStore",
    "Interval",
    "Strand",
    "Variant",
    "decode",
    "encode",
    "read_bed",
    "read_gff",
    "read_vcf",
    "reverse_complement",
    "write_bed",
]

_HOME = {
    "Contig": "store",
    "GenomeStore": "store",
    "Interval": "interval",
    "Strand": "interval",
    "Variant": "interval",
    "decode": "alphabet",
    "encode": "alphabet",
    "read_bed": "tables",
    "read_gff": "tables",
    "read_vcf": "tables",
    "reverse_complement": "alphabet",
    "write_bed": "tables",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that reading DNA never imports polars or pysam."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

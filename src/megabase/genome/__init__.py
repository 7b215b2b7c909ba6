"""Genomes: the base alphabet, coordinates, memory-mapped stores and interval tables.

The package needs numpy alone to fetch DNA; readers of tables, which need polars and pysam, are
imported on first use. Everything inside is 0-based and half-open.
"""

from typing import TYPE_CHECKING

from megabase.genome.alphabet import decode, encode, reverse_complement
from megabase.genome.interval import Interval, Strand, Variant
from megabase.genome.store import Contig, Genome

if TYPE_CHECKING:
    from megabase.genome.tables import read_bed, read_gff, read_vcf, write_bed

__all__ = [
    "Contig", "Genome", "Interval", "Strand", "Variant", "decode", "encode", "read_bed",
    "read_gff", "read_vcf", "reverse_complement", "write_bed",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a reader of tables on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from megabase.genome import tables

    return getattr(tables, name)

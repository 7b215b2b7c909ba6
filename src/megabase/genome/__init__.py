"""Genomes: the base alphabet, coordinates (0-based, half-open), memory-mapped stores, tables."""

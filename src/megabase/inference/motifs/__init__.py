"""Motifs: where contributions show them, and what becomes of an output with and without them."""

"""Variant effects: windows of both alleles, forward passes, scores, and VCF files."""

"""Variant effects: alleles, windows, the models' readings, and what is written to a VCF."""

"""DNABERT: BERT over overlapping k-mers."""

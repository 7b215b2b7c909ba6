"""Results as plots and as a self-contained page; takes records, never models."""

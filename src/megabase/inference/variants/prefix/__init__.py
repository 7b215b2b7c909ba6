"""Reading REF once and ALT from the variant on, under causal models."""

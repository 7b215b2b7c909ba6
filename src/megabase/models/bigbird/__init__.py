"""BigBird: BERT with block-sparse attention, over byte pairs of DNA."""

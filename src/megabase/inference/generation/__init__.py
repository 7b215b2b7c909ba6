"""Generating DNA: prompts, sampling, incremental decoding, and checks of the result."""

"""Tokenizers: characters, k-mers, byte pairs, and how sequences become tokens."""

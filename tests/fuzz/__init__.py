"""Fuzzing of every reader: ``python -m tests.fuzz --count 500000 --seed 1``."""

"""Scores of every substitution of a genome: made once, looked up, and drawn."""

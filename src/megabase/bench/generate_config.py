"""Settings of the measurement of generation. Imports nothing heavy: the help reads it."""

from __future__ import annotations

from dataclasses import dataclass

from megabase.bench.config import BenchError

__all__ = ["GENERATORS", "GenerateConfig"]

GENERATORS = ("hyenadna", "gpt", "mamba")
"""Families that can be measured."""


@dataclass(frozen=True)
class GenerateConfig:
    """Speed of writing tokens one by one, against a full pass for each of them."""

    model: str = "hyenadna"
    """Family: hyenadna, gpt or mamba; with random weights."""
    tokens: int = 65_536
    """Tokens to write."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    batch: int = 1
    """Sequences written side by side."""
    repeats: int = 3
    """Sequences written one after the other, of which the median counts, after a short one that
    does not."""
    compare_at: int = 4_096
    """Length at which a step is compared with a full pass."""
    positions: int = 100
    """Random positions at which scores are compared with those of a full pass."""
    tolerance: float = 1e-4
    """Largest difference of scores allowed; nothing is reported above it."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of the weights and the draws."""

    def __post_init__(self) -> None:
        """Check everything and report all problems at once."""
        problems = []
        if self.model not in GENERATORS:
            problems.append(f"model is one of {', '.join(GENERATORS)}, found {self.model!r}")
        for name in ("width", "layers", "batch", "repeats", "positions"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be 1 or more, found {getattr(self, name)}")
        if self.tokens < 32:
            problems.append(f"tokens must be 32 or more, found {self.tokens}")
        if not 16 <= self.compare_at <= self.tokens:
            problems.append(
                f"compare_at must lie between 16 and tokens ({self.tokens}), found "
                f"{self.compare_at}"
            )
        if self.tolerance <= 0:
            problems.append("tolerance must be above 0")
        if self.threads < 0 or self.seed < 0:
            problems.append("threads and seed must not be negative")
        if problems:
            raise BenchError("the measurement cannot be run: " + "; ".join(problems))

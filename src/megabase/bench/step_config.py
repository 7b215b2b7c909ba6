"""Settings of the measurements of a training step. Imports nothing heavy: the help reads them."""

from __future__ import annotations

from dataclasses import dataclass

from megabase.bench.config import BenchError

__all__ = ["PRECISIONS", "LoadConfig", "MemoryConfig", "StepConfig"]

PRECISIONS = ("fp32", "bf16-mixed")
"""Arithmetic: float32 throughout, or matrix products in bfloat16."""


def _check(problems: list[str], config: object, names: tuple[str, ...]) -> None:
    problems += [
        f"{name} must be 1 or more, found {getattr(config, name)}"
        for name in names
        if getattr(config, name) < 1
    ]


def _finish(problems: list[str]) -> None:
    if problems:
        raise BenchError("the measurement cannot be run: " + "; ".join(problems))


@dataclass(frozen=True)
class StepConfig:
    """Forward, loss and backward of HyenaDNA beside the published way of computing."""

    batch: int = 1
    """Sequences in a step."""
    length: int = 131_072
    """Tokens of each."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    precision: str = "fp32"
    """fp32 or bf16-mixed, of megabase; the published way is always measured in fp32."""
    repeats: int = 5
    """Steps of each side, in turn, of which the median counts, after one that does not."""
    as_it_comes: bool = True
    """Also measure the published way with the C library's allocator as it comes, in a process of
    its own."""
    compare_length: int = 2_048
    """Tokens at which loss and gradients of both are compared first."""
    tolerance: float = 1e-4
    """Largest difference allowed, relative to the largest number of each gradient."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    seed: int = 0
    """Of the weights and the input."""

    def __post_init__(self) -> None:
        """Check everything and report all problems at once."""
        problems: list[str] = []
        _check(
            problems,
            self,
            ("batch", "length", "width", "layers", "repeats", "compare_length"),
        )
        if self.precision not in PRECISIONS:
            problems.append(f"precision is one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.tolerance <= 0:
            problems.append("tolerance must be above 0")
        if self.threads < 0 or self.seed < 0:
            problems.append("threads and seed must not be negative")
        _finish(problems)


@dataclass(frozen=True)
class MemoryConfig:
    """Peak memory of a training step, optimizer included, beside estimate and published way."""

    batch: int = 1
    """Sequences in a step."""
    length: int = 131_072
    """Tokens of each."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    precision: str = "fp32"
    """fp32 or bf16-mixed, of megabase."""
    checkpointing: bool = False
    """Compute activations of blocks again in the backward pass."""
    stretch: int = 1
    """Checkpointed blocks in a row that keep one input between them."""
    plain: bool = True
    """Also measure the published way."""
    steps: int = 2
    """Training steps to take; the first one takes almost all the memory that later ones do."""
    memory_limit: float = 0.0
    """GiB of memory that one side may take; 0: nine tenths of what is free at the start."""
    time_limit: float = 600.0
    """Seconds that one side may take."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    seed: int = 0
    """Of the weights and the input."""

    def __post_init__(self) -> None:
        """Check everything and report all problems at once."""
        problems: list[str] = []
        _check(problems, self, ("batch", "length", "width", "layers", "stretch", "steps"))
        if self.precision not in PRECISIONS:
            problems.append(f"precision is one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.stretch > 1 and not self.checkpointing:
            problems.append("stretch needs checkpointing true")
        if self.memory_limit < 0 or self.threads < 0 or self.seed < 0:
            problems.append("memory_limit, threads and seed must not be negative")
        if self.time_limit <= 0:
            problems.append("time_limit must be above 0 seconds")
        _finish(problems)


@dataclass(frozen=True)
class LoadConfig:
    """Drawing windows, reading them and turning them to token ids."""

    genome: str | None = None
    """Genome store; one of random letters when left out."""
    bases: int = 20_000_000
    """Bases of the made-up genome."""
    batch: int = 32
    """Sequences in a batch."""
    length: int = 1_024
    """Tokens of each."""
    repeats: int = 30
    """Batches of which the median counts."""

    def __post_init__(self) -> None:
        """Check everything and report all problems at once."""
        problems: list[str] = []
        _check(problems, self, ("bases", "batch", "length", "repeats"))
        if self.genome is None and self.bases < 2 * self.length:
            problems.append("bases must be at least twice the length")
        _finish(problems)

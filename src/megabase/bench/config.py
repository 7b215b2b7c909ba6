"""Settings of the measurements. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megabase.errors import MegabaseError

__all__ = ["MODELS", "BenchError", "RuntimeConfig"]

MODELS = ("hyenadna", "gpt", "mamba", "caduceus")
"""Families that can be measured against length; the first is what the others are compared with."""
_CHECKPOINTING = ("both", "on", "off")
_DTYPES = ("float32", "bfloat16")


class BenchError(MegabaseError):
    """A measurement is set up in a way that cannot be run, or its output cannot be written."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Time and memory of forward and backward against length."""

    models: Sequence[str] = ("hyenadna", "gpt")
    """Families to measure: hyenadna, gpt, mamba, caduceus."""
    min_length: int = 1024
    """First length in tokens; every further one is twice as long."""
    max_length: int = 1_048_576
    """Last length. Lengths over a limit are not run, and said to be extrapolated."""
    checkpointing: str = "both"
    """Activation checkpointing: on, off, or both."""
    repeats: int = 5
    """Passes per point, of which the median counts, after one that does not; fewer when they do
    not fit the time."""
    width: int = 128
    """Width of the models."""
    layers: int = 2
    """Blocks of the models."""
    batch: int = 1
    """Sequences in a pass."""
    dtype: str = "float32"
    """Arithmetic: float32, or bfloat16 by autocast."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, mps."""
    threads: int = 0
    """CPU threads of a pass; 0 leaves the choice to torch."""
    time_limit: float = 120.0
    """Seconds that one point may take, loading not counted."""
    model_time_limit: float = 600.0
    """Seconds that all points of one model with one kind of checkpointing may take together,
    loading not counted."""
    memory_limit: float = 0.0
    """GiB of memory that one point may take; 0: nine tenths of what is free at the start."""
    seed: int = 0
    """Of the weights and the input."""

    def __post_init__(self) -> None:
        """Check everything and report all problems at once."""
        problems = []
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models or len(set(self.models)) != len(self.models):
            problems.append(
                f"models are distinct names out of {', '.join(MODELS)}, found "
                f"{', '.join(self.models) or 'none'}"
            )
        if self.checkpointing not in _CHECKPOINTING:
            problems.append(f"checkpointing is one of {', '.join(_CHECKPOINTING)}, "
                            f"found {self.checkpointing!r}")  # fmt: skip
        if self.dtype not in _DTYPES:
            problems.append(f"dtype is one of {', '.join(_DTYPES)}, found {self.dtype!r}")
        if not 1 <= self.min_length <= self.max_length:
            problems.append(
                "min_length must be at least 1 and at most max_length, found "
                f"{self.min_length} and {self.max_length}"
            )
        for name in ("repeats", "width", "layers", "batch"):
            if getattr(self, name) < 1:
                problems.append(f"{name} must be 1 or more, found {getattr(self, name)}")
        if self.time_limit <= 0 or self.model_time_limit <= 0:
            problems.append("time_limit and model_time_limit must be above 0 seconds")
        if self.memory_limit < 0 or self.threads < 0:
            problems.append("memory_limit and threads must not be negative")
        if problems:
            raise BenchError("the measurement cannot be run: " + "; ".join(problems))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths from the first to the last, each twice the one before."""
        found = []
        length = self.min_length
        while length <= self.max_length:
            found.append(length)
            length *= 2
        return tuple(found)

    @property
    def checkpointing_kinds(self) -> tuple[bool, ...]:
        """Whether activations are checkpointed, for each series to measure."""
        return {"both": (False, True), "on": (True,), "off": (False,)}[self.checkpointing]

"""What ``megabase bench scan`` measures."""

from __future__ import annotations

from dataclasses import dataclass

from megabase.bench.config import BenchError

__all__ = ["ScanConfig"]


@dataclass(frozen=True)
class ScanConfig:
    """Shapes, repeats and parts of a measurement of the selective scan."""

    batch: int = 1
    """Sequences of one scan."""
    length: int = 1024
    """Positions of one scan."""
    channels: int = 256
    """Inner channels (d_inner)."""
    states: int = 16
    """States per channel (d_state)."""
    repeats: int = 7
    """Turns, after one to warm up."""
    inner: int = 5
    """Runs of the fast implementations in each turn."""
    threads: int = 0
    """CPU threads; 0 for those torch takes."""
    reference: bool = True
    """Whether the sequential reference is timed too."""
    transformers: bool = True
    """Whether the CPU path of Mamba in transformers is timed: a whole model of two layers, whose
    d_inner is `channels`, beside the same one of megabase."""
    memory_length: int = 0
    """Length at which peak memory is measured, in processes of their own; 0 for not."""
    throughput: bool = False
    """Whether training throughput of the published small models is measured."""
    model_batch: int = 8
    """Sequences in a batch of those models."""

    def __post_init__(self) -> None:
        for name in ("batch", "length", "channels", "states", "repeats", "inner", "model_batch"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("threads", "memory_length"):
            if getattr(self, name) < 0:
                raise BenchError(f"{name}: expected 0 or more, found {getattr(self, name)}")

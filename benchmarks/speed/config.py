"""Settings of the measurements. Imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megabase.errors import MegabaseError

__all__ = [
    "GENERATORS",
    "MODELS",
    "PRECISIONS",
    "BenchError",
    "GenerateConfig",
    "LoadConfig",
    "MemoryConfig",
    "RuntimeConfig",
    "ScanConfig",
    "StepConfig",
]

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

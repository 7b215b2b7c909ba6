"""Settings of a training run: frozen dataclasses, checked as a whole, free of torch.

The attribute docstrings are the help texts of the command line. Every class checks itself in
``__post_init__`` and reports all of its problems at once. A task adds its own fields by deriving
from :class:`TrainConfig` (:class:`megabase.tasks.pretrain_config.PretrainConfig` adds model, data
and objective).
"""

from __future__ import annotations

import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from megabase.errors import ConfigError

__all__ = [
    "DeviceConfig",
    "HeadConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "Stage",
    "StartConfig",
    "TrainConfig",
    "raise_problems",
    "whole",
]


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one :class:`ConfigError` that lists every problem, or return when there is none."""
    found = list(problems)
    if found:
        raise ConfigError("; ".join(found))


LONGEST_INPUT = (1 << 31) - 1
"""Positions of an input: tables of them are indexed by 32-bit numbers in some libraries."""
_MOST = 1 << 53
"""Largest number of a setting: from here on YAML's and JSON's floats are not exact."""


def whole(name: str, value: int | float | None) -> int | None:
    """Turn ``1e6`` into 1000000; a number with a fraction is refused."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ConfigError(f"{name} is {value!r}; it must be a whole number")


def _at_least(
    problems: list[str], name: str, value: int | float | None, least: int | float
) -> None:
    if value is not None and not value >= least:
        problems.append(f"{name} is {value}; it must be at least {least}")
    most = LONGEST_INPUT if name == "stage length" else _MOST
    if value is not None and value > most:
        problems.append(f"{name} is {value}; it must be at most {most:,}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the sequence-length warm-up: train at this length for so long."""

    length: int
    """Input positions per sequence; one position reads one base."""

    micro_batch: int | None = None
    """Sequences that one device takes through the model at a time (null: all of its share)."""

    steps: int | None = None
    """Duration in optimizer steps. Give one of steps, tokens, epochs; the last stage may give
    none and then runs to the end of the budget (steps or tokens of the run)."""

    tokens: int | float | None = None
    """Duration in input positions, rounded up to whole steps."""

    epochs: int | float | None = None
    """Duration in passes over the windows; only for window kinds with a fixed number of windows."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        object.__setattr__(self, "tokens", whole("stage tokens", self.tokens))
        for name, least in (("length", 1), ("micro_batch", 1), ("steps", 1), ("tokens", 1)):
            _at_least(problems, f"stage {name}", getattr(self, name), least)
        _at_least(problems, "stage epochs", self.epochs, 0)
        given = [n for n in ("steps", "tokens", "epochs") if getattr(self, n) is not None]
        if len(given) > 1:
            problems.append(
                f"stage of length {self.length} gives {' and '.join(given)}; give one of them"
            )
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 6e-4
    """Highest learning rate."""

    weight_decay: float = 0.1
    """Decoupled weight decay of the ordinary parameters (a model may exempt its own, such as the
    filter of the Hyena operator)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two running means."""

    eps: float = 1e-8
    """Added to the denominator of AdamW."""

    clip: float | None = 1.0
    """Largest global gradient norm; null does not clip."""

    schedule: Literal["cosine", "constant", "published"] = "cosine"
    """How the learning rate moves. cosine: linear warm-up from 0, then half a cosine to
    min_lr_ratio. constant: warm-up, then level. published: the schedule of the HyenaDNA
    repository, whose cosine counts from step 0 and not from the end of the warm-up."""

    warmup_steps: int | None = None
    """Steps of warm-up; null takes warmup_fraction."""

    warmup_fraction: float = 0.01
    """Share of the schedule spent on warm-up when warmup_steps is null."""

    warmup_lr: float = 1e-6
    """Learning rate at step 0 (schedule published only)."""

    min_lr_ratio: float = 0.1
    """Final learning rate as a share of the highest."""

    schedule_steps: int | float | None = None
    """Length of the schedule in steps; null takes the length of the run. The published 1k run
    used 381500, far more than its about 13300 steps."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        object.__setattr__(self, "schedule_steps", whole("schedule_steps", self.schedule_steps))
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.lr > 0:
            problems.append(f"lr is {self.lr}; it must be above 0")
        for name in ("weight_decay", "eps", "warmup_lr", "warmup_steps"):
            _at_least(problems, name, getattr(self, name), 0)
        for name in ("warmup_fraction", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} is {getattr(self, name)}; it must lie in 0 to 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas are {self.betas}; each must lie in 0 to 1, 1 excluded")
        if self.clip is not None and not self.clip > 0:
            problems.append(f"clip is {self.clip}; it must be above 0, or null for no clipping")
        _at_least(problems, "schedule_steps", self.schedule_steps, 1)
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where to train; read by Lightning Fabric. Under torchrun or SLURM the launcher decides."""

    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""

    devices: int | Literal["auto"] = "auto"
    """Devices (processes) per node; auto takes every GPU, or one process on a CPU."""

    nodes: int = 1
    """Number of machines."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto: one process, or ddp when there are several. fsdp shards parameters, gradients and
    optimizer state over the devices."""

    threads: int | None = None
    """CPU threads of torch per process; null leaves torch's own choice."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        _at_least(problems, "nodes", self.nodes, 1)
        _at_least(problems, "threads", self.threads, 1)
        if isinstance(self.devices, int):
            _at_least(problems, "devices", self.devices, 1)
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the loop needs to know, whatever the task."""

    output: str
    """Folder of the run. It must be new or empty, unless resume or overwrite is set."""

    stages: tuple[Stage, ...] = (Stage(length=1024),)
    """The sequence-length warm-up as a table; one row trains at one length."""

    length_rule: Literal["constant", "published"] = "constant"
    """constant: every step sees global_batch, whatever the number of devices. published: the
    HyenaDNA repository's way (epochs only; accumulation is global_batch // micro_batch and ignores
    the number of devices, so k devices see k times global_batch; a stage of 0 epochs runs one)."""

    global_batch: int | None = 64
    """Sequences per optimizer step, over all devices and micro-batches."""

    global_batch_tokens: int | float | None = None
    """Input positions per step in place of sequences: longer stages take fewer sequences."""

    steps: int | float | None = None
    """Budget: the run ends after so many optimizer steps."""

    tokens: int | float | None = None
    """Budget: the run ends after so many input positions, rounded up to whole steps."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""

    precision: Literal["fp32", "bf16-mixed"] = "fp32"
    """fp32, or bf16-mixed: bfloat16 matrix products over float32 weights."""

    compile: bool = False
    """Run the model through torch.compile."""

    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    checkpointing_stretch: int = 1
    """With activation_checkpointing: layers in a row that keep one input between them. Deep models
    at the longest lengths need less memory with 2 or 3, and a fifth more time."""

    seed: int = 0
    """Seed of the initial weights, the order of the data and the dropout masks."""

    devices: DeviceConfig = field(default_factory=DeviceConfig)
    """Devices, nodes and strategy."""

    eval_every: int | None = 500
    """Steps between validations (and one at the end); null never validates."""

    eval_batch: int | None = None
    """Sequences per forward pass in validation; null takes the micro-batch of the last stage."""

    checkpoint_every: int | None = 500
    """Steps between checkpoints (one is always written at the end); null writes only that one and
    the best."""

    keep: int = 2
    """Checkpoints kept besides the best one; older ones are deleted."""

    patience: int | None = None
    """The run ends early after so many validations in a row without a new best one; null never."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl and of the console."""

    max_non_finite: int = 10
    """Steps with a loss or gradient that is not finite are skipped; after this many in a run it
    stops."""

    resume: bool = False
    """Continue from the last checkpoint of the output folder, exactly."""

    overwrite: bool = False
    """Delete an earlier run in the output folder and start anew."""

    force: bool = False
    """Start although the estimated memory does not fit."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name in ("global_batch_tokens", "steps", "tokens"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        object.__setattr__(self, "stages", self._given_parts())
        if not self.output:
            problems.append("output is empty; name the folder of the run")
        if not self.stages:
            problems.append("stages is empty; give at least one, such as {length: 1024}")
        if self.global_batch_tokens is not None:
            # Tokens win over the default number of sequences.
            object.__setattr__(self, "global_batch", None)
        elif self.global_batch is None:
            problems.append("global_batch and global_batch_tokens are both null; give one")
        for name in ("global_batch", "global_batch_tokens", "steps", "tokens", "eval_every",
                     "eval_batch", "checkpoint_every", "keep", "patience",
                     "log_every"):  # fmt: skip
            _at_least(problems, name, getattr(self, name), 1)
        _at_least(problems, "max_non_finite", self.max_non_finite, 1)
        _at_least(problems, "checkpointing_stretch", self.checkpointing_stretch, 1)
        if self.checkpointing_stretch > 1 and not self.activation_checkpointing:
            problems.append("checkpointing_stretch needs activation_checkpointing true")
        if self.steps is not None and self.tokens is not None:
            problems.append("steps and tokens are both given; the budget is one of them")
        if self.resume and self.overwrite:
            problems.append("resume and overwrite are both set; they exclude each other")
        problems += self._stage_problems()
        raise_problems(problems)

    def _given_parts(self) -> tuple[Stage, ...]:
        """Refuse groups of settings that are something else; give the stages."""
        problems = [
            f"{name} is {getattr(self, name)!r}; expected {kind.__name__}(...)"
            for name, kind in typing.get_type_hints(type(self)).items()
            if isinstance(kind, type) and is_dataclass(kind)
            if not isinstance(getattr(self, name), kind)
        ]
        stages = tuple(self.stages) if isinstance(self.stages, (list, tuple)) else (self.stages,)
        if any(not isinstance(stage, Stage) for stage in stages):
            problems.append(f"stages is {self.stages!r}; expected a list of Stage(length=...)")
        raise_problems(problems)
        return stages

    def _stage_problems(self) -> list[str]:
        problems: list[str] = []
        open_ended = [
            i
            for i, stage in enumerate(self.stages)
            if stage.steps is None and stage.tokens is None and stage.epochs is None
        ]
        if any(i < len(self.stages) - 1 for i in open_ended):
            problems.append(
                f"stages {open_ended} have no duration (steps, tokens or epochs); "
                "only the last stage may leave it out"
            )
        elif open_ended and self.steps is None and self.tokens is None:
            problems.append(
                "the run has no end: give steps or tokens, or a duration for the last stage"
            )
        if self.length_rule == "published":
            if any(stage.epochs is None or stage.micro_batch is None for stage in self.stages):
                problems.append("length_rule published needs epochs and micro_batch in every stage")
            if self.global_batch is None:
                problems.append("length_rule published needs global_batch, in sequences")
        elif any(stage.epochs == 0 for stage in self.stages):
            problems.append("a stage has 0 epochs; leave it out")
        return problems

    @property
    def longest(self) -> int:
        """Longest stage in input positions; the model is built for it from the start."""
        return max(stage.length for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to train."""

    preset: str | None = None
    """Shape of a published checkpoint (``megabase info`` lists them), with fresh weights; null
    builds from the fields below."""

    family: str = "hyenadna"
    """Model family."""

    d_model: int = 128
    """Width."""

    n_layer: int = 2
    """Number of blocks."""

    max_length: int | None = None
    """Longest input the model is built for, in positions; null takes the longest stage plus the two
    special positions of the published models. The filter depends on it."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Further fields of the family's configuration, by name; they win over everything else."""

    init_from: str | None = None
    """Model folder, run folder or Hub name whose weights to start from; the fields above are then
    ignored."""

    def __post_init__(self) -> None:
        problems = [
            f"model.{name} is {value}; it must be at least 1"
            for name in ("d_model", "n_layer", "max_length")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.preset is not None and self.init_from is not None:
            problems.append("model.preset and model.init_from are both given; choose one")
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The model that a run starts from: trained weights, or the shape of new ones."""

    model: str | None = None
    """Model to start from: a model folder, a run folder, a Hub name, or default."""

    from_scratch: bool = False
    """Take the shape of the model and fresh weights."""

    family: str | None = None
    """Family of a new model with fresh weights: hyenadna, gpt, mamba, caduceus, cnn, deepsea,
    dnabert or bigbird."""

    preset: str | None = None
    """Shape of a new model with fresh weights: that of a published checkpoint (``megabase info
    --presets`` lists them)."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration, by name; they win over the preset, and over the settings
    of a model that is loaded."""

    tokenizer: str | None = None
    """null: the tokenizer of the model or family. char, 2mer to 8mer (k-mers side by side),
    bpe:4096 (byte pairs learned from the training sequences), or a folder that holds one."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From a model to labels."""

    pooling: str | None = None
    """How positions become one vector: mean, last, first, max or sum over real tokens,
    published_mean over padding too; null keeps the model's own way."""

    special_tokens: Literal["auto", "yes", "no"] = "auto"
    """Whether the tokenizer adds its special tokens; auto: in dnabert and bigbird."""

    padding: Literal["right", "left"] = "right"
    """Side that shorter sequences of a batch are padded on (left, as published)."""

    pad_to_longest: bool = False
    """Pad every batch to the longest sequence of all, as published, instead of its own longest."""

    freeze: bool = False
    """Train only the head; the weights below it stay as they are."""

    freeze_blocks: int = 0
    """Keep the first so many blocks as they are, and the embedding below them."""

    freeze_embeddings: bool = False
    """Keep the token embedding as it is."""

    class_weights: Literal["balanced"] | list[float] | None = None
    """Loss weights of the classes (of the positive answers, for several labels): balanced is
    inverse to their number; or one number for each, in the order of the sorted names."""

    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    reverse_complement: float = 0.0
    """Probability that a training sequence is read as its reverse complement."""

    crop: float = 1.0
    """Share of every training sequence that is read, a stretch at a place drawn anew in each epoch;
    validation and test read the whole. Not with special tokens."""

    strand_average: bool = False
    """Validate and test on the mean of the outputs for both strands."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.freeze_blocks < 0:
            problems.append(f"head.freeze_blocks is {self.freeze_blocks}; it must be at least 0")
        if not 0 <= self.label_smoothing < 1:
            problems.append(
                f"head.label_smoothing is {self.label_smoothing}; it must lie in 0 to 1, 1 excluded"
            )
        if not 0 < self.crop <= 1:
            problems.append(f"head.crop is {self.crop}; it must lie in 0 to 1, 0 excluded")
        if not 0 <= self.reverse_complement <= 1:
            problems.append(
                f"head.reverse_complement is {self.reverse_complement}; it must lie in 0 to 1"
            )
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside frozen weights, through peft (the extra lora)."""

    rank: int = 0
    """Rank of the adapters; 0 has none. The weights below the head are frozen, the head learns."""

    alpha: float | None = None
    """The adapter counts alpha / rank times; null takes twice the rank."""

    targets: list[str] = field(default_factory=list)
    """Linear layers that get one, by the last part of their names; empty takes all below the head
    but those that compute filters."""

    save: Literal["merged", "adapter"] = "merged"
    """merged: checkpoints hold the whole model with the adapters folded in. adapter: beside it, in
    the folder adapter, adapters and head alone."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.rank < 0:
            problems.append(f"lora.rank is {self.rank}; it must be at least 0")
        if self.alpha is not None and not self.alpha > 0:
            problems.append(f"lora.alpha is {self.alpha}; it must be above 0")
        raise_problems(problems)

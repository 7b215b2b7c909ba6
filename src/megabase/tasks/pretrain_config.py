"""Settings of ``megabase pretrain``: model, data and objective around those of the loop.

Free of torch, so that ``megabase pretrain --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megabase.settings import (
    DeviceConfig,
    ModelConfig,
    OptimConfig,
    Stage,
    TrainConfig,
    raise_problems,
)

__all__ = [
    "DataConfig",
    "DeviceConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainConfig",
    "Stage",
    "plain_values",
    "to_yaml",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which parts of which genome to read.

    A place is a contig (chr20), a stretch as people write it (chr20:45,000,001-50,000,000: 1-based,
    both ends included) or a BED file.
    """

    genome: str
    """Genome store, made by ``megabase genome build``."""

    windows: Literal["random", "tiled", "intervals"] = "random"
    """random: uniform over every allowed position. tiled: side by side, each position once per
    epoch. intervals: one window per row of a BED file, the published way."""

    intervals: str | None = None
    """BED file of the rows (windows intervals); with a fourth column, its train rows are for
    training and its valid rows for validation."""

    include: list[str] = field(default_factory=list)
    """Places to train on; empty takes the whole genome."""

    exclude: list[str] = field(default_factory=list)
    """Places kept out of every split."""

    validation: list[str] = field(default_factory=list)
    """Places held out for validation during training."""

    test: list[str] = field(default_factory=list)
    """Places held out and never read by this command."""

    max_n_fraction: float = 0.1
    """Random windows with a larger share of N are drawn again."""

    reverse_complement: float = 0.5
    """Probability that a training window is read as its reverse complement."""

    shift: tuple[int, int] | None = None
    """Smallest and largest random shift of an interval in bases (windows intervals)."""

    padding: Literal["in_place", "left"] = "in_place"
    """Where windows that leave their contig are padded (windows intervals): where the bases are
    missing, or always on the left, as published."""

    eval_windows: int | None = 256
    """Validation windows, a fixed sample of those that tile the validation places; null: all."""

    eval_length: int | None = None
    """Length of the validation windows in positions; null takes the longest stage."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.genome:
            problems.append("data.genome is empty; name a store made by `megabase genome build`")
        for name in ("max_n_fraction", "reverse_complement"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"data.{name} is {getattr(self, name)}; it must lie in 0 to 1")
        for name in ("eval_windows", "eval_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"data.{name} is {value}; it must be at least 1")
        if (self.windows == "intervals") != (self.intervals is not None):
            problems.append(
                f"data.windows is {self.windows} and data.intervals is {self.intervals}; "
                "windows intervals needs a BED file, and only it takes one"
            )
        if self.shift is not None:
            object.__setattr__(self, "shift", tuple(self.shift))
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the model learns."""

    name: str = "causal_lm"
    """causal_lm: each base from the bases before it. masked_lm: hidden bases from both sides. Or
    the name of a registered objective."""

    soft_mask_weight: float = 1.0
    """Loss weight of bases in lower case (repeats)."""

    special_tokens: Literal["none", "published"] = "none"
    """published ends every window with the separator token in place of the last base
    (causal_lm only)."""

    count_n_and_padding: bool = False
    """Let N and padding be targets, as published."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the objective, by name."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.soft_mask_weight < 0:
            problems.append(
                f"objective.soft_mask_weight is {self.soft_mask_weight}; it must not be negative"
            )
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """A pretraining run."""

    data: DataConfig
    """Genome, splits and windows."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Model to train."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""


def to_yaml(config: TrainConfig) -> str:
    """Write a configuration as YAML that re-creates the run from its beginning.

    What belongs to one call and not to the run (resume, overwrite, force) is left out; paths of
    files become absolute.
    """
    import yaml

    values = plain_values(asdict(config))
    for name in ("resume", "overwrite", "force"):
        values.pop(name, None)
    values["output"] = str(Path(values["output"]).absolute())
    data = values.get("data")
    if data is not None:
        for name in ("genome", "intervals"):
            if data[name] is not None:
                data[name] = str(Path(data[name]).absolute())
        for name in ("include", "exclude", "validation", "test"):
            data[name] = [
                str(Path(place).absolute()) if Path(place).is_file() else place
                for place in data[name]
            ]
    return yaml.safe_dump(values, sort_keys=False)


def plain_values(value: Any) -> Any:
    """Turn tuples into lists, all the way down, as YAML has only lists."""
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    return value

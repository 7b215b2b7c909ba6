"""Settings of ``megabase icl``: questions with solved examples in front, asked of a language model.

Free of torch, so that ``megabase icl --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from megabase.settings import OptimConfig, Stage, TrainConfig, raise_problems
from megabase.tasks.finetune_config import TableConfig
from megabase.tasks.pretrain_config import plain_values

__all__ = ["UNUSED", "InContextConfig", "to_yaml"]

UNUSED = ("stages", "length_rule", "tokens", "global_batch_tokens", "compile")
"""Settings of training that have no meaning for questions of one length."""


@dataclass(frozen=True, kw_only=True)
class InContextConfig(TrainConfig):
    """Few-shot learning of a language model, without training or with it."""

    train: str
    """Labelled sequences that examples are drawn from, and that are trained on: CSV, TSV, Parquet,
    FASTA, a folder CLASS/NAME.txt, or a folder that holds all splits."""

    valid: str | None = None
    """Sequences that choose the best prompt (tune prompt); null cuts them off the training rows."""

    test: str | None = None
    """Sequences that are asked."""

    model: str
    """Language model: a model folder, a run folder, a Hub name, or default."""

    shots: int = 1
    """Solved examples of each class in front of a question; 0 for none."""

    tune: Literal["none", "prompt", "all"] = "none"
    """What learns from questions of the training rows. none: nothing. prompt: soft prompt vectors,
    with the model frozen. all: every weight of the model (instruction tuning)."""

    samples: int | None = None
    """Training questions (published for tune all: 2, 16, 64, 256); null takes all training rows."""

    vectors: int = 32
    """Vectors of the soft prompt (tune prompt)."""

    dropout: float = 0.1
    """Dropout of the vectors in training."""

    letters: Literal["all", "labels"] = "all"
    """The letters of the classes are told apart from all tokens, as published, or from one another
    only."""

    examples: Literal["train", "published"] = "train"
    """Where the examples of valid and test questions come from: the training rows; published: the
    questions' own split, as in the HyenaDNA repository, which shows the model labels of the split
    that it is measured on."""

    max_length: int | None = None
    """Tokens of each sequence: longer ones lose their end and are counted, shorter ones are padded
    on the left. null takes the longest sequence."""

    test_rows: int | None = None
    """Ask only so many test sequences, drawn at random; null asks all."""

    reverse_complement: float = 0.0
    """Probability that a training sequence is read as its reverse complement (published: 0.5 for
    soft prompts, 0 for instruction tuning)."""

    table: TableConfig = field(default_factory=TableConfig)
    """How to read the files."""

    epochs: float = 1
    """Passes over the training questions, unless steps says otherwise."""

    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-4, weight_decay=0.0, schedule="constant", warmup_steps=0
        )
    )
    """Optimizer (published: rate 1e-4 for instruction tuning, 1e-3 for soft prompts)."""

    global_batch: int | None = 2
    """Questions per optimizer step (published: 2 for instruction tuning, 16 for soft prompts)."""

    micro_batch: int | None = None
    """Questions that one device takes through the model at a time (null: all of its share)."""

    stages: tuple[Stage, ...] = ()
    """None: questions have one length."""

    eval_every: int | None = None
    """Steps between validations (tune prompt); null validates after every epoch."""

    checkpoint_every: int | None = None
    """Steps between checkpoints; null writes the best one and the last."""

    keep: int = 1
    """Checkpoints kept besides the best one."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if not self.train:
            problems.append("train is empty; name a file of labelled sequences")
        for name, value, least in (
            ("shots", self.shots, 0),
            ("vectors", self.vectors, 1),
            ("samples", self.samples, 1),
            ("max_length", self.max_length, 1),
            ("test_rows", self.test_rows, 1),
            ("micro_batch", self.micro_batch, 1),
        ):
            if value is not None and value < least:
                problems.append(f"{name} is {value}; it must be at least {least}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; it must lie in 0 to 1, 1 excluded")
        if not 0 <= self.reverse_complement <= 1:
            problems.append(f"reverse_complement is {self.reverse_complement}; expected 0 to 1")
        if not self.epochs > 0:
            problems.append(f"epochs is {self.epochs}; it must be above 0")
        problems += [
            f"{name} is set, but questions have one length and are counted in questions"
            for name in UNUSED
            if getattr(self, name) not in (None, False, (), "constant")
        ]
        if self.tune != "prompt" and self.valid is not None:
            problems.append("valid chooses the best soft prompt; it is for tune prompt")
        raise_problems(problems)
        stage = Stage(length=1, epochs=None if self.steps is not None else self.epochs)
        object.__setattr__(self, "stages", (stage,))
        super().__post_init__()
        object.__setattr__(self, "stages", ())


def to_yaml(config: InContextConfig) -> str:
    """Write a configuration as YAML that re-creates the run from its beginning."""
    import yaml

    values = plain_values(asdict(config))
    for name in ("resume", "overwrite", "force", *UNUSED):
        values.pop(name, None)
    for name in ("train", "valid", "test", "model"):
        if values[name] is not None and Path(values[name]).exists():
            values[name] = str(Path(values[name]).absolute())
    return yaml.safe_dump(values, sort_keys=False)

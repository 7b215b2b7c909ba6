"""Settings of ``megabase prompt``: a frozen model, labelled sequences, and a prompt that is learnt.

Free of torch, so that ``megabase prompt --help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megabase.settings import HeadConfig, OptimConfig, raise_problems
from megabase.tasks import finetune_config
from megabase.tasks.finetune_config import FinetuneConfig

__all__ = ["UNUSED", "PromptConfig", "PromptSettings", "to_yaml"]

UNUSED = ("from_scratch", "family", "preset", "overrides", "tokenizer", "compile")
"""Settings of fine-tuning that have no meaning for a model that stays as it is."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The learnable vectors, and how the answer is read."""

    length: int = 8
    """Learnable vectors; 0 asks the model as it is (with the head: trains the head alone)."""

    position: Literal["before", "after", "both"] = "before"
    """Where they are: before the sequence (as published), after it, or half on each side."""

    answer: Literal["label_tokens", "head"] = "label_tokens"
    """label_tokens: the next token after a separator is the letter of the class, as published
    (classes only, up to five). head: a linear layer over the model's hidden vectors."""

    letters: Literal["all", "labels"] = "all"
    """Label tokens are told apart from all tokens, as published, or from one another only."""

    over: Literal["auto", "sequence", "prompt", "all"] = "auto"
    """Positions that the head's pooling takes; auto: the sequence's own, with vectors after the
    sequence all."""

    start: Literal["noise", "vocabulary"] = "noise"
    """Initial vectors: normal noise of width 0.02, as published, or embeddings of random bases."""

    dropout: float = 0.1
    """Dropout of the vectors in training."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.length < 0:
            problems.append(f"prompt.length is {self.length}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"prompt.dropout is {self.dropout}; it must lie in 0 to 1, 1 excluded")
        raise_problems(problems)


@dataclass(frozen=True, kw_only=True)
class PromptConfig(FinetuneConfig):
    """Learning a prompt for a model that stays as it is."""

    prompt: PromptSettings = field(default_factory=PromptSettings)
    """The prompt."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(reverse_complement=0.5))
    """Pooling of the head, padding, strands and loss."""

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    """Optimizer and learning rate."""

    global_batch: int | None = 16
    """Sequences per optimizer step."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.model is None:
            problems.append("there is no model: name one (a folder, a run, a Hub name, default)")
        problems += [
            f"{name} is set, but a prompt leaves its model as it is"
            for name in UNUSED
            if getattr(self, name)
        ]
        if self.head.freeze:
            problems.append("head.freeze is set, but the model of a prompt is always frozen")
        if self.prompt.answer == "label_tokens":
            problems += [
                f"{name} is for prompt.answer head"
                for name, given in (
                    ("head.pooling", self.head.pooling),
                    ("head.class_weights", self.head.class_weights),
                    ("head.label_smoothing", self.head.label_smoothing),
                    ("prompt.over", self.prompt.over != "auto"),
                )
                if given
            ]
            if self.head.special_tokens == "yes":
                problems.append(
                    "head.special_tokens is for prompt.answer head; label tokens bring their own "
                    "separator"
                )
        elif self.prompt.letters != "all":
            problems.append("prompt.letters is for prompt.answer label_tokens")
        raise_problems(problems)
        super().__post_init__()


def to_yaml(config: PromptConfig) -> str:
    """Write a configuration as YAML that re-creates the run from its beginning."""
    import yaml

    values = yaml.safe_load(finetune_config.to_yaml(config))
    for name in UNUSED:
        values.pop(name, None)
    return yaml.safe_dump(values, sort_keys=False)

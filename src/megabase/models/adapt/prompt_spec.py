"""What a soft prompt is, apart from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from megabase.errors import ModelError
from megabase.layers.pooling import POOLINGS

__all__ = ["PROMPTED_FAMILIES", "PromptSpec", "label_letters"]

Position = Literal["before", "after", "both"]
Answer = Literal["label_tokens", "head"]
Over = Literal["sequence", "prompt", "all"]

PROMPTED_FAMILIES = ("hyenadna", "gpt", "mamba")
"""Families that read embeddings in place of tokens and predict the next token."""

_LETTERS = {2: "AN", 3: "AGN", 4: "ACGN", 5: "ACGTN"}


def label_letters(classes: int) -> str:
    """Give the letter that stands for each class.

    Two classes are A and N, three A, G and N, as published; four and five go on in the same way.

    Raises
    ------
    ModelError
        For a number of classes that there are no letters for.

    Examples
    --------
    >>> label_letters(3)
    'AGN'
    """
    if classes not in _LETTERS:
        raise ModelError(
            f"label tokens are letters of the alphabet A, C, G, T, N: there are letters for 2 to "
            f"5 classes, found {classes}; answer with the head instead"
        )
    return _LETTERS[classes]


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """What a prompt is, apart from its numbers."""

    length: int
    """Learnable vectors; 0 for none."""
    classes: tuple[str, ...]
    """Names of the answers, in the order of the outputs."""
    kind: str = "classes"
    """classes, multi_label, regression, or nucleotides: a class for each of them."""
    position: Position = "before"
    """Where the vectors are. ``both``: the first half, rounded up, before and the rest after."""
    answer: Answer = "label_tokens"
    """Next token after a separator, or a linear head."""
    letters: str = ""
    """Label tokens: the letter of each class."""
    label_ids: tuple[int, ...] = ()
    """Label tokens: the token id of each class."""
    end_id: int | None = None
    """Label tokens: the separator after which the model is asked."""
    restricted: bool = False
    """Label tokens: compare the letters of the classes only, not all logits."""
    pooling: str = "mean"
    """Head for sequences: how positions become one vector."""
    over: Over = "sequence"
    """Head for sequences: which positions; the prompt's own, the sequence's, or all."""
    examples: tuple[int, ...] = ()
    """Label tokens: ids of solved examples between prompt and sequence."""
    block: int = 0
    """With examples: tokens of each sequence, shorter ones padded on the left."""
    pad_id: int = 4
    """With examples: the padding token."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.length < 0:
            problems.append(f"a prompt has 0 vectors or more, found {self.length}")
        choices = (("position", Position), ("answer", Answer), ("over", Over))
        for name, kind in choices:
            if getattr(self, name) not in get_args(kind):
                problems.append(f"{name} is {getattr(self, name)!r}; expected one of "
                                f"{', '.join(get_args(kind))}")  # fmt: skip
        if self.pooling not in POOLINGS or self.pooling == "hf":
            known = ", ".join(name for name in POOLINGS if name != "hf")
            problems.append(f"pooling is {self.pooling!r}; expected one of {known}")
        if self.examples and (self.answer == "head" or self.block < 1 or self.sides[1]):
            problems.append(
                "solved examples need label tokens, a length, and a prompt that stands before them"
            )
        if self.answer == "label_tokens":
            if self.kind != "classes":
                problems.append(
                    "label tokens answer one class for a whole sequence; several labels, numbers "
                    "and labels of nucleotides need the head"
                )
            elif not len(self.label_ids) == len(self.classes) == len(set(self.label_ids)):
                problems.append(f"{len(self.classes)} classes need as many different label tokens")
            elif self.end_id is None:
                problems.append("label tokens need the separator after which the model is asked")
        elif self.over == "prompt" and not self.length:
            problems.append("the head reads the prompt's own positions, but there are none")
        if problems:
            raise ModelError("; ".join(problems))

    @property
    def sides(self) -> tuple[int, int]:
        """Vectors before and after the sequence."""
        before = {"before": self.length, "after": 0, "both": -(-self.length // 2)}[self.position]
        return before, self.length - before

    @property
    def extra(self) -> int:
        """Positions of the model that the sequence cannot have."""
        return self.length + len(self.examples) + (self.answer == "label_tokens")

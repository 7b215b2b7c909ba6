"""What-ifs: an output of a model with and without a motif, and with and without an interval.

The output is that of a class, averaged over all bases for a model that labels each; or, of a
language model, the log-likelihood of the bases outside the motif or interval: its own bases, which
differ, count neither before nor after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from megabase.data.sources import Sequence as Given
from megabase.errors import InputError
from megabase.evaluate.sequences import codes_of
from megabase.genome.alphabet import BASES, encode
from megabase.genome.kmers import dinucleotide_shuffle
from megabase.inference.jobs import split_options
from megabase.inference.motifs.seqlets import Matrix
from megabase.inference.prediction import Predictor
from megabase.inference.scoring import score
from megabase.models.loading import ModelSpec, find_class, load
from megabase.options import EffectOptions

Codes = NDArray[np.uint8]
_Changed = tuple[int, Codes, int, int]
"""Number of a sequence, and what it becomes by other bases from a start to an end."""


@dataclass(frozen=True, repr=False)
class Effect:
    """An output of a model before and after changes: float64 (sequences, changes).

    ``output`` says what it is (``logit of promoter``), ``difference`` is after minus before, and
    ``mean`` and ``spread`` (the standard deviation; NaN for one) are over all differences.
    """

    before: Matrix
    after: Matrix
    output: str

    @property
    def difference(self) -> Matrix:  # noqa: D102
        return self.after - self.before

    @property
    def mean(self) -> float:  # noqa: D102
        return float(self.difference.mean())

    @property
    def spread(self) -> float:  # noqa: D102
        return float(self.difference.std(ddof=1)) if self.difference.size > 1 else float("nan")

    def __repr__(self) -> str:
        shape = "{} sequences x {} changes".format(*self.after.shape)
        return f"Effect({shape}, {self.output}: {self.mean:+.4g}, spread {self.spread:.2g})"


def marginalize(
    model: ModelSpec, motif: str | Matrix, backgrounds: Iterable[str | Codes],
    at: int | Sequence[int] | None = None, **options: Unpack[EffectOptions],
) -> Effect:  # fmt: skip
    """Put a motif into backgrounds, as :meth:`megabase.Model.marginalize`."""
    letters = motif if isinstance(motif, str) else "".join(BASES[b] for b in motif.argmax(1))
    letters = letters.upper()
    if not letters or set(letters) - set(BASES):
        raise InputError(f"a motif is letters A, C, G, T, or a matrix; found {motif!r}")
    given, rng = codes_of(backgrounds), np.random.default_rng(options.get("seed", 0))
    if shuffles := options.get("shuffles", 0):
        given = [dinucleotide_shuffle(one, rng) for one in given for _ in range(shuffles)]
    changes: list[_Changed] = []
    for number, codes in enumerate(given):
        places = (len(codes) - len(letters)) // 2 if at is None else np.asarray(at)
        for start in np.atleast_1d(places).tolist():
            changes.append(_changed(number, codes, encode(letters), start, start + len(letters)))
    return _effect(model, given, changes, options)


def ablate(
    model: ModelSpec, sequences: Iterable[str | Codes], start: int | Sequence[int],
    end: int | Sequence[int], **options: Unpack[EffectOptions],
) -> Effect:  # fmt: skip
    """Take an interval out of sequences, as :meth:`megabase.Model.ablate`."""
    given, rng = codes_of(sequences), np.random.default_rng(options.get("seed", 0))
    for one in (start, end):
        if np.ndim(one) and np.shape(one) != (len(given),):
            raise InputError(f"expected one start and end, or {len(given)}, found {one}")
    bounds = (np.broadcast_to(one, len(given)).tolist() for one in (start, end))
    changes = [
        _changed(number, codes, dinucleotide_shuffle(codes, rng)[first:last], first, last)
        for number, (codes, first, last) in enumerate(zip(given, *bounds, strict=True))
        for _ in range(options.get("shuffles", 20))
    ]
    return _effect(model, given, changes, options)


def _changed(number: int, codes: Codes, bases: Codes, start: int, end: int) -> _Changed:
    if not 0 <= start < end <= len(codes):
        raise InputError(
            f"sequence {number + 1} has {len(codes):,} bases: expected an interval inside them, "
            f"found {start:,} to {end:,} (0-based, half-open)"
        )
    return number, np.concatenate((codes[:start], bases, codes[end:])), start, end


def _effect(
    model: ModelSpec, given: list[Codes], changes: list[_Changed], options: EffectOptions
) -> Effect:
    if not changes:
        raise InputError("expected a sequence and a change of it or more, found none")
    answers, output = _answers(model, [*given, *(one[1] for one in changes)], options)

    def outside(answer: Any, start: int, end: int) -> float:
        return float(np.nansum(np.delete(answer, slice(start, end)) if answer.ndim else answer))

    before = [outside(answers[number], *span) for number, _, *span in changes]
    after = [outside(x, *one[2:]) for x, one in zip(answers[len(given) :], changes, strict=True)]
    shape = len(given), -1
    return Effect(np.array(before).reshape(shape), np.array(after).reshape(shape), output)


def _answers(model: ModelSpec, items: list[Codes], options: EffectOptions) -> tuple[list[Any], str]:
    """Give the output for each sequence, of a language model one for each base; and its name."""
    own, run = split_options(options, EffectOptions)
    target, kind, strands = own.get("target"), own.get("output"), own.get("strands")
    if kind not in (None, "logit", "probability"):
        raise InputError(f"output is one of logit, probability; found {kind!r}")
    loaded = load(model, device=run.pop("device", None))
    if "classification" in loaded.kind:
        ready = Predictor(loaded, strands=strands, **run)
        column = find_class(ready.classes, target, ready.name)
        values = ready.sequences(items, logits=kind != "probability")[:, column]
        shown = "value" if ready.problem == "regression" else kind or "logit"
        return list(values.astype(np.float64)), f"{shown} of {ready.classes[column]}"
    if target is not None or kind is not None:
        raise InputError(
            f"{loaded.name} is a language model: what changes is the log-likelihood of the bases "
            "around; leave target and output out"
        )
    named = [Given(str(number), one) for number, one in enumerate(items)]
    table = score(loaded, named, per_base=True, strands=strands or "forward", **run).table
    return [np.array(one, dtype=np.float64) for one in table["log_probs"]], "log-likelihood around"

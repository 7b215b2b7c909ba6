"""Ways to turn what a model says about two alleles into one number, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.left_out import Reason
from megabase.inference.variants.alleles import Placed

__all__ = ["METHODS", "Method", "Reading", "default_methods", "find_methods", "require_methods"]

Need = Literal["log_probs", "pooled", "masked"]


@dataclass(frozen=True)
class Reading:
    """What a model says about one allele.

    Parameters
    ----------
    log_probs
        Natural log-probabilities of the bases from the first one that differs to the end of the
        window, NaN where there is none; of a masked model from the start of the window.
    pooled
        Mean of the last hidden states over the window, (width,); None unless asked for.
    masked
        Sum of the log-probabilities of the bases of the allele, all of them hidden at once; None
        unless asked for, and for alleles of different lengths.
    """

    log_probs: NDArray[np.float32] | None = None
    pooled: NDArray[np.float32] | None = None
    masked: float | None = None


class Method(Protocol):
    """Compares two alleles."""

    name: ClassVar[str]
    need: ClassVar[Need]
    description: ClassVar[str]

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Give the value on one strand; NaN when there is none."""
        ...


def _bases(reading: Reading, place: Placed) -> NDArray[np.float32]:
    """Give the log-probabilities from the first base that differs."""
    assert reading.log_probs is not None
    return reading.log_probs[len(reading.log_probs) - (len(place.ref) - place.offset) :]


def _sum(values: NDArray[np.float32]) -> float:
    return float(np.nansum(values, dtype=np.float64))


@dataclass(frozen=True)
class WindowRatio:
    """Log-likelihood ratio of the whole window."""

    name: ClassVar[str] = "llr_window"
    need: ClassVar[Need] = "log_probs"
    description: ClassVar[str] = (
        "log-likelihood of the window with ALT minus that with REF (natural log)"
    )

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Sum over the whole window; of a causal model all before the variant is equal."""
        assert ref.log_probs is not None
        assert alt.log_probs is not None
        return _sum(alt.log_probs) - _sum(ref.log_probs)


@dataclass(frozen=True)
class AfterRatio:
    """Log-likelihood ratio of the bases after the variant."""

    name: ClassVar[str] = "llr_after"
    need: ClassVar[Need] = "log_probs"
    description: ClassVar[str] = (
        "log-likelihood of the bases after the variant with ALT minus with REF (natural log)"
    )

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Sum over the same bases for both alleles: as many as both windows hold."""
        one, two = _bases(ref, place), _bases(alt, place)
        count = len(one) - max(place.ref_bases, place.alt_bases)
        return _sum(two[place.alt_bases :][:count]) - _sum(one[place.ref_bases :][:count])


@dataclass(frozen=True)
class SiteRatio:
    """Log-likelihood ratio of the alleles themselves."""

    name: ClassVar[str] = "llr_site"
    need: ClassVar[Need] = "log_probs"
    description: ClassVar[str] = (
        "log-probability of the bases of ALT minus those of REF (natural log)"
    )

    lacks: ClassVar[Reason] = "NO_BASE_BEFORE"

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Sum over the bases that differ; NaN when the first has nothing before it."""
        one, two = _bases(ref, place)[: place.ref_bases], _bases(alt, place)[: place.alt_bases]
        if np.isnan(one).any() or np.isnan(two).any():
            return float("nan")
        return _sum(two) - _sum(one)


@dataclass(frozen=True)
class MaskedRatio:
    """Ratio of the probabilities of the hidden alleles."""

    name: ClassVar[str] = "masked"
    need: ClassVar[Need] = "masked"
    description: ClassVar[str] = (
        "log-probability of ALT minus that of REF with the allele hidden (natural log); alleles "
        "of one length only"
    )

    lacks: ClassVar[Reason] = "LENGTHS_DIFFER"

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Give the difference; NaN for insertions and deletions."""
        if ref.masked is None or alt.masked is None:
            return float("nan")
        return alt.masked - ref.masked


@dataclass(frozen=True)
class CosineDistance:
    """Angle between the embeddings."""

    name: ClassVar[str] = "cosine"
    need: ClassVar[Need] = "pooled"
    description: ClassVar[str] = (
        "1 - cosine of the mean last hidden states of the windows with REF and ALT"
    )

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Give 1 - cosine."""
        assert ref.pooled is not None
        assert alt.pooled is not None
        one, two = ref.pooled.astype(np.float64), alt.pooled.astype(np.float64)
        # 1 - cos is half the squared distance of the unit vectors, without the cancellation.
        apart = one / np.linalg.norm(one) - two / np.linalg.norm(two)
        return float(apart @ apart / 2)


@dataclass(frozen=True)
class EuclideanDistance:
    """Distance between the embeddings."""

    name: ClassVar[str] = "l2"
    need: ClassVar[Need] = "pooled"
    description: ClassVar[str] = (
        "Euclidean distance of the mean last hidden states of the windows with REF and ALT"
    )

    def value(self, ref: Reading, alt: Reading, place: Placed) -> float:
        """Give the distance."""
        assert ref.pooled is not None
        assert alt.pooled is not None
        return float(np.linalg.norm(alt.pooled.astype(np.float64) - ref.pooled))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (WindowRatio(), AfterRatio(), SiteRatio(), MaskedRatio(), CosineDistance(),
                   EuclideanDistance())
}  # fmt: skip


def default_methods(masked: bool) -> tuple[str, ...]:
    """Give the methods used when none is named: cheap ones that fit the kind of model."""
    return ("masked",) if masked else ("llr_window", "llr_after", "llr_site")


def require_methods(names: Sequence[str]) -> None:
    """Refuse names of methods that do not exist, or are given twice; no model is needed.

    Raises
    ------
    InputError
        Naming the method.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods must be one or more different names, found {list(names)}")
    for name in names:
        if name not in METHODS:
            raise InputError(f"there is no method {name!r}; expected {', '.join(METHODS)}")


def find_methods(names: Sequence[str], masked: bool) -> list[Method]:
    """Give the methods of these names.

    Raises
    ------
    InputError
        When there is no such method, one is named twice, or it does not fit the kind of model.
    """
    require_methods(names)
    for name in names:
        if METHODS[name].need == "masked" and not masked:
            raise InputError(
                f"method {name!r} needs a model that predicts hidden bases; this one is causal "
                f"(use {', '.join(default_methods(False))})"
            )
    return [METHODS[name] for name in names]

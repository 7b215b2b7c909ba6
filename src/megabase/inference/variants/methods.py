"""The windows in which both alleles of a variant are read, and what is made of the outputs there.

A method turns the outputs of a model for REF and ALT into one number.

Shape suffixes: A variants, B bases from one on that is the first that differs or stands before it,
S positions from there on, D width; 1 an axis of one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.genome.alphabet import BASE_BITS, encode, reverse_complement
from megabase.genome.interval import shared_ends
from megabase.genome.left_out import Reason

Placement = Literal["centered", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centered", "grid")
"""Both ways to place a window: the first isolates a variant, in the second neighbors share one."""


class AlleleWindows(NamedTuple):
    """The windows of both alleles of a variant on one strand; they are equal before `offset`."""

    ref: NDArray[np.uint8]  # base codes without the soft-mask bit, (window,)
    alt: NDArray[np.uint8]
    offset: int  # 0-based index in the window of the first base that differs
    ref_bases: int  # length of REF after trimming, as `alt_bases` of ALT; may be 0
    alt_bases: int
    stop: int  # bases of each window that are read, from its start
    name: str = ""  # the variant, for messages

    @classmethod
    def cut(
        cls, contig: NDArray[np.uint8], position: int, ref: str, alt: str, window: int,
        reverse: bool, placement: Placement = "centered",
    ) -> Self | Reason:  # fmt: skip
        """Cut the windows of both alleles, or give the reason why there are none.

        `position` is the 0-based index of the first base of `ref` in the codes of the whole contig;
        the alleles of A, C, G, T differ, and `ref` is what the contig has.
        """
        length = len(contig)
        old, new = encode(ref) & np.uint8(BASE_BITS), encode(alt) & np.uint8(BASE_BITS)
        if reverse:
            position = length - position - len(old)
            old, new = reverse_complement(old), reverse_complement(new)
        front, back = shared_ends(old, new)
        old, new = old[front : len(old) - back], new[front : len(new) - back]
        first, more = position + front, max(0, len(old) - len(new))
        if length < window + more:
            return "CONTIG_TOO_SHORT"
        longest, step = max(len(old), len(new)), window // 2
        start = first - step
        if placement == "grid" and longest <= window // 8:
            start = (first - window // 4) // step * step
        start = min(max(0, start), length - window - more)
        offset = first - start
        if offset + longest > window:
            return "ALLELE_TOO_LONG" if longest > window - step else "TOO_NEAR_END"
        end = start + window + more
        span = contig[start:end]
        if reverse:
            span = reverse_complement(contig[length - end : length - start])
        span = span & np.uint8(BASE_BITS)
        changed = np.concatenate((span[:offset], new, span[offset + len(old) :]))[:window]
        return cls(span[:window], changed, offset, len(old), len(new), window)

    def named(self, name: str, horizon: int | None) -> Self:
        """Name it; read no more bases than end `horizon` behind the longer allele, if given."""
        if horizon is None:
            return self._replace(name=name)
        stop = self.offset + horizon + max(self.ref_bases, self.alt_bases)
        return self._replace(name=name, stop=min(stop, self.stop))


Need = Literal["log_probs", "logits", "states", "whole", "masked", "tracks"]
"""What a method reads: log-probabilities; the logits behind them too; last hidden states; those
before the variant too; log-probabilities of hidden alleles; sums of predicted tracks."""


class Outputs(NamedTuple):
    """What a model gives for one allele of each variant; None of what is not needed."""

    log_probs: Any = None
    """Natural log-probabilities of the bases, (A, B), NaN where there is none."""
    logits: Any = None
    """The logits of A, C, G, T behind them, (A, B, 4)."""
    states: Any = None
    """Last hidden states, (A, S, D)."""


@dataclass
class Pairs:
    """Outputs for both alleles of some variants, from the bases `begins` of the windows on."""

    windows: Sequence[AlleleWindows]
    begins: Sequence[int]
    ref: Outputs
    alt: Outputs
    masked: Any = None
    """Log-probabilities of the alleles REF and ALT, all their bases hidden at once, (A, 2)."""
    shared: tuple[Tensor, Tensor] | None = None
    """Sum (A, D) and sum of squares (A,) of the states before `begins`, alike for both alleles."""

    def __post_init__(self) -> None:
        given = (self.alt.log_probs, self.alt.states, self.masked)
        device = next(one.device for one in given if one is not None)
        # Sums are in double precision, which mps lacks.
        self.device = torch.device("cpu") if device.type == "mps" else device
        if device != self.device:
            both = (
                (x if x is None else x.to(self.device) for x in o) for o in (self.ref, self.alt)
            )
            self.ref, self.alt = (Outputs(*one) for one in both)
            self.shared = self.shared and (self.shared[0].cpu(), self.shared[1].cpu())
        rows = zip(self.windows, self.begins, strict=True)
        places = [(w.offset - b, w.ref_bases, w.alt_bases, w.stop - b) for w, b in rows]
        columns = torch.tensor(places, device=self.device).t()[..., None]
        self.offset_A1, self.ref_bases_A1, self.alt_bases_A1, self.stop_A1 = columns
        self.shorter_A1, longer_A1 = torch.aminmax(columns[1:3], dim=0)
        # The longer allele has the fewer bases behind it: as many are compared.
        self.behind_A1 = self.stop_A1 - self.offset_A1 - longer_A1
        self.lead_A1 = self.offset_A1 + self.shorter_A1

    def total(self, of: Outputs, low_A1: Tensor | int, count_A1: Tensor, known: bool) -> Tensor:
        """Sum log-probabilities in double precision, (A,); only those that are if `known`."""
        at = torch.arange(of.log_probs.shape[1], device=self.device)
        inside = (at >= low_A1) & (at < low_A1 + count_A1)
        if known:
            inside &= ~of.log_probs.isnan()
        return torch.where(inside, of.log_probs.double(), 0).sum(1)

    def aligned(self, x_ref: Tensor, x_alt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put what belongs together in the same column of REF and ALT.

        Also gives which columns hold what stands before the variant's end, and behind it. Alleles
        of two lengths are paired as far as the shorter one goes, and behind them base by base; what
        is left of the longer one has no partner.
        """
        at = torch.arange(x_alt.shape[1], device=self.device)
        lead = at < self.lead_A1
        behind = ~lead & (at < self.lead_A1 + self.behind_A1)
        if bool((self.ref_bases_A1 != self.alt_bases_A1).any()):
            rows = torch.arange(len(x_alt), device=self.device)[:, None]
            for_ref, for_alt = (
                torch.where(lead, at, at + bases - self.shorter_A1).clamp(max=len(at) - 1)
                for bases in (self.ref_bases_A1, self.alt_bases_A1)
            )
            x_ref, x_alt = x_ref[rows, for_ref], x_alt[rows, for_alt]
        return x_ref, x_alt, lead, behind

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Give the mean states of both windows, (A, D), in double precision."""
        at = torch.arange(self.alt.states.shape[1], device=self.device)
        outside = (at >= self.stop_A1)[..., None]
        count_A1 = self.stop_A1 + torch.tensor(self.begins, device=self.device)[:, None]
        before = 0 if self.shared is None else self.shared[0]
        ref_AD, alt_AD = (
            (before + x.masked_fill(outside, 0).sum(1)).double() / count_A1
            for x in (self.ref.states, self.alt.states)
        )
        return ref_AD, alt_AD

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give the sums of squares of the paired states of REF, of ALT, of their differences."""
        ref, alt, lead, behind = self.aligned(self.ref.states, self.alt.states)
        outside = ~(lead | behind)[..., None]
        ref, alt = (x.double().masked_fill(outside, 0).flatten(1) for x in (ref, alt))
        before = 0 if self.shared is None else self.shared[1]
        ref_A, alt_A = (x.square().sum(1) + before for x in (ref, alt))
        return ref_A, alt_A, (alt - ref).square().sum(1)


class Method(NamedTuple):
    """A way to turn the model outputs for two alleles into one number."""

    value: Callable[..., Tensor]
    """Compares REF and ALT of :class:`Pairs` on one strand, (A,) in double precision; NaN where
    there is no value. Of tracks it compares their sums over the windows, (A, tracks) each."""
    needs: frozenset[Need]
    damaging: Literal[-1, 1]  # sign that turns the value so that higher means more damaging
    description: str  # for headers of outputs
    lacks: Reason | None = None  # why a value may be missing
    absolute: bool = False  # whether the mean of the strands loses its sign


def _llr_window(pairs: Pairs) -> Tensor:
    ref, alt = (pairs.total(one, 0, pairs.stop_A1, True) for one in (pairs.ref, pairs.alt))
    return alt - ref


def _llr_after(pairs: Pairs) -> Tensor:
    # The same bases for both alleles: as many as both windows hold.
    ref = pairs.total(pairs.ref, pairs.offset_A1 + pairs.ref_bases_A1, pairs.behind_A1, True)
    return pairs.total(pairs.alt, pairs.offset_A1 + pairs.alt_bases_A1, pairs.behind_A1, True) - ref


def _llr_site(pairs: Pairs) -> Tensor:
    ref = pairs.total(pairs.ref, pairs.offset_A1, pairs.ref_bases_A1, False)
    return pairs.total(pairs.alt, pairs.offset_A1, pairs.alt_bases_A1, False) - ref


def _cosine(pairs: Pairs) -> Tensor:
    ref, alt = (x / x.norm(dim=1, keepdim=True) for x in pairs.pooled())
    # 1 - cos is half the squared distance of the unit vectors, without the cancellation.
    return (ref - alt).square().sum(1) / 2


def _l2(pairs: Pairs) -> Tensor:
    ref, alt = pairs.pooled()
    return (alt - ref).norm(dim=1)


def _cosine_flat(pairs: Pairs) -> Tensor:
    ref, alt, apart = pairs.flat()
    # As for the embeddings: |a - b|^2 = (|a| - |b|)^2 + 2 |a| |b| (1 - cos).
    ref, alt = ref.sqrt(), alt.sqrt()
    return (apart - (ref - alt).square()).clamp(min=0) / (2 * ref * alt)


def _jsd(pairs: Pairs) -> Tensor:
    known = pairs.aligned(pairs.ref.log_probs, pairs.alt.log_probs)[0].isfinite()
    ref, alt, _, behind = pairs.aligned(pairs.ref.logits, pairs.alt.logits)
    p, q = (x.double().log_softmax(-1) for x in (ref, alt))
    middle = torch.logaddexp(p, q) - math.log(2)
    both = (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1) / 2
    counted = behind & known
    return torch.where(counted, both, 0).sum(1) / counted.sum(1).clamp(min=1)


def _track_lfc(ref: Tensor, alt: Tensor) -> Tensor:
    return (1 + alt.clamp(min=0)).log2() - (1 + ref.clamp(min=0)).log2()


_LIKELIHOODS: frozenset[Need] = frozenset({"log_probs"})  # what their comparison reads
_STATES: frozenset[Need] = frozenset({"states", "whole"})  # what one of means over the window reads
METHODS: dict[str, Method] = {
    "llr_window": Method(_llr_window, _LIKELIHOODS, -1,
        "log-likelihood of the window with ALT minus that with REF (natural log)"),
    "llr_after": Method(_llr_after, _LIKELIHOODS, -1,
        "log-likelihood of the bases after the variant with ALT minus with REF (natural log)"),
    "llr_site": Method(_llr_site, _LIKELIHOODS, -1,
        "log-probability of the bases of ALT minus those of REF (natural log)", "NO_BASE_BEFORE"),
    "masked": Method(lambda pairs: (pairs.masked[:, 1] - pairs.masked[:, 0]).to(pairs.device),
         frozenset({"masked"}), -1,
        "log-probability of ALT minus that of REF with the allele hidden (natural log); alleles "
        "of one length only", "LENGTHS_DIFFER"),
    "cosine": Method(_cosine, _STATES, 1,
        "1 - cosine of the mean last hidden states of the windows with REF and ALT"),
    "l2": Method(_l2, _STATES, 1,
        "Euclidean distance of the mean last hidden states of the windows with REF and ALT"),
    "cosine_flat": Method(_cosine_flat, _STATES, 1,
        "1 - cosine of the last hidden states of all positions of the windows with REF and ALT"),
    "l2_flat": Method(lambda pairs: pairs.flat()[2].sqrt(), frozenset({"states"}), 1,
        "Euclidean distance of the last hidden states of all positions of the windows with REF and "
        "ALT"),
    "jsd": Method(_jsd, frozenset({"log_probs", "logits"}), 1,
        "Jensen-Shannon divergence of the base probabilities with REF and ALT, mean over the bases "
        "after the variant (nats)"),
    "track_delta": Method(lambda ref, alt: alt - ref, frozenset({"tracks"}), -1,
        "sum of the predicted track over the window with ALT minus with REF"),
    "track_lfc": Method(_track_lfc, frozenset({"tracks"}), -1,
        "log2 of (1 + sum of the predicted track over the window) with ALT minus with REF"),
}  # fmt: skip
"""All methods by name; names become INFO keys and columns, so they never change."""
METHODS |= {  # after their strands are averaged
    f"abs_{name}": one._replace(
        damaging=1, description=f"absolute value of: {one.description}", absolute=True
    )
    for name, one in METHODS.items()
    if one.damaging < 0
}

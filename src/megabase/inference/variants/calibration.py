"""What a score is where nothing is known of a variant: scores of random variants, by context.

Likelihood ratios follow the bases around a substitution and the change itself (a CpG transition is
expected everywhere) before they follow what the place does. A calibration holds, for each method,
mean and spread of random substitutions by pentanucleotide and alternative, and the quantiles of
random variants of each class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, BASES, T
from megabase.genome.interval import shared_ends
from megabase.inference.parts import Provenance
from megabase.untrusted import parsing

if TYPE_CHECKING:
    from megabase.inference.variants.scorer import VariantOptions
    from megabase.models.loading import Loaded

CLASSES = ("snv", "insertion", "deletion", "mnv")
"""Classes of variants after trimming; mnv replaces bases by others, but for one by one."""
SUBSTITUTIONS = 3 * 4**5
"""Contexts of substitutions: pentanucleotides times the three alternatives."""
CONTEXTS = SUBSTITUTIONS + len(CLASSES) - 1
"""All contexts: one more for each class but snv."""
CALIBRATION_FILE = "variants.calibration.npz"
"""Name of the file in the folder of a model; the word ``model`` stands for it as an option."""
DERIVED = {
    "z": "less the mean of random substitutions in its context, in their standard deviations",
    "percentile": "as percentage of random variants of its class that score lower",
}
"""What a calibration adds to each method."""
_QUANTILES = 1_001
"""Steps of a tenth of a percent; the tails beyond need more random variants than one scores."""
_PRIOR = 10.0
"""Draws that a wider class counts for in a variance: little beside those of most contexts."""
_STORED = ("mean", "spread", "quantiles")  # arrays of a file that are kept in 32 bits

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


def _substitution_contexts(codes: NDArray[np.uint8], alt: NDArray[np.integer] | int) -> _Ints:
    """Give the numbers of the contexts of substitutions in the middle of five bases.

    Codes (..., 5) and those of the alternatives (...) are broadcast; -1 where one of the five is N
    or the alternative is the base itself. The number is 3 times the pentanucleotide read in base 4,
    plus the rank of the alternative among the three.
    """
    base = (codes & np.uint8(BASE_BITS)).astype(np.int64)
    known = (base <= T).all(-1) & (alt != base[..., 2])
    number = (np.minimum(base, T) * 4 ** np.arange(4, -1, -1)).sum(-1)
    return np.where(known, 3 * number + alt - (alt > base[..., 2]), -1)


def context_of(contig: NDArray[np.uint8], position: int, ref: str, alt: str) -> tuple[int, int]:
    """Give context (-1 without five known bases) and class of a variant, numbered.

    `position` is the 0-based index of the first base of `ref` in the codes of the whole contig.
    """
    ref, alt = ref.upper(), alt.upper()
    front, back = shared_ends(ref, alt)
    old, new = (len(allele) - front - back for allele in (ref, alt))
    if not old == new == 1:
        kind = 1 if not old else 2 if not new else 3
        return SUBSTITUTIONS + kind - 1, kind
    first = position + front - 2
    around = contig[max(0, first) : first + 5]
    if len(around) < 5:
        return -1, 0
    return int(_substitution_contexts(around, BASES.index(alt[front]))), 0


def _mirrored() -> _Ints:
    """Give the context of every substitution as the other strand reads it."""
    number, rank = np.divmod(np.arange(SUBSTITUTIONS), 3)
    digits = number[:, None] // 4 ** np.arange(4, -1, -1) % 4
    alt = rank + (rank >= digits[:, 2])
    return _substitution_contexts((3 - digits[:, ::-1]).astype(np.uint8), 3 - alt)


def columns(methods: Sequence[str], calibrated: bool) -> list[str]:
    """Name the columns of scores: the methods, then two more for each where it is calibrated."""
    more = [f"{name}_{kind}" for name in methods for kind in DERIVED]
    return [*methods, *(more if calibrated else ())]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of random variants (M methods)."""

    methods: tuple[str, ...]
    mean: _Floats
    """By context, (M, 3,075); NaN for a class without random variants."""
    spread: _Floats
    """Standard deviation, (M, 3,075)."""
    counts: _Ints
    """Random variants behind each, (3,075,)."""
    quantiles: _Floats
    """By class, from the least to the largest score, (M, 4, 1,001)."""
    provenance: Provenance

    @classmethod
    def fit(
        cls, methods: Sequence[str], values: _Floats, contexts: _Ints, classes: _Ints,
        provenance: Provenance,
    ) -> Calibration:  # fmt: skip
        """Fit to scores (n, M) of random variants with their contexts and classes (n,).

        Where both strands are read, a context and its mirror image are one. The mean of a context
        is shrunk toward its trinucleotide with the same alternative, and that toward all
        substitutions, by as much as the scores within contexts vary more than their means do; so is
        the variance, whose wider class counts for ten random variants.
        """
        mean = np.full((len(methods), CONTEXTS), np.nan)
        spread, quantiles = mean.copy(), np.full((len(methods), len(CLASSES), _QUANTILES), np.nan)
        mirror = _mirrored() if provenance.options.get("strands") == "both" else None
        counts = np.bincount(contexts[contexts >= 0], minlength=CONTEXTS)
        if mirror is not None:
            counts[:SUBSTITUTIONS] += counts[mirror]
        middle = np.arange(SUBSTITUTIONS) // 3 // 4 % 64 * 3 + np.arange(SUBSTITUTIONS) % 3
        for row, own in enumerate(values.T):
            known = np.isfinite(own)
            for kind in range(len(CLASSES)):
                drawn = own[known & (classes == kind)]
                if len(drawn) < 2:
                    continue
                quantiles[row, kind] = np.quantile(drawn, np.linspace(0, 1, _QUANTILES))
                if kind:
                    at = SUBSTITUTIONS + kind - 1
                    mean[row, at], spread[row, at] = drawn.mean(), drawn.std()
            snv = known & (contexts >= 0) & (classes == 0)
            if not snv.any():
                continue
            drawn, at = own[snv], contexts[snv]
            if mirror is not None:
                drawn, at = np.concatenate((drawn, drawn)), np.concatenate((at, mirror[at]))
            wide, _ = _toward(drawn, middle[at], np.full(192, drawn.mean()))
            near, share = _toward(drawn, at, wide[middle])
            mean[row, :SUBSTITUTIONS] = near
            # Each draw against the mean that the others give: what a new one will show.
            apart = ((drawn - near[at]) / (1 - share[at])) ** 2
            wide = _smoothed(apart, middle[at], np.full(192, apart.mean()))
            spread[row, :SUBSTITUTIONS] = np.sqrt(_smoothed(apart, at, wide[middle]))
        return cls(tuple(methods), mean, spread, counts, quantiles, provenance)

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read what ``megabase variants --calibrate`` wrote; InputError for another file."""
        path = Path(path)
        with (
            parsing(path, InputError, "expected a file of megabase variants --calibrate"),
            np.load(path) as file,
        ):
            provenance = Provenance(**json.loads(str(file["megabase"])))
            mean, spread, quantiles = (file[name].astype(np.float64) for name in _STORED)
            names = tuple(str(name) for name in file["methods"])
            shapes = {(len(names), CONTEXTS), (len(names), len(CLASSES), _QUANTILES)}
            if {mean.shape, spread.shape, quantiles.shape} != shapes:
                raise ValueError("arrays of other shapes")
            return cls(names, mean, spread, file["counts"], quantiles, provenance)

    def write(self, path: Path) -> None:
        """Write all into one file; 7 digits are kept."""
        small = {name: getattr(self, name).astype(np.float32) for name in _STORED}
        with path.open("wb") as file:
            np.savez_compressed(
                file, methods=np.array(self.methods), counts=self.counts, allow_pickle=False,
                megabase=np.array(self.provenance.to_json()), **small,
            )  # fmt: skip

    @classmethod
    def of(
        cls, given: str | Path, model: Loaded, options: VariantOptions, names: Sequence[str]
    ) -> Calibration:
        """Read a file, or for ``model`` the one beside it, made as `options` score by `names`.

        InputError for one of another model, window, strand or placement, or without a method.
        """
        if str(given) == "model":
            given = (model.folder or Path("/")) / CALIBRATION_FILE
            if model.folder is None or not given.is_file():
                raise InputError(
                    f"{model.name} has no {CALIBRATION_FILE} beside it; make one with megabase "
                    "variants MODEL --calibrate GENOME, or name a file"
                )
        found = cls.read(given)
        made, asked = found.provenance, asdict(options)
        wrong = [
            f"{name} {has}, not {asked[name]}"
            for name in ("window", "strands", "placement", "horizon")
            if (has := made.options.get(name)) != asked[name]
        ]
        if made.model_sha256 != model.digest:
            wrong.insert(0, f"model {made.model} ({made.model_sha256[:8]}), not {model.name}")
        if lacks := [name for name in names if name not in found.methods]:
            wrong.append(f"methods {', '.join(found.methods)}, without {', '.join(lacks)}")
        if wrong:
            raise InputError(
                f"{given} was made with {'; '.join(wrong)}; make another one with megabase "
                "variants MODEL --calibrate GENOME and these options"
            )
        return found

    def extend(
        self, methods: Sequence[str], values: _Floats, contexts: _Ints, classes: _Ints
    ) -> _Floats:
        """Give scores (n, methods) and the further :func:`columns`; NaN where there is none."""
        more: list[_Floats] = []
        for name, own in zip(methods, values.T, strict=True):
            row, below = self.methods.index(name), np.full(len(own), np.nan)
            spread = self.spread[row, contexts]
            known = (contexts >= 0) & (spread > 0)
            more.append((own - self.mean[row, contexts]) / np.where(known, spread, np.nan))
            for kind, quantiles in enumerate(self.quantiles[row]):
                mine = (classes == kind) & np.isfinite(own)
                if mine.any() and not np.isnan(quantiles[0]):
                    below[mine] = np.interp(own[mine], quantiles, np.linspace(0, 100, _QUANTILES))
            more.append(below)
        return np.column_stack((values, *more))


def _toward(values: _Floats, group: _Ints, wider: _Floats) -> tuple[_Floats, _Floats]:
    """Give the mean of each group, shrunk toward that of its wider class, and the share of a draw.

    The wider class counts for as many draws as the variance within groups is above that between.
    """
    count = np.bincount(group, minlength=len(wider))
    seen = np.maximum(count, 1)
    mean = np.bincount(group, values, len(wider)) / seen
    some, draws = count > 0, len(values)
    within = ((values - mean[group]) ** 2).sum() / max(1, draws - some.sum())
    between = (count * (mean - wider) ** 2).sum() / some.sum() - within
    # Where no group has two draws, nothing says how much they vary: the wider class is taken.
    prior = within * draws / some.sum() / between if min(within, between) > 0 else np.inf
    share = 1 / (count + prior) if np.isfinite(prior) else np.zeros(len(wider))
    return wider + (mean - wider) * count * share, share


def _smoothed(squares: _Floats, group: _Ints, wider: _Floats) -> _Floats:
    """Give the mean of each group, with that of its wider class as some draws more."""
    count, total = (np.bincount(group, x, len(wider)) for x in (None, squares))
    return (total + _PRIOR * wider) / (count + _PRIOR)

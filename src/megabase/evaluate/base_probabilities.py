"""Probabilities along a genome: of A, C, G, T by a language model, of classes by a labeler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from megabase.data.labeled import IGNORED, LabeledSequences
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.evaluate.sequences import plan_windows, run_batched
from megabase.genome.alphabet import BASE_BITS, PAD, T, decode, encode
from megabase.genome.files import atomic_file
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import Genome
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode

Floats = NDArray[np.float32]
_WINDOW = 1024  # bases read at once by default: half of it is enough context for a page


def base_probabilities(
    model: Loaded, store: Genome, region: Interval, *, window: int | None = None,
    batch_tokens: int = 1 << 16,
) -> Floats:  # fmt: skip
    """Give the probability of A, C, G, T at every base of a region, float32 (length, 4).

    Windows, of up to 1,024 bases when None, overlap by half and reach beyond the region: a causal
    model sees half a window or more before every base, as far as the contig reaches. Its first base
    has a quarter each under a causal model.
    """
    window = _window(model, window)
    length = store.contig(region.contig).length
    begin = max(0, region.start - window // 2)
    stop = min(length, region.end + window // 2) if model.masked else region.end
    codes = store.fetch(Interval(region.contig, begin, stop))
    spans = plan_windows(len(codes), window, window // 2, "center" if model.masked else "before")

    def record(row: int) -> str:
        return str(Interval(region.contig, begin + spans[row].start, begin + spans[row].end))

    pieces = [codes[span.start : span.end] for span in spans]
    found = _sequence_probabilities(model, pieces, batch_tokens, record)
    out = np.concatenate([span.part(values) for span, values in zip(spans, found, strict=True)])
    return out[region.start - begin : region.end - begin]


def _sequence_probabilities(
    model: Loaded, sequences: Sequence[NDArray[np.uint8]], batch_tokens: int,
    record: Callable[[int], str],
) -> list[Floats]:  # fmt: skip
    """Give the probability of A, C, G, T at every base of sequences, (length, 4) each."""

    def compute(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> list[Floats]:
        known = torch.from_numpy(codes != PAD).to(model.device)[..., None]
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        masking = "seventh" if model.masked else "causal"
        with inference_mode(model.model):
            # A first base that a causal model does not predict has four zeros: a quarter each.
            logits = predict_tokens(model.model, ids, masking, lambda x, _: base_logits(x))
            found = logits.softmax(-1)
            require_finite(
                found, model.name, "probabilities", lambda row: record(int(rows[row])), known
            )
            return list(found.cpu().numpy())

    found = run_batched(sequences, compute, batch_tokens=batch_tokens, pad=not model.masked)
    return [values[: len(codes)] for values, codes in zip(found, sequences, strict=True)]


class _AlleleView(NamedTuple):
    """What a model expects around a variant, when either allele stands there."""

    number: int  # of the variant
    start: int  # 0-based position of the first base on the contig
    before: str
    after: str  # bases on either side of the alleles
    probabilities: Floats
    """Of A, C, G, T, (bases, 4), at the bases before, of the alternative, and after."""
    ref: Floats
    alt: Floats  # log-probability of each base with REF, and with ALT: before, of the allele, after


def allele_views(
    model: Loaded, store: Genome, variants: Sequence[tuple[str, int, int, str, str | None]], *,
    around: int, window: int | None = None, batch_tokens: int = 1 << 16,
) -> list[_AlleleView]:  # fmt: skip
    """Give probabilities around variants, up to `around` bases on either side.

    Both alleles are read from the same base on. Variants are contig, start, end (0-based
    half-open), REF and ALT; those without letters for ALT, or with more than a quarter of the
    window, are skipped.
    """
    size = _window(model, window)
    sequences: dict[tuple[str, int, int, int, str], int] = {}  # alleles of a site share REF
    rows: list[NDArray[np.uint8]] = []
    kept: list[tuple[int, int, int, tuple[int, int]]] = []
    for number, (contig, start, end, ref, alt) in enumerate(variants):
        longest = max(end - start, len(alt or ""))
        if alt is None or not set(alt) <= set("ACGTN") or longest > size // 4:
            continue
        after = min(store.contig(contig).length, end + around)
        lead = size // 2 if model.masked else size - longest - (after - end)
        begin, pair = max(0, start - lead), []
        view = store.view(contig)
        for allele in (ref, alt):
            key = (contig, begin, start, after, allele)
            if key not in sequences:
                sequences[key] = len(rows)
                parts = (view[begin:start], encode(allele), view[end:after])
                rows.append(np.concatenate(parts) & np.uint8(BASE_BITS))
            pair.append(sequences[key])
        kept.append((number, start - begin, after - end, (pair[0], pair[1])))
    names = list(sequences)

    def record(row: int) -> str:
        contig, _, start, _, allele = names[row]
        return f"{contig}:{one_based(start):,} with {allele}"

    found = _sequence_probabilities(model, rows, batch_tokens, record)
    views = []
    for number, lead, after, pair in kept:
        first = max(0, lead - around)
        ref, alt = (log_likelihood(found[row], rows[row])[first:] for row in pair)
        text = decode(rows[pair[1]])
        start = variants[number][1] - (lead - first)
        probabilities = found[pair[1]][first:]
        ends = text[first:lead], text[len(text) - after :]
        views.append(_AlleleView(number, start, *ends, probabilities, ref, alt))
    return views


def log_likelihood(probabilities: Floats, codes: NDArray[np.uint8]) -> Floats:
    """Give the natural log-probability of the base at each position; NaN unless A, C, G, T."""
    base = codes & BASE_BITS
    known = base <= T
    own = probabilities[np.arange(len(codes)), np.where(known, base, 0)]
    return np.where(known, np.log(np.maximum(own, 1e-30)), np.nan).astype(np.float32)


class NucleotidePredictions:
    """Collects the class probabilities of every labeled base of a genome, and writes them.

    `left` says whether the rows of a batch are padded on the left.
    """

    def __init__(self, windows: LabeledSequences, *, left: bool = False) -> None:
        self._windows, self._left = windows, left
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def __call__(self, rows: NDArray[np.int64], found: Any) -> None:
        """Take the ``outputs`` (n, length, K) of the windows with these numbers."""
        windows = self._windows
        probabilities = found.outputs.softmax(dim=2).float().cpu().numpy()
        width = probabilities.shape[1]
        for row, values in zip(rows.tolist(), probabilities, strict=True):
            size = min(int(windows.lengths[row]), width)
            start = width - size if self._left else 0
            interval = (windows.text.intervals or ())[int(windows.rows[row])]
            first = int(windows.offsets[row])
            truth = windows.labels[first : first + size]
            known = np.flatnonzero(truth != IGNORED)
            contig = np.repeat(np.array([interval.contig]), len(known))
            part = contig, interval.start + known, truth[known], values[start + known]
            self._parts.append(part)

    def write(self, path: Path) -> None:
        """Write a row for each labeled base: contig, 0-based position, label and p_CLASS."""
        classes = self._windows.classes
        contigs, positions, labels, table = map(np.concatenate, zip(*self._parts, strict=True))
        frame = pl.DataFrame({
            "contig": contigs, "position": positions, "label": np.array(classes)[labels],
            **{f"p_{name}": table[:, i] for i, name in enumerate(classes)},
        })  # fmt: skip
        with atomic_file(path, overwrite=True) as file:
            frame.write_parquet(file)


def _window(model: Loaded, window: int | None) -> int:
    if window is None:
        return min(_WINDOW, model.longest or _WINDOW)
    if window < 2:
        raise InputError(f"a window needs 2 bases or more, found {window}")
    model.require_length(window, "a window")
    return window

"""Probabilities along a genome: of A, C, G, T by a language model, of classes by a labeler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.augment import codes_to_ids
from megabase.data.labeled import IGNORED, LabeledSequences
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.evaluate.sequences import plan_windows, run_batched
from megabase.genome.alphabet import BASE_BITS, PAD, T, encode
from megabase.genome.files import atomic_file
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import Genome
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode

Floats = NDArray[np.float32]
_WINDOW = 1024
"""Bases read at once by default: half of it is enough context for a page."""


def base_probabilities(
    model: Loaded,
    store: Genome,
    region: Interval,
    *,
    window: int | None = None,
    batch_tokens: int = 1 << 16,
) -> Floats:
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
    found = _sequence_probabilities(
        model, [codes[span.start : span.end] for span in spans], batch_tokens=batch_tokens,
        record=lambda row: str(
            Interval(region.contig, begin + spans[row].start, begin + spans[row].end)
        ),
    )  # fmt: skip
    out = np.concatenate([span.part(values) for span, values in zip(spans, found, strict=True)])
    return out[region.start - begin : region.end - begin]


def _sequence_probabilities(
    model: Loaded, sequences: Sequence[NDArray[np.uint8]], *, batch_tokens: int,
    record: Callable[[int], str],
) -> list[Floats]:  # fmt: skip
    """Give the probability of A, C, G, T at every base of sequences, (length, 4) each."""

    def compute(codes: NDArray[np.uint8], rows: NDArray[np.int64]) -> list[Floats]:
        known = torch.from_numpy(codes != PAD).to(model.device)[..., None]
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        with inference_mode(model.model):
            found = predict_tokens(
                model.model, ids, "seventh" if model.masked else "causal", _softmax
            )
            if not model.masked:
                found[:, 0] = 0.25
            require_finite(
                found, model.name, "probabilities", lambda row: record(int(rows[row])), known
            )
            return list(found.cpu().numpy())

    found = run_batched(sequences, compute, batch_tokens=batch_tokens, pad=not model.masked)
    return [values[: len(codes)] for values, codes in zip(found, sequences, strict=True)]


def allele_probabilities(
    model: Loaded,
    store: Genome,
    variants: Sequence[tuple[str, int, int, str, str | None]],
    *,
    around: int,
    window: int | None = None,
    batch_tokens: int = 1 << 16,
) -> list[tuple[int, int, Floats]]:
    """Give probabilities around variants when the alternative stands there.

    Of each variant: its number, the 0-based position of the first base on the contig, and float32
    (bases, 4) from `around` bases before the alternative to as many after it. Variants are contig,
    start, end (0-based half-open), REF and ALT; those without letters for ALT, or with more than a
    quarter of the window, are skipped.
    """
    size = _window(model, window)
    rows: list[NDArray[np.uint8]] = []
    kept: list[tuple[int, int]] = []
    for number, (contig, start, end, _, alt) in enumerate(variants):
        if alt is None or not set(alt) <= set("ACGTN") or len(alt) > size // 4:
            continue
        after = min(store.contig(contig).length, end + around)
        lead = size // 2 if model.masked else size - len(alt) - (after - end)
        begin = max(0, start - lead)
        parts = [encode(alt)]
        if begin < start:
            parts.insert(0, store.fetch(Interval(contig, begin, start)))
        if end < after:
            parts.append(store.fetch(Interval(contig, end, after)))
        rows.append(np.concatenate(parts))
        kept.append((number, start - begin))

    def record(row: int) -> str:
        contig, start, _, ref, alt = variants[kept[row][0]]
        return f"{contig}:{one_based(start):,}:{ref}>{alt}"

    found = _sequence_probabilities(model, rows, batch_tokens=batch_tokens, record=record)
    return [
        (number, variants[number][1] - min(lead, around), values[max(0, lead - around) :])
        for (number, lead), values in zip(kept, found, strict=True)
    ]


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
            self._parts.append(
                (contig, interval.start + known, truth[known], values[start + known])
            )

    def write(self, path: Path) -> None:
        """Write a row for each labeled base: contig, 0-based position, label and p_CLASS."""
        classes = self._windows.classes
        contigs, positions, labels, table = map(np.concatenate, zip(*self._parts, strict=True))
        frame = pl.DataFrame(
            {
                "contig": contigs,
                "position": positions,
                "label": np.array(classes)[labels],
                **{f"p_{name}": table[:, i] for i, name in enumerate(classes)},
            }
        )
        with atomic_file(path, overwrite=True) as file:
            frame.write_parquet(file)


def _softmax(logits: Tensor, _: Tensor) -> Tensor:
    """Give the probabilities of A, C, G, T."""
    return base_logits(logits).softmax(-1)


def _window(model: Loaded, window: int | None) -> int:
    """Give the window, checked against the model."""
    if window is None:
        return min(_WINDOW, model.longest or _WINDOW)
    if window < 2:
        raise InputError(f"a window needs 2 bases or more, found {window}")
    model.require_length(window, "a window")
    return window

"""What a language model expects along a genome: the probability of each base at every position.

A causal model predicts a position from the bases before it, a masked model with every seventh
position of a window hidden at a time (:mod:`megabase.evaluate.log_probs`). Both are over
A, C, G, T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.augment import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.evaluate.sequences import plan_windows, run_batched
from megabase.genome.alphabet import BASE_BITS, PAD, T
from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.models.checkpoints.finite import require_finite
from megabase.models.loading import Loaded, inference_mode

Floats = NDArray[np.float32]
_WINDOW = 1024
"""Bases read at once unless more are asked for: half of it is context enough for a page."""


def base_probabilities(
    model: Loaded,
    store: GenomeStore,
    region: Interval,
    *,
    window: int | None = None,
    batch_tokens: int = 1 << 16,
) -> Floats:
    """Give the probability of A, C, G, T at every base of a region.

    Parameters
    ----------
    model
        A language model.
    store
        The genome.
    region
        Read on the forward strand.
    window
        Bases that the model reads at once: those before the region are read as well, so that a
        causal model sees half a window or more before every base, as far as the contig reaches.
        As many as the model can, up to 1,024, when None.
    batch_tokens
        About how many positions a forward pass takes.

    Returns
    -------
    ndarray
        float32 (region.length, 4). A causal model knows nothing about the first base of a contig:
        a quarter each.

    Raises
    ------
    InputError
        When the window does not fit the model.
    """
    window = _window(model, window)
    length = store.contig(region.contig).length
    begin = max(0, region.start - window // 2)
    stop = min(length, region.end + window // 2) if model.masked else region.end
    codes = store.fetch(Interval(region.contig, begin, stop))
    spans = plan_windows(len(codes), window, window // 2, "centre" if model.masked else "before")
    found = sequence_probabilities(
        model, [codes[span.start : span.end] for span in spans], batch_tokens=batch_tokens,
        record=lambda row: str(
            Interval(region.contig, begin + spans[row].start, begin + spans[row].end)
        ),
    )  # fmt: skip
    out = np.concatenate([span.part(values) for span, values in zip(spans, found, strict=True)])
    return out[region.start - begin : region.end - begin]


def sequence_probabilities(
    model: Loaded,
    sequences: Sequence[NDArray[np.uint8]],
    *,
    batch_tokens: int = 1 << 16,
    record: Callable[[int], str] = lambda row: f"sequence {row + 1}",
) -> list[Floats]:
    """Give the probability of A, C, G, T at every base of sequences, (length, 4) each.

    Raises
    ------
    NotFiniteError
        When the model gives NaN or infinity; `record` names the sequence by its number.
    """

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


def log_likelihood(probabilities: Floats, codes: NDArray[np.uint8]) -> Floats:
    """Give the natural log-probability of the base that stands at each position.

    Parameters
    ----------
    probabilities
        float (length, 4).
    codes
        uint8 (length,).

    Returns
    -------
    ndarray
        float32 (length,); NaN where the base is not A, C, G or T.
    """
    base = codes & BASE_BITS
    known = base <= T
    own = probabilities[np.arange(len(codes)), np.where(known, base, 0)]
    return np.where(known, np.log(np.maximum(own, 1e-30)), np.nan).astype(np.float32)


def _softmax(logits: Tensor, _: Tensor) -> Tensor:
    """Give the probabilities of A, C, G, T."""
    return base_logits(logits).softmax(-1)


def _window(model: Loaded, window: int | None) -> int:
    """Give the window, checked against the model."""
    longest = model.longest
    if window is None:
        return _WINDOW if longest is None else min(_WINDOW, longest)
    if window < 2:
        raise InputError(f"a window needs 2 bases or more, found {window}")
    if longest is not None and window > longest:
        raise InputError(
            f"a window of {window:,} bases does not fit {model.name}, which reads {longest:,}"
        )
    return window

"""What a language model expects along a genome: the probability of each base at every position.

A causal model gives every position four probabilities from the bases before it; a masked model is
asked about a position with the base itself hidden, several positions of a window at a time, as in
its training. Both are over A, C, G, T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.augment import codes_to_ids
from megabase.data.vocabulary import MASK_ID
from megabase.errors import InputError
from megabase.evaluate.batching import run_batched
from megabase.evaluate.stitching import plan_windows
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, PAD, T
from megabase.genome.interval import Interval
from megabase.genome.store import GenomeStore
from megabase.models.checkpoints.finite import require_finite
from megabase.models.loading import Loaded
from megabase.models.scored_model import inference_mode

__all__ = ["base_probabilities", "log_likelihood", "sequence_probabilities"]

Floats = NDArray[np.float32]
_BASES = slice(BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1] + 1)
_PASSES = 7  # a seventh of the positions is hidden at a time, about the share of training
_WINDOW = 1024


def base_probabilities(
    model: Loaded,
    store: GenomeStore,
    place: Interval,
    *,
    window: int | None = None,
    batch_tokens: int = 1 << 16,
) -> Floats:
    """Give the probability of A, C, G, T at every base of a place.

    Parameters
    ----------
    model
        A language model.
    store
        The genome.
    place
        Read on the forward strand.
    window
        Bases that the model reads at once: those before the place are read as well, so that a
        causal model sees half a window or more before every base, as far as the contig reaches.
        As many as the model can, up to 1,024, when None.
    batch_tokens
        About how many positions a forward pass takes.

    Returns
    -------
    ndarray
        float32 (place.length, 4). A causal model knows nothing about the first base of a contig:
        a quarter each.

    Raises
    ------
    InputError
        When the window does not fit the model.
    """
    window = _window(model, window)
    length = store.contig(place.contig).length
    margin = window // 2
    begin = max(0, place.start - margin)
    stop = min(length, place.end + margin) if model.masked else place.end
    codes = store.fetch(Interval(place.contig, begin, stop))
    rule = "centre" if model.masked else "before"
    spans = plan_windows(len(codes), window, window // 2, rule)
    rows = [codes[span.start : span.end] for span in spans]
    found = sequence_probabilities(
        model, rows, batch_tokens=batch_tokens,
        record=lambda row: str(
            Interval(place.contig, begin + spans[row].start, begin + spans[row].end)
        ),
    )  # fmt: skip
    out = np.zeros((len(codes), 4), dtype=np.float32)
    for span, values in zip(spans, found, strict=True):
        out[span.first : span.last] = values[span.first - span.start : span.last - span.start]
    return out[place.start - begin : place.start - begin + place.length]


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
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        with inference_mode(model.model):
            found = _masked(model.model, ids) if model.masked else _causal(model.model, ids)
            require_finite(
                found, model.name, "probabilities", lambda row: record(int(rows[row])),
                torch.from_numpy(codes != PAD).to(found.device)[..., None],
            )  # fmt: skip
            return list(found.float().cpu().numpy())

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


def _window(model: Loaded, window: int | None) -> int:
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


def _causal(module: Any, ids: Tensor) -> Tensor:
    logits: Tensor = module(input_ids=ids).logits
    first = torch.full_like(logits[:, :1, _BASES], 0.25)
    return torch.cat([first, logits[:, :-1, _BASES].float().softmax(-1)], dim=1)


def _masked(module: Any, ids: Tensor) -> Tensor:
    place = torch.arange(ids.shape[1], device=ids.device)
    out: Tensor | None = None
    for turn in range(min(_PASSES, ids.shape[1])):
        hidden = place % _PASSES == turn
        logits: Tensor = module(input_ids=torch.where(hidden, MASK_ID, ids)).logits
        found = logits[..., _BASES].float().softmax(-1)
        out = found if out is None else torch.where(hidden[:, None], found, out)
    if out is None:
        raise InputError("a sequence has no base")
    return out

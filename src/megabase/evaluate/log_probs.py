"""The probabilities that a language model gives to bases, computed here for every verb.

What a model may see when it predicts a base is named by a masking rule: ``"causal"``, the tokens
before it; ``"single"``, everything but the base itself, in a pass of its own (the default for
masked models, a pseudo-log-likelihood); ``"seventh"``, every seventh position hidden at a time, a
share of 0.15 as in training, in seven passes; ``"together"``, all positions to predict hidden at
once. The rules give different numbers for the same base; docs/scoring.md lists which verb uses
which. Causal HyenaDNA models read long sequences in about two copies of their hidden vectors
(:mod:`megabase.layers.incremental`). Along a genome a labeler gives probabilities of classes.

Shape suffixes: B batch, L positions, V columns of the logits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.vocabulary import MASK_ID, codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.sequences import plan_windows, run_batched
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, PAD, T, decode, encode
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import Genome
from megabase.layers.backbone import Backbone
from megabase.layers.incremental import can_stream, stream_backbone
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode, language_model_kind

Masking = Literal["causal", "single", "seventh", "together"]
"""Which positions are hidden when a base is predicted; see the module."""

_FIRST, _LAST = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]
_PASSES = 7
"""Passes of the rule ``"seventh"``: 1 / 7 is the share nearest to the 0.15 hidden in training."""
_HEAD_POSITIONS = 1 << 15
"""Positions whose logits exist at a time: the temporaries of a million would exceed the model."""
_STREAMED = 1 << 15
"""Length from which causal HyenaDNA models read sequences one by one, with little memory."""

_Index = tuple[Any, Any]
_Predictions = Iterator[tuple[_Index, Tensor]]
Floats = NDArray[np.float32]
_WINDOW = 1024  # bases read at once by default: half of it is enough context for a page


def token_log_probs(
    model: nn.Module | Loaded, input_ids: Tensor, *, masking: Masking | None = None,
    batch_tokens: int = 1 << 16, record: Callable[[int], str] = lambda row: f"row {row}",
) -> Tensor:  # fmt: skip
    """Give the natural log-probability of every base among A, C, G, T: (batch, length), float32 up.

    NaN where there is no value: at N and special tokens, and at the first token of a row in a
    causal model, which has nothing before it; sum with :func:`torch.nansum`. The model is run in
    evaluation mode and without gradients; its mode is restored. `input_ids` (batch, length) have no
    padding on the left and lie on its device; `masking` is by default ``"causal"`` for causal
    models and ``"single"`` for masked ones, which reads about `batch_tokens` positions at a time;
    `record` names a row for messages.

    InputError when the model has not one token for each base or cannot follow the rule, ids are not
    (batch, length), or longer than the model takes; NotFiniteError for NaN or infinity.
    """
    name = model.name if isinstance(model, Loaded) else type(model).__name__
    module: nn.Module = model.model if isinstance(model, Loaded) else model
    causal = language_model_kind(module) == "causal"
    masking = masking or ("causal" if causal else "single")
    if (masking == "causal") != causal:
        kind, rules = ("causal", "causal") if causal else ("masked", "single, seventh or together")
        raise InputError(f"{name} is {kind}, so masking is {rules}; found {masking!r}")
    if input_ids.dim() != 2:
        raise InputError(f"expected ids (batch, length), found {tuple(input_ids.shape)}")
    wanted_BL = (input_ids >= _FIRST) & (input_ids <= _LAST)
    if causal:
        wanted_BL[:, :1] = False
    with inference_mode(module):
        found_BL = predict_tokens(
            module, input_ids, masking, look_up, wanted_BL=wanted_BL, batch_tokens=batch_tokens
        )
        require_finite(found_BL, name, "log-probabilities", record, wanted_BL)
    # Not an inference tensor: what is returned may be used where gradients are taken.
    return torch.where(wanted_BL, found_BL.clone(), torch.nan)


def predict_tokens(
    model: nn.Module, ids_BL: Tensor, masking: Masking, read: Callable[[Tensor, Tensor], Tensor], *,
    columns: slice | None = None, wanted_BL: Tensor | None = None, batch_tokens: int = 1 << 16,
) -> Tensor:  # fmt: skip
    """Predict tokens under a masking rule; the core of all verbs, for models in inference mode.

    `read` turns logits (..., V) and the ids (...) that they predict into values (..., K) or (...).
    Gives (batch, length, K) or (batch, length): 0 elsewhere, and in the first column under
    ``"causal"``. With `columns` only these are predicted, and a causal model is not given what
    stands after the second last of them. `wanted_BL` are the positions to hide, for ``"single"``
    and ``"together"``.
    """
    if masking == "causal":
        found = _next_tokens(model, ids_BL, columns)
    elif masking == "seventh":
        found = _every_seventh(model, ids_BL, columns or slice(0, ids_BL.shape[1]))
    else:
        assert wanted_BL is not None
        hidden = wanted_BL.nonzero()
        rows = max(1, batch_tokens // max(1, ids_BL.shape[1]))
        apart = masking == "single"
        found = _hide(model, ids_BL, hidden.split(rows) if apart else (hidden,), apart)
    out: Tensor | None = None
    for at, logits in found:
        values = read(logits, ids_BL[at])
        if out is None:
            out = values.new_zeros(*ids_BL.shape, *values.shape[ids_BL[at].dim() :])
        out[at] = values
    if out is None:  # nothing to predict: the shape is that of no answers
        values = read(torch.zeros(0, _LAST + 1, device=ids_BL.device), ids_BL.new_zeros(0))
        out = values.new_zeros(*ids_BL.shape, *values.shape[1:])
    return out


def look_up(logits: Tensor, ids: Tensor, over: Literal["bases", "all"] = "bases") -> Tensor:
    """Give the log-probability of each token, in float32 at least; over bases only bases count."""
    if over == "bases":
        scores, ids = base_logits(logits), (ids - _FIRST).clamp(0, _LAST - _FIRST)
    else:
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return scores.gather(-1, ids[..., None])[..., 0] - scores.logsumexp(-1)


def base_logits(logits: Tensor) -> Tensor:
    """Give the logits of A, C, G, T in float32 at least, (..., 4)."""
    return logits[..., _FIRST : _LAST + 1].to(torch.promote_types(logits.dtype, torch.float32))


def _logits(model: nn.Module, ids_BL: Tensor) -> Tensor:
    """Run the model; refuse logits that do not answer for each position."""
    logits: Tensor = model(input_ids=ids_BL).logits
    if logits.shape[:2] != ids_BL.shape or logits.shape[-1] <= _LAST:
        raise InputError(
            f"the model gave logits of shape {tuple(logits.shape)} for ids of shape "
            f"{tuple(ids_BL.shape)}; expected one row of more than {_LAST} columns for each "
            "position (one token for each base)"
        )
    return logits


def _next_tokens(model: nn.Module, ids_BL: Tensor, columns: slice | None) -> _Predictions:
    """Predict every token but the first from those before it, in blocks of rows and positions."""
    batch, length = ids_BL.shape
    if length < 2:
        return
    base: Any = getattr(model, "base_model", model)
    head: Any = getattr(model, "lm_head", None)
    backbone: Any = getattr(base, "backbone", None)
    # A model that shares whole sequences with other processes does so when it is called itself.
    shared = getattr(model, "takes_whole_sequences", False)
    split = base is not model and isinstance(head, nn.Linear) and not shared
    config: Any = getattr(model, "config", None)
    limit: int = config.max_length if isinstance(backbone, Backbone) else 0
    if columns is not None:
        low, stop = columns.start - 1, columns.stop - 1
        logits = _logits(model, ids_BL[:, :stop])
        yield (slice(None), columns), logits[:, low:]
    elif split and _STREAMED <= length <= limit and can_stream(backbone):
        for row in range(batch):
            for at, hidden in stream_backbone(backbone, ids_BL[row : row + 1]):
                count = min(at.stop, length - 1) - at.start
                if count > 0:
                    part = slice(at.start + 1, at.start + 1 + count)
                    yield (slice(row, row + 1), part), head(hidden[:, :count])
    elif split:
        hidden: Tensor = base(input_ids=ids_BL, return_dict=True).last_hidden_state
        rows = max(1, _HEAD_POSITIONS // length)
        for begin in range(0, batch, rows):
            b = slice(begin, begin + rows)
            for start in range(0, length - 1, _HEAD_POSITIONS):
                stop = min(start + _HEAD_POSITIONS, length - 1)
                yield (b, slice(start + 1, stop + 1)), head(hidden[b, start:stop])
    else:
        yield (slice(None), slice(1, None)), _logits(model, ids_BL)[:, :-1]


def _hide(model: nn.Module, ids_BL: Tensor, parts: tuple[Tensor, ...], apart: bool) -> _Predictions:
    """Hide each position in a row of its own (`apart`), or all; `parts` are (row, column) pairs."""
    for part in parts:
        row, column = part.unbind(1)
        place = torch.arange(len(row), device=row.device) if apart else row
        hidden = ids_BL[row] if apart else ids_BL.clone()
        hidden[place, column] = MASK_ID
        yield (row, column), _logits(model, hidden)[place, column]


def _every_seventh(model: nn.Module, ids_BL: Tensor, columns: slice) -> _Predictions:
    for turn in range(min(_PASSES, columns.stop - columns.start)):
        part = slice(columns.start + turn, columns.stop, _PASSES)
        hidden = ids_BL.clone()
        hidden[:, part] = MASK_ID
        yield (slice(None), part), _logits(model, hidden)[:, part]


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


def _window(model: Loaded, window: int | None) -> int:
    if window is None:
        return min(_WINDOW, model.longest or _WINDOW)
    if window < 2:
        raise InputError(f"a window needs 2 bases or more, found {window}")
    model.require_length(window, "a window")
    return window

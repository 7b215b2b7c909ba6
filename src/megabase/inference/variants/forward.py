"""What methods say of variants, by plain passes over both windows, or over only what differs.

Causal Hyena and Mamba models read REF once and ALT from the variant on
(:mod:`megabase.inference.variants.prefix`); any other model reads whole windows. The numbers are
computed batch by batch: no outputs are kept.

Shape suffixes: A variants, B bases, K distinct windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.genome.alphabet import T
from megabase.inference.prediction import Predictor
from megabase.inference.variants.hyena_prefix import HyenaPrefix
from megabase.inference.variants.methods import AlleleWindows, Method, Need, Outputs, Pairs
from megabase.inference.variants.prefix import MambaPrefix, score_letters
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode


def compare_alleles(
    model: Loaded, windows: Sequence[AlleleWindows], methods: Sequence[Method], batch_tokens: int
) -> NDArray[np.float64]:
    """Run a language model on both alleles of variants; give values, (windows, methods).

    NaN where a method has no value. InputError when hidden states are needed of a model that gives
    none, NotFiniteError when what it gives is not finite.
    """
    values = np.full((len(windows), len(methods)), np.nan)
    needs: set[Need] = {need for method in methods for need in method.needs}
    with inference_mode(model.model):
        for numbers, pairs in _passes(model, windows, needs, batch_tokens):
            found = torch.stack([method.value(pairs) for method in methods], 1).cpu().numpy()
            known = np.ones_like(found, dtype=bool)
            for column, method in enumerate(methods):
                if method.lacks == "NO_BASE_BEFORE":
                    known[:, column] = [one.offset > 0 for one in pairs.windows]
                elif method.lacks == "LENGTHS_DIFFER":
                    known[:, column] = [one.ref_bases == one.alt_bases for one in pairs.windows]
            own = pairs.windows
            require_finite(found, model.name, "scores", lambda row, own=own: own[row].name, known)
            values[numbers] = found
    return values


def compare_tracks(
    ready: Predictor, windows: Sequence[AlleleWindows], methods: Sequence[Method]
) -> NDArray[np.float64]:
    """Compare the sums of predicted tracks over both windows: (windows, methods * tracks).

    Both begin at one base of the genome and are read up to one base of it: REF loses as many of its
    last bases as an insertion adds, ALT as many as a deletion takes. Bins are counted from the
    start of a window.
    """
    names: dict[bytes, str] = {}  # equal windows are read once
    pairs: list[list[bytes]] = []
    for one in windows:
        longer = one.alt_bases - one.ref_bases
        alleles = (one.ref[: one.stop - max(0, longer)], one.alt[: one.stop - max(0, -longer)])
        pairs.append([codes.tobytes() for codes in alleles])
        for key in pairs[-1]:
            names.setdefault(key, one.name)
    if not windows:
        return np.zeros((0, len(methods) * len(ready.classes)))
    means = ready.sequences([np.frombuffer(key, np.uint8) for key in names], [*names.values()])
    sums = {key: len(key) * mean for key, mean in zip(names, means, strict=True)}
    ref, alt = torch.from_numpy(np.array([[sums[key] for key in pair] for pair in pairs])).unbind(1)
    return torch.cat([method.value(ref, alt) for method in methods], 1).numpy()


def _passes(
    model: Loaded, windows: Sequence[AlleleWindows], needs: set[Need], batch_tokens: int
) -> Iterator[tuple[list[int], Pairs]]:
    """Give the outputs of all windows, some at a time with their numbers."""
    rest = list(range(len(windows)))
    for kind in (HyenaPrefix, MambaPrefix):
        if rest and kind.fits(model.model):
            prefix = kind(model, needs, batch_tokens, len(windows[0].ref))
            taken = [number for number in rest if prefix.takes(windows[number])]
            yield from prefix.read(windows, taken)
            rest = sorted({*rest} - {*taken})
    yield from _plain(model, windows, rest, needs, batch_tokens)


def _plain(
    model: Loaded, windows: Sequence[AlleleWindows], numbers: Sequence[int], needs: set[Need],
    batch_tokens: int,
) -> Iterator[tuple[list[int], Pairs]]:  # fmt: skip
    """Read whole windows, equal ones of a batch once; neighbors share theirs."""
    order = sorted(numbers, key=lambda n: (windows[n].stop, windows[n].ref.tobytes()))
    low = 0
    while low < len(order):
        stop, high = windows[order[low]].stop, low
        rows: dict[bytes, int] = {}
        names: list[str] = []
        while high < len(order) and windows[order[high]].stop == stop:
            one = windows[order[high]]
            if high > low and (len(rows) + 2) * stop > batch_tokens:
                break
            for codes in (one.ref, one.alt):
                if rows.setdefault(codes[:stop].tobytes(), len(names)) == len(names):
                    names.append(one.name)
            high += 1
        part = [windows[number] for number in order[low:high]]
        codes_KB = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, stop)
        given = _read(model, codes_KB, names, needs, batch_tokens)
        both = ([rows[getattr(one, x)[:stop].tobytes()] for one in part] for x in ("ref", "alt"))
        ref, alt = (Outputs(*(None if x is None else x[own] for x in given)) for own in both)
        masked = _hidden(model, part) if "masked" in needs else None
        yield order[low:high], Pairs(part, [0] * len(part), ref, alt, masked)
        low = high


def _read(
    model: Loaded, codes_KB: NDArray[np.uint8], names: list[str], needs: set[Need],
    batch_tokens: int,
) -> Outputs:  # fmt: skip
    codes = torch.from_numpy(codes_KB.copy()).to(model.device)
    ids, found = codes_to_ids(codes), Outputs()
    if "log_probs" in needs:
        logits_KB4 = predict_tokens(
            model.model, ids, "single" if model.masked else "causal",
            lambda logits, _: base_logits(logits),
            wanted_BL=codes <= T, batch_tokens=batch_tokens,
        )  # fmt: skip
        scores, known = score_letters(logits_KB4, codes), codes <= T
        if not model.masked:
            scores[:, :1], known[:, :1] = torch.nan, False
        require_finite(scores, model.name, "log-probabilities", names.__getitem__, known)
        found = Outputs(scores, logits_KB4)
    if "states" in needs:
        output: Any = model.model(input_ids=ids, output_hidden_states=True)
        if output.hidden_states is None:
            raise InputError(f"{model.name} gives no hidden states to compare")
        found = found._replace(states=output.hidden_states[-1].float())
    return found


def _hidden(model: Loaded, windows: Sequence[AlleleWindows]) -> Tensor:
    """Give the log-probabilities of both alleles, all bases hidden, (A, 2); NaN unless as long."""
    found = torch.full((len(windows), 2), torch.nan, dtype=torch.float64)
    same = [row for row, one in enumerate(windows) if one.ref_bases == one.alt_bases]
    if not same:
        return found
    codes = torch.from_numpy(np.stack([windows[row].ref[: windows[row].stop] for row in same]))
    hidden = torch.zeros(codes.shape, dtype=torch.bool)
    for at, row in zip(hidden, same, strict=True):
        at[windows[row].offset : windows[row].offset + windows[row].ref_bases] = True
    expected = predict_tokens(
        model.model, codes_to_ids(codes.to(model.device)), "together",
        lambda logits, _: base_logits(logits).log_softmax(-1), wanted_BL=hidden.to(model.device),
    ).cpu().double()  # fmt: skip
    for at, row in enumerate(same):
        one = windows[row]
        site = np.arange(one.offset, one.offset + one.ref_bases)
        for column, allele in enumerate((one.ref, one.alt)):
            found[row, column] = expected[at, site, allele[site].astype(np.int64)].sum()
    return found

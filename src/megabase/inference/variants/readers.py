"""What a model says about windows: plain passes for any model, and the choice of the fast way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megabase.data.augment import codes_to_ids
from megabase.data.vocabulary import MASK_ID
from megabase.errors import InputError
from megabase.evaluate.batching import run_batched
from megabase.evaluate.log_probs import token_log_probs
from megabase.genome.alphabet import BASE_TOKEN_IDS
from megabase.inference.variants.alleles import Placed
from megabase.inference.variants.methods import Need, Reading
from megabase.inference.variants.shared_prefix import SharedPrefixReader
from megabase.models.loading import Loaded
from megabase.models.scored_model import inference_mode

__all__ = ["PlainReader", "Reader", "choose_reader"]

_Codes = NDArray[np.uint8]


class Reader(Protocol):
    """Reads both alleles of variants."""

    def read(self, places: Sequence[Placed], needs: set[Need]) -> list[tuple[Reading, Reading]]:
        """Give what the model says about REF and ALT of each variant."""
        ...


def choose_reader(model: Loaded, batch_tokens: int) -> Reader:
    """Give the fast reader where the model allows it, else plain passes."""
    plain = PlainReader(model, batch_tokens)
    if SharedPrefixReader.supports(model.model):
        return SharedPrefixReader(model.model, plain, batch_tokens)
    return plain


class PlainReader:
    """Plain passes over whole windows; equal windows are read once.

    Parameters
    ----------
    model
        Any language model.
    batch_tokens
        Most positions of a batch.
    """

    def __init__(self, model: Loaded, batch_tokens: int = 1 << 16) -> None:
        self.model = model
        self.batch_tokens = batch_tokens

    def read(self, places: Sequence[Placed], needs: set[Need]) -> list[tuple[Reading, Reading]]:
        """Read whole windows."""
        numbers: dict[bytes, int] = {}
        windows: list[_Codes] = []
        names: list[str] = []
        pairs: list[tuple[int, int]] = []
        for one in places:
            pair = []
            for codes in (one.ref, one.alt):
                number = numbers.setdefault(codes.tobytes(), len(windows))
                if number == len(windows):
                    windows.append(codes)
                    names.append(one.name)
                pair.append(number)
            pairs.append((pair[0], pair[1]))
        log_probs: list[Any] = [None] * len(windows)
        pooled: list[Any] = [None] * len(windows)
        if "log_probs" in needs:

            def log_probs_of(codes: _Codes, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
                return self._log_probs(codes, [names[row] for row in rows.tolist()])

            log_probs = run_batched(windows, log_probs_of, batch_tokens=self.batch_tokens)
        if "pooled" in needs:
            pooled = run_batched(windows, self._pooled, batch_tokens=self.batch_tokens)
        masked: list[tuple[float | None, float | None]] = [(None, None)] * len(places)
        if "masked" in needs:
            same = [i for i, one in enumerate(places) if one.ref_bases == one.alt_bases]
            items = [places[i].ref for i in same]

            def run(codes: _Codes, rows: NDArray[np.int64]) -> list[tuple[float, float]]:
                return self._masked(codes, [places[same[row]] for row in rows.tolist()])

            found = run_batched(items, run, batch_tokens=self.batch_tokens)
            for i, values in zip(same, found, strict=True):
                masked[i] = values
        return [
            (
                Reading(log_probs[r], pooled[r], hidden[0]),
                Reading(log_probs[a], pooled[a], hidden[1]),
            )
            for (r, a), hidden in zip(pairs, masked, strict=True)
        ]

    def _ids(self, codes: _Codes) -> torch.Tensor:
        return codes_to_ids(torch.from_numpy(codes).to(self.model.device))

    def _log_probs(self, codes: _Codes, names: list[str]) -> list[NDArray[np.float32]]:
        found = token_log_probs(
            self.model.model, self._ids(codes), first="nan", batch_tokens=self.batch_tokens,
            name=self.model.name, record=names.__getitem__,
        )  # fmt: skip
        return list(found.float().cpu().numpy())

    def _pooled(self, codes: _Codes, _: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        with inference_mode(self.model.model):
            output: Any = self.model.model(input_ids=self._ids(codes), output_hidden_states=True)
            if output.hidden_states is None:
                raise InputError(f"{self.model.name} gives no hidden states to compare")
            return list(output.hidden_states[-1].float().mean(1).cpu().numpy())

    def _masked(self, codes: _Codes, places: list[Placed]) -> list[tuple[float, float]]:
        ids = self._ids(codes)
        for row, one in zip(ids, places, strict=True):
            row[one.offset : one.offset + one.ref_bases] = MASK_ID
        with inference_mode(self.model.model):
            output: Any = self.model.model(input_ids=ids)
            own = output.logits[..., BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1]
            log_probs = own.float().log_softmax(-1).cpu().numpy().astype(np.float64)
        values = []
        for row, one in zip(log_probs, places, strict=True):
            part = slice(one.offset, one.offset + one.ref_bases)
            site = np.arange(one.ref_bases)
            sums = [float(row[part][site, allele[part]].sum()) for allele in (one.ref, one.alt)]
            values.append((sums[0], sums[1]))
        return values

"""Causal Mamba models: ALT continues from the states that REF has left at the variant.

Shape suffixes as in :mod:`megabase.inference.variants.prefix.passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megabase.inference.variants.methods import Need
from megabase.inference.variants.prefix.passes import Codes, Part, Prefix, is_plain
from megabase.layers.mamba import MambaState
from megabase.models.loading import Loaded
from megabase.models.mamba import MambaForCausalLM

_STEP = 16
"""REF is read in pieces between the places where ALT begins: fewer calls against some bases read
twice."""


class MambaPrefix(Prefix):
    """Reads models that :meth:`fits`."""

    least = step = _STEP

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int, _: int) -> None:
        super().__init__(model, needs, batch_tokens)
        self._kept: dict[tuple[int, int], tuple[int, list[MambaState]]] = {}

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model is a causal Mamba with a linear head."""
        return isinstance(model, MambaForCausalLM) and is_plain(model.lm_head)

    def read_ref(self, codes_RW: Codes, positions: int, parts: Sequence[Part]) -> Tensor:
        """Read REF; see :meth:`Prefix.read_ref`."""
        self._kept = {}
        wanted: dict[int, set[int]] = {positions: set()}  # windows whose states are kept, by place
        for part in parts:
            for row, begin in zip(part.rows, part.begins, strict=True):
                wanted.setdefault(begin, set()).add(row)
        ids_RW, low, cache, found = self.ids(codes_RW), 0, None, []
        for place in sorted(wanted):
            output: Any = self._run(ids_RW[:, low:place], cache)
            low, cache = place, output.cache
            found.append(output.last_hidden_state)
            rows = sorted(wanted[place])
            kept = [MambaState(one.conv[rows], one.ssm[rows]) for one in cache if rows]
            self._kept |= {(row, place): (i, kept) for i, row in enumerate(rows)}
        return torch.cat(found, dim=1)[:, self.start :]

    def read_alt(self, part: Part) -> Tensor:
        """Read ALT; see :meth:`Prefix.read_alt`."""
        places = list(zip(part.rows, part.begins, strict=True))
        own = [self._kept[place] for place in places]
        cache = tuple(
            MambaState(
                torch.stack([kept[layer].conv[i] for i, kept in own]),
                torch.stack([kept[layer].ssm[i] for i, kept in own]),
            )
            for layer in range(len(own[0][1]))
        )
        rows = zip(part.windows, part.begins, strict=True)
        codes = np.stack([one.alt[begin : begin + part.length] for one, begin in rows])
        return self._run(self.ids(codes), cache).last_hidden_state

    def _run(self, ids: Tensor, cache: Any) -> Any:
        return self.model.base_model(input_ids=ids, cache=cache, use_cache=True, return_dict=True)

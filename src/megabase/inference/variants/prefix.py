"""Reading REF once and ALT from the variant on, in batches, under causal models; Mamba ones here.

Shape suffixes: R reference windows, A alternative alleles, W bases of a window, B bases from one on
that is the first that differs or stands before it, P positions, S positions from there on, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.vocabulary import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS, T
from megabase.inference.variants.methods import AlleleWindows, Need, Outputs, Pairs
from megabase.layers.linear import bare
from megabase.layers.mamba import MambaState
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded
from megabase.models.mamba import MambaForCausalLM

_CPU_TOKENS = 1 << 13
"""Positions of a batch on a CPU, where activations that stay in the cache beat fewer calls."""
_WASTE = 1 / 16
"""Largest share of positions read in vain to read variants together: what separate calls cost."""
_STEP = 16
"""Mamba reads REF in pieces between the places where ALT begins: fewer calls against some bases
read twice."""

Codes = NDArray[np.uint8]


class Part(NamedTuple):
    """Variants whose ALT is read together."""

    numbers: list[int]
    windows: list[AlleleWindows]
    rows: list[int]
    """The REF window of each."""
    begins: list[int]
    """Where reading begins, at the first base that differs or before it."""
    length: int
    """Positions that are read of each."""
    changed: int
    """What :meth:`Prefix.changed` gives."""

    def alt(self, count: int, before: int = 0) -> Codes:
        """Give the codes of ALT from `before` bases before its begin on, (A, before + count)."""
        both = zip(self.windows, self.begins, strict=True)
        return np.stack([one.alt[begin - before : begin + count] for one, begin in both])


class Prefix:
    """Passes over REF whole and over ALT from the variant on; kinds of models say how."""

    least = 1
    """Bases that have to stand before a variant."""
    step = 1
    """ALT begins at a multiple of it, or nearer to the end."""

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int) -> None:
        self.name, self.model, self.needs = model.name, model.model, needs
        self.device = model.device
        # The last base predicts none: only its state is of interest.
        self.unread = 0 if "states" in needs else 1
        on_cpu = self.device.type == "cpu"
        self.tokens = min(batch_tokens, _CPU_TOKENS) if on_cpu else batch_tokens
        self.first = self.start = 0

    def read_ref(self, codes_RW: Codes, positions: int, parts: Sequence[Part]) -> Tensor:
        """Read REF windows up to `positions`; give what :meth:`letters` takes from `start` on."""
        raise NotImplementedError

    def read_alt(self, part: Part) -> Tensor:
        """Read ALT; give what :meth:`letters` takes, (A, S, D)."""
        raise NotImplementedError

    def letters(
        self, x_ASD: Tensor, codes_AB: Codes, before_A4: Tensor | None, start: int = 0
    ) -> Outputs:
        """Score the bases that follow the positions from `start` on.

        The first of them is predicted by `before_A4`, if that is given. States are of `x_ASD`.
        """
        weight_4D = self.model.lm_head.weight[BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1]
        logits_AB4 = x_ASD[:, start:] @ weight_4D.t()
        if before_A4 is not None:
            logits_AB4 = torch.cat((before_A4[:, None], logits_AB4), dim=1)
        codes = torch.from_numpy(np.ascontiguousarray(codes_AB)).to(self.device)
        logits_AB4 = logits_AB4[:, : codes.shape[1]]
        states = x_ASD if "states" in self.needs else None
        return Outputs(score_letters(logits_AB4, codes), logits_AB4, states)

    @staticmethod
    def cut(x: Tensor, rows: list[int], lows: list[int], length: int, axis: int = 1) -> Tensor:
        """Give `length` positions of rows, each from its own one on; of a single row a view."""
        if len(rows) == 1:
            return x[rows[0] : rows[0] + 1].narrow(axis, lows[0], length)
        both = zip(rows, lows, strict=True)
        return torch.stack([x[row].narrow(axis - 1, low, length) for row, low in both])

    @staticmethod
    def is_plain(head: Any) -> bool:
        """Whether a head is no more than its weights."""
        return isinstance(head, nn.Linear) and head.bias is None and bare(head)

    def ids(self, codes: Codes) -> Tensor:
        """Token ids on the device of the model."""
        return codes_to_ids(torch.from_numpy(np.ascontiguousarray(codes)).to(self.device))

    def changed(self, one: AlleleWindows, positions: int) -> int:
        """Give a number that variants which are read together share."""
        return 0

    def takes(self, one: AlleleWindows) -> bool:
        """Whether there is enough around a variant."""
        return self.least <= one.offset < one.stop - self.unread

    def read(
        self, windows: Sequence[AlleleWindows], numbers: Sequence[int]
    ) -> Iterator[tuple[list[int], Pairs]]:
        """Give the outputs of variants that it takes, some at a time with their numbers."""
        members: dict[bytes, list[int]] = {}  # variants of each REF window
        for number in numbers:
            members.setdefault(windows[number].ref.tobytes(), []).append(number)
        # Windows whose ends and first variants are at like positions waste the least together.
        order = sorted(
            (-max(windows[n].stop for n in own), min(windows[n].offset for n in own), own)
            for own in members.values()
        )
        low = 0
        while low < len(order):
            rows = max(1, self.tokens // -order[low][0])
            yield from self._read(windows, [own for *_, own in order[low : low + rows]])
            low += rows

    def _read(
        self, windows: Sequence[AlleleWindows], members: list[list[int]]
    ) -> Iterator[tuple[list[int], Pairs]]:
        """Read REF windows, given the numbers of the variants of each, and every ALT."""
        codes_RW = np.stack([windows[numbers[0]].ref for numbers in members])
        end = max(windows[n].stop for numbers in members for n in numbers)
        positions = end - self.unread
        parts = list(self._parts(windows, members, positions))
        first = min(begin for part in parts for begin in part.begins)
        whole = "whole" in self.needs
        self.first, self.start = first, 0 if whole else first - 1
        x_RPD = self.read_ref(codes_RW, positions, parts)
        ref = self.letters(x_RPD, codes_RW[:, first:end], None, first - 1 - self.start)
        self._check(ref, codes_RW[:, first:end], [windows[numbers[0]] for numbers in members])
        for part in parts:
            begins, length, bases = part.begins, part.length, part.length + self.unread
            ats = [begin - first for begin in begins]
            codes_AB = part.alt(bases)
            before_A4 = self.cut(ref.logits, part.rows, ats, 1)[:, 0]
            alt = self.letters(self.read_alt(part), codes_AB, before_A4)
            self._check(alt, codes_AB, part.windows)
            own, shared = Outputs(self.cut(ref.log_probs, part.rows, ats, bases)), None
            if "logits" in self.needs:
                own = own._replace(logits=self.cut(ref.logits, part.rows, ats, bases))
            if ref.states is not None:
                places = [begin - self.start for begin in begins]
                own = own._replace(states=self.cut(ref.states, part.rows, places, length))
            if ref.states is not None and whole:
                heads = [ref.states[row, :b] for row, b in zip(part.rows, begins, strict=True)]
                shared = (
                    torch.stack([x.sum(0) for x in heads]),
                    torch.stack([x.square().sum() for x in heads]),
                )
            yield part.numbers, Pairs(part.windows, begins, own, alt, shared=shared)

    def _parts(
        self, windows: Sequence[AlleleWindows], members: list[list[int]], positions: int
    ) -> Iterator[Part]:
        """Put variants together whose ALT is read together."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for row, numbers in enumerate(members):
            for number in numbers:
                one = windows[number]
                read = one.stop - self.unread
                length = read - one.offset // self.step * self.step
                changed = self.changed(one, read)
                found.setdefault(changed, []).append((length, number, row))
        for changed, of_kind in found.items():
            of_kind.sort(reverse=True)
            low = 0
            while low < len(of_kind):
                length = of_kind[low][0]
                high, most = low + 1, low + max(1, self.tokens // length)
                least = length - int(length * _WASTE)
                while high < min(most, len(of_kind)) and of_kind[high][0] >= least:
                    high += 1
                numbers = [number for _, number, _ in of_kind[low:high]]
                own = [windows[number] for number in numbers]
                begins = [min(w.offset // self.step * self.step, positions - length) for w in own]
                rows = [row for *_, row in of_kind[low:high]]
                yield Part(numbers, own, rows, begins, length, changed)
                low = high

    def _check(self, found: Outputs, codes: Codes, rows: list[AlleleWindows]) -> None:
        known = torch.from_numpy(codes <= T).to(self.device)
        what = self.name, "log-probabilities"
        require_finite(found.log_probs, *what, lambda row: rows[row].name, known)


def score_letters(logits_AB4: Tensor, codes_AB: Tensor) -> Tensor:
    """Give natural log-probabilities of bases among A, C, G, T; NaN where there is another code."""
    known, base = codes_AB <= T, codes_AB.long()
    logits = logits_AB4.to(torch.promote_types(logits_AB4.dtype, torch.float32))
    own = logits.gather(-1, torch.where(known, base, 0)[..., None])[..., 0]
    return torch.where(known, own - logits.logsumexp(-1), torch.nan)


class MambaPrefix(Prefix):
    """Causal Mamba models: ALT continues from the states that REF has left at the variant."""

    least = step = _STEP

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int, _: int) -> None:
        super().__init__(model, needs, batch_tokens)
        self._kept: dict[tuple[int, int], tuple[int, list[MambaState]]] = {}

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model is a causal Mamba with a linear head."""
        return isinstance(model, MambaForCausalLM) and Prefix.is_plain(model.lm_head)

    def read_ref(self, codes_RW: Codes, positions: int, parts: Sequence[Part]) -> Tensor:
        """Keep the states of the windows whose ALT begins at a place."""
        self._kept = {}
        wanted: dict[int, set[int]] = {positions: set()}  # windows by place
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
        """Read on from the states of REF."""
        own = [self._kept[place] for place in zip(part.rows, part.begins, strict=True)]
        cache = tuple(
            MambaState(
                torch.stack([kept[layer].conv[i] for i, kept in own]),
                torch.stack([kept[layer].ssm[i] for i, kept in own]),
            )
            for layer in range(len(own[0][1]))
        )
        return self._run(self.ids(part.alt(part.length)), cache).last_hidden_state

    def _run(self, ids: Tensor, cache: Any) -> Any:
        return self.model.base_model(input_ids=ids, cache=cache, use_cache=True, return_dict=True)

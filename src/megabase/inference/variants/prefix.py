"""Reading REF once and ALT from the variant on, in batches, under causal models.

Causal Hyena models of order 2: REF is read once, ALT is computed as what differs from it. With u
the gated input of a long convolution, y = k conv u is linear, so y_alt = y_ref + k conv (u_alt -
u_ref): a transform over the part after the variant only. In the first layer u and the gate are
looked up; a substitution changes u there only at its own position and at the taps of the short
convolution, which needs no transform either. What no score reads of the last layer is left out.

What the first layer makes of DNA before its long convolution depends on a k-mer of as many bases as
the short convolution has taps: u = x1 * v and the gate x0 are looked up in a table of k-mers.
Behind it, everything but the long convolution is done by C++ kernels where they are installed.

Shape suffixes: R reference windows, A alternative alleles, W bases of a window, B bases from one on
that is the first that differs or stands before it, P positions, S positions from there on, D width;
F positions from the first of ALT on, L those of ALT and before them those that the short
convolution sees. Of single layers: B rows, L positions, D width, C projected channels, F
frequencies, K k-mers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.vocabulary import codes_to_ids
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, T
from megabase.inference.variants.methods import AlleleWindows, Need, Outputs, Pairs
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, from_channel_major, untouched
from megabase.layers.mamba import MambaState
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode
from megabase.models.mamba import MambaForCausalLM
from megabase.ops import backend
from megabase.ops.hyena_mixer.packed import PackedLayer, letter_log_probs
from megabase.ops.long_conv import fft_length
from megabase.ops.products import matmul
from megabase.ops.short_conv import short_conv

_CPU_TOKENS = 1 << 13
"""Positions of a batch on a CPU, where activations that stay in the cache beat fewer calls."""
_WASTE = 1 / 16
"""Largest share of positions read in vain to read variants together: what separate calls cost."""
_STEP = 16
"""Mamba reads REF in pieces between the places where ALT begins: fewer calls against some bases
read twice."""

_Codes = NDArray[np.uint8]
_SPARSE = 8  # changed samples up to which adding them tap by tap was faster than a transform
_ROWS = 1 << 10  # positions whose inner activations exist at a time: they stay in the cache
_LONG = 128
"""Positions from which a row is multiplied alone; shorter rows go together, for fewer calls."""
_LETTERS = 6
"""Of a k-mer: A, C, G, T, N, and nothing, before the start; so it is not two bits a base."""
_MOST_KMERS = _LETTERS**4  # largest table; more k-mers would not stay in the cache of a core
_STEPS = 8
"""Lengths of transforms in a window: variants at many positions share the spectra of these."""
_SHORT, _FINE = 256, 16
"""Up to this length lengths are multiples of the second: their spectra take little memory."""


class _Part(NamedTuple):
    """Variants whose ALT is read together."""

    numbers: list[int]
    windows: list[AlleleWindows]
    rows: list[int]  # the REF window of each
    begins: list[int]  # where reading begins, at the first base that differs or before it
    length: int  # positions that are read of each
    changed: int  # what :meth:`_Prefix.changed` gives

    def alt(self, count: int, before: int = 0) -> _Codes:
        """Give the codes of ALT from `before` bases before its begin on, (A, before + count)."""
        both = zip(self.windows, self.begins, strict=True)
        return np.stack([one.alt[begin - before : begin + count] for one, begin in both])


class _Prefix:
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

    def read_ref(self, codes_RW: _Codes, positions: int, parts: Sequence[_Part]) -> Tensor:
        """Read REF windows up to `positions`; give what :meth:`letters` takes from `start` on."""
        raise NotImplementedError

    def read_alt(self, part: _Part) -> Tensor:
        """Read ALT; give what :meth:`letters` takes, (A, S, D)."""
        raise NotImplementedError

    def letters(
        self, x_ASD: Tensor, codes_AB: _Codes, before_A4: Tensor | None, start: int = 0
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

    def ids(self, codes: _Codes) -> Tensor:
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
    ) -> Iterator[_Part]:
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
                yield _Part(numbers, own, rows, begins, length, changed)
                low = high

    def _check(self, found: Outputs, codes: _Codes, rows: list[AlleleWindows]) -> None:
        known = torch.from_numpy(codes <= T).to(self.device)
        what = self.name, "log-probabilities"
        require_finite(found.log_probs, *what, lambda row: rows[row].name, known)


def score_letters(logits_AB4: Tensor, codes_AB: Tensor) -> Tensor:
    """Give natural log-probabilities of bases among A, C, G, T; NaN where there is another code."""
    known, base = codes_AB <= T, codes_AB.long()
    logits = logits_AB4.to(torch.promote_types(logits_AB4.dtype, torch.float32))
    own = logits.gather(-1, torch.where(known, base, 0)[..., None])[..., 0]
    return torch.where(known, own - logits.logsumexp(-1), torch.nan)


class MambaPrefix(_Prefix):
    """Causal Mamba models: ALT continues from the states that REF has left at the variant."""

    least = step = _STEP

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int, _: int) -> None:
        super().__init__(model, needs, batch_tokens)
        self._kept: dict[tuple[int, int], tuple[int, list[MambaState]]] = {}

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model is a causal Mamba with a linear head."""
        return isinstance(model, MambaForCausalLM) and _Prefix.is_plain(model.lm_head)

    def read_ref(self, codes_RW: _Codes, positions: int, parts: Sequence[_Part]) -> Tensor:
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

    def read_alt(self, part: _Part) -> Tensor:
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


class _Kept(NamedTuple):
    """What ALT needs of REF in one layer."""

    x: Tensor | None  # the running sum before it, (R, P, D); None where u and gate are looked up
    u: Tensor  # input of the long convolution from the first position of ALT on, (R, D, F)
    y: Tensor  # its output there, (R, D, F)
    gate: Tensor | None  # the output gate there, (R, F, D), where ALT does not compute it


class HyenaPrefix(_Prefix):
    """Reads models that :meth:`fits`."""

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int, window: int) -> None:
        super().__init__(model, needs, batch_tokens)
        self.backbone: Backbone = self.model.base_model.backbone
        self.layers = _Layers(list(self.backbone.layers), window)  # type: ignore[arg-type]
        self.least = self.layers.reach
        self.layers.pack()
        if self.layers.has_table:
            letters = self.ids(np.arange(T + 2, dtype=np.uint8)[None])
            with inference_mode(self.model):
                self.layers.make_table(self.backbone.embeddings(letters)[0])
        self._kept: list[_Kept] = []

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model is a stack of causal Hyena operators of order 2 with a linear head."""
        base: Any = getattr(model, "base_model", None)
        backbone = getattr(base, "backbone", None)
        head: Any = getattr(model, "lm_head", None)
        if not isinstance(backbone, Backbone) or not _Prefix.is_plain(head):
            return False
        if head.weight.dtype not in (torch.float32, torch.float64):
            return False
        return backbone.embeddings.position_embeddings is None and all(
            isinstance(block, Block)
            and isinstance(block.mixer, HyenaOperator)
            and block.mixer.order == 2
            and block.mixer.bidirectional == "none"
            and block.mixer.output_activation == "id"
            and not block.mixer.filter_fn.options.normalized  # by what the whole filter adds up to
            and untouched(block, block.mixer, block.mixer.filter_fn, block.mlp)
            and bare(block.norm1, block.norm2, block.mixer.short_filter)
            and bare(block.mixer.in_proj, block.mixer.out_proj, block.mlp.fc1, block.mlp.fc2)
            for block in backbone.layers
        )

    def changed(self, one: AlleleWindows, positions: int) -> int:
        """Count the samples of the first convolution that differ; 0 when too many do."""
        if one.ref_bases != one.alt_bases or not self.layers.has_table:
            return 0
        changed = one.ref_bases + self.layers.reach - 1
        return changed if changed <= min(_SPARSE, positions - one.offset) else 0

    def letters(
        self, x_ASD: Tensor, codes_AB: _Codes, before_A4: Tensor | None, start: int = 0
    ) -> Outputs:
        """Score bases with a kernel where there is one; `x_ASD` is the running sum."""
        norm = self.backbone.ln_f
        if "states" not in self.needs and bare(norm):
            weight = self.model.lm_head.weight[BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1]
            codes = torch.from_numpy(np.ascontiguousarray(codes_AB))
            of_norm = (norm.weight, norm.bias, norm.eps)
            found = letter_log_probs(x_ASD[:, start:], of_norm, weight, before_A4, codes)
            if found is not None:
                if before_A4 is not None and "logits" in self.needs:
                    found = found[0], torch.cat((before_A4[:, None], found[1]), dim=1)
                return Outputs(*found)
        return super().letters(norm(x_ASD), codes_AB, before_A4, start)

    def read_ref(self, codes_RW: _Codes, positions: int, parts: Sequence[_Part]) -> Tensor:
        """Keep what ALT needs of each layer."""
        first, last = self.first, len(self.backbone.layers) - 1
        keep_gate = any(part.changed for part in parts)
        self._kept = []
        x_RPD: Tensor = self.backbone.embeddings(self.ids(codes_RW[:, :positions]))
        for layer in range(last + 1):
            # What the last layer gives before the first variant is not read.
            start = self.start if layer == last else 0
            looked_up = layer == 0 and self.layers.has_table
            if looked_up:
                kmers = self.layers.kmers(codes_RW[:, :positions], 0).to(self.device)
                gate_RPD, u_RDP = self.layers.first(kmers)
            else:
                gate_RPD, u_RDP = self.layers.open(layer, x_RPD, 0)
            y_RDP = self.layers.convolve(layer, u_RDP, start)
            gate = gate_RPD[:, first:].clone() if layer == 0 and keep_gate else None
            x = None if looked_up else x_RPD
            self._kept.append(_Kept(x, u_RDP[..., first:], y_RDP[..., first - start :], gate))
            x_RPD = self.layers.close(layer, y_RDP, gate_RPD[:, start:], x_RPD[:, start:])
        return x_RPD

    def predict(self, codes_RW: _Codes, first: int) -> Tensor:
        """Give logits of A, C, G, T at the bases from `first` >= 1 on, (R, W - first, 4).

        In inference mode, and without states.
        """
        self.first, self.start = first, first - 1
        x_RSD = self.read_ref(codes_RW, codes_RW.shape[1] - 1, ())
        return self.letters(x_RSD, codes_RW[:, first:], None).logits

    def read_alt(self, part: _Part) -> Tensor:
        """Add what ALT changes to what was kept, layer by layer."""
        before, rows, length = self.layers.reach - 1, part.rows, part.length
        heads, ats = ([begin - by for begin in part.begins] for by in (before, self.first))
        codes_AL = part.alt(length, before)
        x_ASD: Tensor = self.backbone.embeddings(self.ids(codes_AL[:, before:]))
        for layer, ref in enumerate(self._kept):
            u_ADS, y_ADS = (self.cut(x, rows, ats, length, 2) for x in (ref.u, ref.y))
            if ref.gate is not None and part.changed:
                gate_ASD = self.cut(ref.gate, rows, ats, length)
                y_ADS, gate_ASD = self._substitute(part, codes_AL, u_ADS, y_ADS, gate_ASD)
            else:
                if ref.x is None:
                    kmers = self.layers.kmers(codes_AL, before).to(self.device)
                    gate_ASD, change = self.layers.first(kmers)
                else:
                    x_ALD = torch.cat((self.cut(ref.x, rows, heads, before), x_ASD), dim=1)
                    gate_ASD, change = self.layers.open(layer, x_ALD, before)
                change = torch.sub(change, u_ADS)
                y_ADS = self.layers.convolve(layer, change, 0).add_(y_ADS)
            x_ASD = self.layers.close(layer, y_ADS, gate_ASD, x_ASD)
        return x_ASD

    def _substitute(
        self, part: _Part, codes_AL: _Codes, u_ADS: Tensor, y_ADS: Tensor, gate_ASD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the few samples of the first convolution that differ tap by tap; give y and gate."""
        before, count = self.layers.reach - 1, part.changed
        lows = [w.offset - b for w, b in zip(part.windows, part.begins, strict=True)]
        near = [codes[at : at + before + count] for codes, at in zip(codes_AL, lows, strict=True)]
        kmers = self.layers.kmers(np.stack(near), before).to(self.device)
        x0_ACD, change_ADC = self.layers.first(kmers)
        change_ADC = change_ADC - self.cut(u_ADS, list(range(len(lows))), lows, count, 2)
        if len(lows) == 1:  # a view of REF
            y_ADS = y_ADS.clone(memory_format=torch.contiguous_format)
            gate_ASD = gate_ASD.clone(memory_format=torch.contiguous_format)
        k_DP, skip_D = self.layers.filter(0)
        groups = [(slice(row, row + 1), low) for row, low in enumerate(lows)]
        if len({*lows}) == 1:
            groups = [(slice(None), lows[0])]
        for at, low in groups:
            for i in range(count):
                taps_DS = k_DP[:, : part.length - low - i]
                y_ADS[at, :, low + i :].addcmul_(change_ADC[at, :, i : i + 1], taps_DS)
            if skip_D is not None:
                y_ADS[at, :, low : low + count].addcmul_(change_ADC[at], skip_D[:, None])
            gate_ASD[at, low : low + count] = x0_ACD[at]
        return y_ADS, gate_ASD


class _Layers:
    """The layers of a causal Hyena model of order 2 up to `positions`, one operation at a time."""

    def __init__(self, blocks: list[Block], positions: int) -> None:
        self.blocks, self.positions = blocks, positions
        mixer: Any = blocks[0].mixer
        self.reach = int(mixer.short_filter.weight.shape[-1])
        self.has_table = _LETTERS**self.reach <= _MOST_KMERS
        self._filters: list[tuple[Tensor, Tensor | None]] = []
        self._spectra: dict[tuple[int, int, int], Tensor] = {}
        self._table: tuple[Tensor, Tensor] | None = None
        self._packed: list[PackedLayer | None] = [None] * len(blocks)

    def pack(self) -> None:
        """Lay the weights out for the kernels, where there are kernels for them."""
        for number, block in enumerate(self.blocks):
            mixer: Any = block.mixer
            mlp, short = block.mlp, mixer.short_filter
            self._packed[number] = PackedLayer.of(
                [(norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)],
                [mixer.in_proj.weight, mixer.in_proj.bias, short.weight[:, 0], short.bias,
                 mixer.out_proj.weight, mixer.out_proj.bias, mlp.fc1.weight, mlp.fc1.bias,
                 mlp.fc2.weight, mlp.fc2.bias],
            )  # fmt: skip

    def make_table(self, letters_LD: Tensor) -> None:
        """Make the table of k-mers from the embeddings of A, C, G, T and N, (5, D)."""
        block = self.blocks[0]
        mixer: Any = block.mixer
        p_CL = _project(mixer, block.norm1(letters_LD[None]))[0]
        p_CL = torch.cat((p_CL, p_CL.new_zeros(p_CL.shape[0], 1)), dim=1)
        s_CK: Tensor = p_CL.new_zeros(p_CL.shape[0], 1)
        for tap in range(self.reach):  # the last one is at the base itself, and changes fastest
            own = mixer.short_filter.weight[:, 0, tap, None] * p_CL
            s_CK = (s_CK[:, :, None] + own[:, None]).flatten(1)
        if mixer.short_filter.bias is not None:
            s_CK = s_CK + mixer.short_filter.bias[:, None]
        x0_DK, x1_DK, v_DK = s_CK.split(mixer.d_model, dim=0)
        self._table = x0_DK.t().contiguous(), x1_DK * v_DK

    def kmers(self, codes_BL: _Codes, start: int) -> Tensor:
        """Give the number of the k-mer that ends at each base from `start` on, (B, L - start)."""
        letters = (codes_BL[:, max(0, start - self.reach + 1) :] & BASE_BITS).astype(np.int32)
        missing = self.reach - 1 - start
        if missing > 0:
            letters = np.pad(letters, ((0, 0), (missing, 0)), constant_values=_LETTERS - 1)
        length = codes_BL.shape[1] - start
        found = np.zeros((len(letters), length), np.int32)
        for tap in range(self.reach):
            found = found * _LETTERS + letters[:, tap : tap + length]
        return torch.from_numpy(found)

    def first(self, kmers_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the gate x0 (B, L, D) and u = x1 * v (B, D, L) of the first layer."""
        assert self._table is not None
        x0_KD, u_DK = self._table
        gate = x0_KD.index_select(0, kmers_BL.flatten()).view(*kmers_BL.shape, -1)
        return gate, _stacked([u_DK.index_select(1, row) for row in kmers_BL])

    def open(self, layer: int, x_BLD: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Give the gate x0 (B, L, D) and u = x1 * v (B, D, L) of a layer from `first` on.

        The positions before `first` are those that the short convolution sees, or none.
        """
        if (packed := self._packed[layer]) is not None:
            return packed.open(x_BLD, first)
        block = self.blocks[layer]
        mixer: Any = block.mixer
        p_BCL = _project(mixer, block.norm1(x_BLD))
        short = short_conv(p_BCL, mixer.short_filter.weight[:, 0], mixer.short_filter.bias)
        x0, x1, v = short[..., first:].split(mixer.d_model, dim=1)
        return x0.transpose(1, 2), x1 * v

    def filter(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Give taps (D, positions) and skip term (D,) of a layer."""
        if not self._filters:
            mixers: list[Any] = [block.mixer for block in self.blocks]
            both = [mixer.filters(self.positions) for mixer in mixers]
            self._filters = [(taps, skip) for (taps,), (skip,) in both]
        return self._filters[layer]

    def convolve(self, layer: int, u_BDL: Tensor, start: int) -> Tensor:
        """Convolve; give the samples from `start` on, (B, D, L - start)."""
        length = u_BDL.shape[-1]
        step = _FINE if length <= _SHORT else -(-self.positions // _STEPS)
        most = min(self.positions, -(-length // step) * step)
        n_fft = fft_length(2 * most - 1 - start // step * step)
        key = (layer, n_fft, most)
        if key not in self._spectra:
            k_DL, skip_D = self.filter(layer)
            spectrum = torch.fft.rfft(k_DL[:, :most], n=n_fft)
            self._spectra[key] = spectrum if skip_D is None else spectrum + skip_D[:, None]
        K_DF = self._spectra[key]
        y_BDL = u_BDL.new_empty(*u_BDL.shape[:-1], length - start)
        together = max(1, _ROWS // length)  # so that the spectra stay in the cache
        for low in range(0, u_BDL.shape[0], together):
            at = slice(low, low + together)
            U_BDF = torch.fft.rfft(u_BDL[at], n=n_fft).mul_(K_DF)
            y_BDL[at] = torch.fft.irfft(U_BDF, n=n_fft)[..., start:length]
        return y_BDL

    def close(self, layer: int, y_BDL: Tensor, gate_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        """Gate and project the convolution's output, run the MLP; give the running sum (B, L, D).

        `y_BDL` and `gate_BLD` may be overwritten; `x_BLD` is the running sum before the layer.
        """
        if (packed := self._packed[layer]) is not None:
            return packed.close(y_BDL, gate_BLD, x_BLD)
        block = self.blocks[layer]
        mixer: Any = block.mixer
        z_BDL = y_BDL * gate_BLD.transpose(1, 2)
        if z_BDL.device.type == "cpu" and z_BDL.shape[2] >= _LONG:
            out = mixer.out_proj
            x_BLD = x_BLD + _stacked([matmul(z_DL.t(), out.weight.t(), out.bias) for z_DL in z_BDL])
        else:
            x_BLD = x_BLD + from_channel_major(mixer.out_proj, z_BDL)
        mlp, x_ND = block.mlp, block.norm2(x_BLD).flatten(0, 1)
        if backend.active() == "reference" or x_ND.device.type != "cpu":
            return x_BLD + mlp(x_ND).view(x_BLD.shape)
        parts = [
            matmul(matmul(part, mlp.fc1.weight.t(), mlp.fc1.bias, gelu=True),
                   mlp.fc2.weight.t(), mlp.fc2.bias)
            for part in x_ND.split(_ROWS)
        ]  # fmt: skip
        return x_BLD + (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x_BLD.shape)


def _project(mixer: Any, x_BLD: Tensor) -> Tensor:
    """Give the projected channels, (B, C, L)."""
    w_CD, bias = mixer.in_proj.weight, mixer.in_proj.bias
    bias_C1 = None if bias is None else bias[:, None]
    if x_BLD.device.type == "cpu" and x_BLD.shape[1] >= _LONG:
        return _stacked([matmul(w_CD, x_LD.t(), bias_C1) for x_LD in x_BLD])
    p_BCL = torch.matmul(w_CD, x_BLD.transpose(1, 2))
    return p_BCL if bias_C1 is None else p_BCL.add_(bias_C1)


def _stacked(rows: list[Tensor]) -> Tensor:
    """Stack rows; a single one is not copied."""
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)

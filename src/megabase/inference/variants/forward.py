"""Model outputs for both alleles of variants: plain passes, or only what differs.

Any model is read by plain passes over whole windows, equal windows once. Under a causal Hyena model
REF is read once, and ALT from the variant on. With u the gated input of a long convolution, y = k
conv u is linear, so y_alt = y_ref + k conv (u_alt - u_ref): a transform over the part after the
variant only. In the first layer u and the gate are looked up; a substitution changes u there only
at its own position and at the taps of the short convolution, which needs no transform either. In
the last layer, what no score reads is not computed. Variants of one window share the pass over REF.

Shape suffixes: R reference windows, A alternative alleles, B either, W bases of a window, P
positions, F positions from the first variant of the windows on, S positions from one variant on, L
these and those before them that the short convolution sees, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.augment import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens, token_log_probs
from megabase.evaluate.sequences import run_batched
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, T, encode, reverse_complement
from megabase.genome.interval import shared_ends
from megabase.genome.left_out import Reason
from megabase.inference.variants.prefix_layers import PrefixLayers
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, untouched
from megabase.models.loading import Loaded, inference_mode
from megabase.ops.hyena_mixer.packed import letter_log_probs

Placement = Literal["centered", "grid"]
PLACEMENTS: tuple[Placement, ...] = ("centered", "grid")
"""Both ways to place a window: the first isolates a variant, in the second neighbors share one."""


class AlleleWindows(NamedTuple):
    """The windows of both alleles of a variant on one strand; they are equal before `offset`."""

    ref: NDArray[np.uint8]
    """Base codes without the soft-mask bit, (window,)."""
    alt: NDArray[np.uint8]
    """The same for ALT, (window,)."""
    offset: int
    """0-based index in the window of the first base that differs."""
    ref_bases: int
    """Length of REF after trimming; may be 0."""
    alt_bases: int
    """Length of ALT after trimming; may be 0."""
    name: str = ""
    """The variant, for messages."""

    @classmethod
    def cut(
        cls,
        contig: NDArray[np.uint8],
        position: int,
        ref: str,
        alt: str,
        window: int,
        reverse: bool,
        placement: Placement = "centered",
    ) -> AlleleWindows | Reason:
        """Cut the windows of both alleles, or give the reason why there are none.

        `position` is the 0-based index of the first base of `ref` in the codes of the whole contig;
        the alleles of A, C, G, T differ, and `ref` is what the contig has.
        """
        length = len(contig)
        old, new = encode(ref) & np.uint8(BASE_BITS), encode(alt) & np.uint8(BASE_BITS)
        if reverse:
            position = length - position - len(old)
            old, new = reverse_complement(old), reverse_complement(new)
        front, back = shared_ends(old, new)
        old, new = old[front : len(old) - back], new[front : len(new) - back]
        first, more = position + front, max(0, len(old) - len(new))
        if length < window + more:
            return "CONTIG_TOO_SHORT"
        longest, step = max(len(old), len(new)), window // 2
        start = first - step
        if placement == "grid" and longest <= window // 8:
            start = (first - window // 4) // step * step
        start = min(max(0, start), length - window - more)
        offset = first - start
        if offset + longest > window:
            return "ALLELE_TOO_LONG" if longest > window - step else "TOO_NEAR_END"
        end = start + window + more
        if reverse:
            span = reverse_complement(contig[length - end : length - start])
        else:
            span = contig[start:end]
        span = span & np.uint8(BASE_BITS)
        changed = np.concatenate((span[:offset], new, span[offset + len(old) :]))[:window]
        return cls(span[:window], changed, offset, len(old), len(new))


_SPARSE = 8
"""Changed samples up to which adding them tap by tap was faster than a transform."""
_CPU_TOKENS = 1 << 13
"""Positions of a batch on a CPU, where activations that stay in the cache beat fewer calls."""
_SHAPES = 128
"""Distinct starts of ALT in a window: libraries prepare (plan, allocate) for every new shape."""

_Codes = NDArray[np.uint8]
_Values = NDArray[np.float32]

Need = Literal["log_probs", "pooled", "masked"]
"""Fields of :class:`AlleleOutputs` that can be requested."""


_NOTHING: Any = np.empty(0, np.float32)
"""What stands for outputs that were not requested."""


class AlleleOutputs(NamedTuple):
    """What a model outputs for one allele; empty arrays where it was not requested."""

    log_probs: _Values = _NOTHING
    """Natural log-probabilities of the bases up to the end of the window, NaN where there is none:
    from the start of the window, or from a base up to the first one that differs."""
    pooled: _Values = _NOTHING
    """Mean of the last hidden states over the window, (width,)."""
    masked: float = math.nan
    """Sum of the log-probabilities of the bases of the allele, all of them hidden at once; NaN for
    alleles of different lengths too."""


_Pair = tuple[AlleleOutputs, AlleleOutputs]


def read_alleles(
    model: Loaded, windows: Sequence[AlleleWindows], needs: set[Need], batch_tokens: int
) -> list[_Pair]:
    """Run a language model on both alleles of variants, as fast as the model allows.

    Windows may differ in length; the outputs are for REF and ALT of each. InputError when hidden
    states are needed of a model that gives none.
    """
    if not shares_prefix(model.model):
        return _plain(model, windows, needs, batch_tokens)
    found = SharedPrefix(model.model, windows, "pooled" in needs, batch_tokens).read()
    rest = [number for number in range(len(windows)) if number not in found]
    if rest:
        others = _plain(model, [windows[number] for number in rest], needs, batch_tokens)
        found.update(zip(rest, others, strict=True))
    return [found[number] for number in range(len(windows))]


def shares_prefix(model: nn.Module) -> bool:
    """Whether a model is a stack of causal Hyena operators of order 2 with a linear head."""
    base: Any = getattr(model, "base_model", None)
    backbone = getattr(base, "backbone", None)
    head = getattr(model, "lm_head", None)
    if not isinstance(backbone, Backbone) or not isinstance(head, nn.Linear):
        return False
    if (
        head.bias is not None
        or not bare(head)
        or head.weight.dtype not in (torch.float32, torch.float64)
    ):
        return False
    return backbone.embeddings.position_embeddings is None and all(
        isinstance(block, Block)
        and isinstance(block.mixer, HyenaOperator)
        and block.mixer.order == 2
        and block.mixer.bidirectional == "none"
        and block.mixer.output_activation == "id"
        and untouched(block, block.mixer, block.mixer.filter_fn, block.mlp)
        and bare(block.norm1, block.norm2, block.mixer.short_filter)
        and bare(block.mixer.in_proj, block.mixer.out_proj, block.mlp.fc1, block.mlp.fc2)
        for block in backbone.layers
    )


def _plain(
    model: Loaded, windows: Sequence[AlleleWindows], needs: set[Need], batch_tokens: int
) -> list[_Pair]:
    """Read whole windows, equal ones once."""
    numbers: dict[bytes, int] = {}
    distinct: list[_Codes] = []
    names: list[str] = []
    pairs: list[tuple[int, int]] = []
    for one in windows:
        for codes in (one.ref, one.alt):
            if numbers.setdefault(codes.tobytes(), len(distinct)) == len(distinct):
                distinct.append(codes)
                names.append(one.name)
        pairs.append((numbers[one.ref.tobytes()], numbers[one.alt.tobytes()]))

    def ids_of(codes: _Codes) -> Tensor:
        return codes_to_ids(torch.from_numpy(codes).to(model.device))

    def log_probs_of(codes: _Codes, rows: NDArray[np.int64]) -> list[_Values]:
        found = token_log_probs(
            model, ids_of(codes), batch_tokens=batch_tokens,
            record=lambda row: names[rows[row]],
        )  # fmt: skip
        return list(found.float().cpu().numpy())

    def pooled_of(codes: _Codes, _: NDArray[np.int64]) -> list[_Values]:
        with inference_mode(model.model):
            output: Any = model.model(input_ids=ids_of(codes), output_hidden_states=True)
            if output.hidden_states is None:
                raise InputError(f"{model.name} gives no hidden states to compare")
            return list(output.hidden_states[-1].float().mean(1).cpu().numpy())

    same = [one for one in windows if one.ref_bases == one.alt_bases]

    def masked_of(codes: _Codes, rows: NDArray[np.int64]) -> list[tuple[float, float]]:
        variants = [same[row] for row in rows.tolist()]
        hidden = torch.zeros(codes.shape, dtype=torch.bool)
        for row, one in zip(hidden, variants, strict=True):
            row[one.offset : one.offset + one.ref_bases] = True
        with inference_mode(model.model):
            found = predict_tokens(
                model.model, ids_of(codes), "together",
                lambda logits, _: base_logits(logits).log_softmax(-1),
                wanted_BL=hidden.to(model.device),
            )  # fmt: skip
        values = []
        for row, one in zip(found.cpu().double().numpy(), variants, strict=True):
            site = np.arange(one.offset, one.offset + one.ref_bases)
            ref, alt = (row[site, allele[site]].sum() for allele in (one.ref, one.alt))
            values.append((float(ref), float(alt)))
        return values

    log_probs = pooled = [_NOTHING] * len(distinct)
    if "log_probs" in needs:
        log_probs = run_batched(distinct, log_probs_of, batch_tokens=batch_tokens)
    if "pooled" in needs:
        pooled = run_batched(distinct, pooled_of, batch_tokens=batch_tokens)
    masked: list[tuple[float, float]] = []
    if "masked" in needs:
        masked = run_batched([one.ref for one in same], masked_of, batch_tokens=batch_tokens)
    of_same = iter(masked)
    results = []
    for one, (ref, alt) in zip(windows, pairs, strict=True):
        none = math.nan, math.nan
        sums = next(of_same, none) if one.ref_bases == one.alt_bases else none
        both = zip((ref, alt), sums, strict=True)
        first, second = (AlleleOutputs(log_probs[i], pooled[i], value) for i, value in both)
        results.append((first, second))
    return results


class _Layer(NamedTuple):
    """What ALT needs of REF in one layer."""

    x: Tensor | None  # the running sum before it, (R, P, D); None where u and gate are looked up
    u: Tensor  # input of the long convolution from the first variant on, (R, D, F)
    y: Tensor  # its output there, (R, D, F)
    gate: Tensor | None  # the output gate there, (R, F, D), where ALT does not compute it


class _Reference(NamedTuple):
    """What ALT needs of a pass over REF windows."""

    first: int  # index of the first variant in any of them
    layers: list[_Layer]
    logits: Tensor  # of A, C, G, T from `first - 1` on, (R, F + 1, 4)
    scores: list[_Values]  # log-probabilities from `first` on, for each window
    states: Tensor | None  # last hidden states of whole windows, (R, P, D), where they are pooled


class SharedPrefix:
    """Passes over REF whole and over ALT from the variant on, of a model for which it can be."""

    def __init__(
        self, model: Any, windows: Sequence[AlleleWindows], pooled: bool, batch_tokens: int
    ) -> None:
        self.model, self.windows, self.pooled = model, windows, pooled
        self.backbone: Backbone = model.base_model.backbone
        self.layers = PrefixLayers(list(self.backbone.layers))  # type: ignore[arg-type]
        self.reach = self.layers.reach
        self.device: torch.device = model.lm_head.weight.device
        self.tokens = batch_tokens
        if self.device.type == "cpu":
            self.tokens = min(batch_tokens, _CPU_TOKENS)
        self.results: dict[int, _Pair] = {}
        self._prepared = False

    def read(self) -> dict[int, _Pair]:
        """Give the outputs of variants by number, but for those without enough bases around."""
        by_length: dict[int, dict[bytes, list[int]]] = {}  # variants of each REF window
        for number, one in enumerate(self.windows):
            length = len(one.ref)
            if one.offset >= self.reach and self._positions(length) > one.offset:
                of_length = by_length.setdefault(length, {})
                of_length.setdefault(one.ref.tobytes(), []).append(number)
        with inference_mode(self.model):
            if by_length:
                self._prepare()
            for length, of_length in by_length.items():
                rows = max(1, self.tokens // length)
                # Windows whose first variants are at like positions waste the least together.
                order = sorted(
                    of_length.values(), key=lambda w: min(self.windows[m].offset for m in w)
                )
                for low in range(0, len(order), rows):
                    self._read_windows(order[low : low + rows], rows)
                self.layers.clear()
        return self.results

    def predict(self, codes_RW: _Codes, first: int) -> Tensor:
        """Give logits of A, C, G, T at the bases from `first` >= 1 on, (R, W - first, 4).

        Windows of all calls are of one length; in inference mode.
        """
        if not self._prepared:
            self._prepare()
        return self._reference(codes_RW, first, False).logits

    def _prepare(self) -> None:
        """Lay out the weights and make the table of the first layer."""
        self._prepared = True
        self.layers.pack()
        if self.layers.has_table:
            letters = self._ids(np.arange(T + 2, dtype=np.uint8)[None])
            self.layers.make_table(self.backbone.embeddings(letters)[0])

    def _positions(self, bases: int) -> int:
        """Positions that are computed of a window; the last base predicts none."""
        return bases if self.pooled else bases - 1

    def _read_windows(self, members: list[list[int]], rows: int) -> None:
        """Read REF windows, given the numbers of the variants of each, and every ALT."""
        codes_RW = np.stack([self.windows[numbers[0]].ref for numbers in members])
        positions = self._positions(codes_RW.shape[1])
        step = max(1, codes_RW.shape[1] // _SHAPES)
        parts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for row, numbers in enumerate(members):
            for number in numbers:
                one = self.windows[number]
                begin = one.offset // step * step
                begin = begin if begin >= self.reach else one.offset
                changed = self._changed_samples(one, positions)
                key = (begin, one.offset - begin if changed else 0, changed)
                parts.setdefault(key, []).append((number, row))
        first = min(begin for begin, *_ in parts)
        reference = self._reference(codes_RW, first, any(changed for *_, changed in parts))
        for (begin, low, changed), of_part in parts.items():
            for start in range(0, len(of_part), 2 * rows):  # half the positions: twice the rows
                part = of_part[start : start + 2 * rows]
                codes_AW = np.stack([self.windows[number].alt for number, _ in part])
                scores, ref_pooled, alt_pooled = self._alternative(
                    codes_AW, begin, reference, [row for _, row in part], slice(low, low + changed)
                )
                for i, (number, row) in enumerate(part):
                    offset = self.windows[number].offset
                    both = (reference.scores[row][offset - first :], scores[i][offset - begin :])
                    means = [x[i] if len(x) else x for x in (ref_pooled, alt_pooled)]
                    ref, alt = map(AlleleOutputs, both, means)
                    self.results[number] = (ref, alt)

    def _changed_samples(self, one: AlleleWindows, positions: int) -> int:
        """Count the samples of the first convolution that differ; 0 when too many do."""
        if one.ref_bases != one.alt_bases or not self.layers.has_table:
            return 0
        changed = one.ref_bases + self.reach - 1
        return changed if changed <= min(_SPARSE, positions - one.offset) else 0

    def _ids(self, codes: _Codes) -> Tensor:
        """Token ids on the device of the model."""
        return codes_to_ids(torch.from_numpy(np.ascontiguousarray(codes)).to(self.device))

    def _first_layer(self, codes_BW: _Codes, start: int) -> tuple[Tensor, Tensor]:
        """Look up the gate and u of the first layer from `start` on."""
        return self.layers.first(self.layers.kmers(codes_BW, start).to(self.device))

    def _log_probs(
        self, x_BSD: Tensor, codes_BS: _Codes, before_B4: Tensor | None, start: int = 0
    ) -> tuple[list[_Values], Tensor, Tensor | None]:
        """Look up the log-probabilities of the bases that follow the logits from `start` on.

        Gives an array for each row, the logits (B, S, 4), and the last hidden states (B, S, D) when
        they are pooled.
        """
        norm, first, last = self.backbone.ln_f, BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1] + 1
        weight = self.model.lm_head.weight[first:last]
        codes = torch.from_numpy(np.ascontiguousarray(codes_BS))
        if not self.pooled and bare(norm):
            of_norm = (norm.weight, norm.bias, norm.eps)
            found = letter_log_probs(x_BSD[:, start:], of_norm, weight, before_B4, codes)
            if found is not None:
                return list(found[0].numpy()), found[1], None
        hidden = norm(x_BSD)
        # Letters are rows: sums over four of them run along the sequence.
        logits_BVS = torch.matmul(weight, hidden[:, start:].transpose(1, 2))
        logits = logits_BVS.transpose(1, 2)
        if before_B4 is not None:
            logits_BVS = torch.cat((before_B4[:, :, None], logits_BVS), dim=-1)
        # The last logits of a pooled pass predict no base here.
        logits_BVS = logits_BVS[..., : codes.shape[1]]
        base = codes.to(self.device).long()
        known = base <= T
        own = logits_BVS.gather(1, torch.where(known, base, 0)[:, None])[:, 0]
        scores = torch.where(known, own - logits_BVS.logsumexp(1), torch.nan)
        return list(scores.float().cpu().numpy()), logits, hidden if self.pooled else None

    def _reference(self, codes_RW: _Codes, first: int, keep_gate: bool) -> _Reference:
        """Read REF windows whose variants lie from `first` on."""
        positions = self._positions(codes_RW.shape[1])
        layers: list[_Layer] = []
        x_RPD: Tensor = self.backbone.embeddings(self._ids(codes_RW[:, :positions]))
        last = len(self.backbone.layers) - 1
        for layer in range(last + 1):
            # What the last layer gives before the first variant is not read.
            start = first - 1 if layer == last and not self.pooled else 0
            looked_up = layer == 0 and self.layers.has_table
            if looked_up:
                gate_RPD, u_RDP = self._first_layer(codes_RW[:, :positions], 0)
            else:
                gate_RPD, u_RDP = self.layers.open(layer, x_RPD, 0)
            y_RDP = self.layers.convolve(layer, u_RDP, positions, start)
            layers.append(
                _Layer(
                    None if looked_up else x_RPD,
                    u_RDP[..., first:],
                    y_RDP[..., first - start :],
                    gate_RPD[:, first:].clone() if layer == 0 and keep_gate else None,
                )
            )
            x_RPD = self.layers.close(layer, y_RDP, gate_RPD[:, start:], x_RPD[:, start:])
        scores, logits, states = self._log_probs(
            x_RPD, codes_RW[:, first:], None, first - 1 if self.pooled else 0
        )
        return _Reference(first, layers, logits, scores, states)

    def _alternative(
        self, codes_AW: _Codes, begin: int, reference: _Reference, owner: list[int], changed: slice
    ) -> tuple[list[_Values], _Values, _Values]:
        """Read ALT from `begin` on; give log-probabilities, pooled states of REF and of ALT."""
        positions = self._positions(codes_AW.shape[1])
        at, before = begin - reference.first, self.reach - 1
        # A single row is a view; several are gathered.
        rows: Any = slice(owner[0], owner[0] + 1)
        if len(owner) > 1:
            rows = torch.tensor(owner, device=self.device)
        x_ASD: Tensor = self.backbone.embeddings(self._ids(codes_AW[:, begin:positions]))
        for layer, ref in enumerate(reference.layers):
            u_ADS, y_ADS = ref.u[rows][..., at:], ref.y[rows][..., at:]
            if layer == 0 and changed.stop > changed.start:
                assert ref.gate is not None
                gate_ASD = ref.gate[rows][:, at:]
                y_ADS, gate_ASD = self._substitute(codes_AW, begin, changed, u_ADS, y_ADS, gate_ASD)
            else:
                if ref.x is None:
                    gate_ASD, change = self._first_layer(codes_AW[:, :positions], begin)
                else:
                    x_ALD = torch.cat((ref.x[rows][:, begin - before : begin], x_ASD), dim=1)
                    gate_ASD, change = self.layers.open(layer, x_ALD, before)
                change = torch.sub(change, u_ADS)
                y_ADS = self.layers.convolve(layer, change, positions, 0).add_(y_ADS)
            x_ASD = self.layers.close(layer, y_ADS, gate_ASD, x_ASD)
        # The first logits come from the base before, which is REF's.
        scores, _, states = self._log_probs(
            x_ASD, codes_AW[:, begin:], reference.logits[rows][:, at]
        )
        if reference.states is None or states is None:
            return scores, _NOTHING, _NOTHING
        own = reference.states[rows]
        shared = own[:, :begin].sum(1)
        means = [(shared + part.sum(1)) / positions for part in (own[:, begin:], states)]
        ref_pooled, alt_pooled = (mean.float().cpu().numpy() for mean in means)
        return scores, ref_pooled, alt_pooled

    def _substitute(
        self, codes_AW: _Codes, begin: int, changed: slice, u_ADS: Tensor, y_ADS: Tensor,
        gate_ASD: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Add the few samples of the first convolution that differ tap by tap; give y and gate."""
        length = y_ADS.shape[-1]
        k_DP, skip_D = self.layers.filter(0, begin + length)
        x0, u = self._first_layer(codes_AW[:, : begin + changed.stop], begin + changed.start)
        change = u - u_ADS[..., changed]
        y_ADS = y_ADS.clone(memory_format=torch.contiguous_format)
        for i in range(change.shape[-1]):
            low = changed.start + i
            y_ADS[..., low:].addcmul_(change[..., i : i + 1], k_DP[:, : length - low])
        if skip_D is not None:
            y_ADS[..., changed].addcmul_(change, skip_D[:, None])
        gate_ASD = gate_ASD.clone(memory_format=torch.contiguous_format)
        gate_ASD[:, changed] = x0
        return y_ADS, gate_ASD

"""Both alleles of a variant under a causal Hyena model, computing only what differs.

The windows of REF and ALT are equal before the variant, and so is everything a causal model makes
of that part. REF is read once; ALT is read from the variant on. With u the gated input of a long
convolution, y = k conv u is linear, so y_alt = y_ref + k conv (u_alt - u_ref), where the difference
lives on the part after the variant: a transform of half the length. In the first layer u and the
gate depend on a few bases: they are looked up. A substitution changes u there at its own place and
at the taps of the short convolution only: no transform is needed either. In the last layer what no
score reads is not computed. Variants of one window, wherever in it they are, share the reading of
REF.

Shape suffixes: R reference windows, A alternative alleles, B either, P positions, F positions from
the first variant of the windows on, S positions from one variant on, L these and those before them
that the short convolution sees, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megabase.data.augment import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS, T
from megabase.inference.variants.alleles import Placed
from megabase.inference.variants.methods import Need, Reading
from megabase.inference.variants.prefix_layers import LayerPieces
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, untouched
from megabase.models.scored_model import inference_mode
from megabase.ops.packed_layer import letter_log_probs

if TYPE_CHECKING:
    from megabase.inference.variants.readers import PlainReader

__all__ = ["SharedPrefixReader"]

_SPARSE = 8
"""Changed samples of the first convolution up to which they are added tap by tap."""
_CPU_TOKENS = 1 << 13
"""Positions of a batch on a CPU: fewer calls beat a smaller cache."""
_SHAPES = 128
"""Places in a window where reading ALT begins: libraries prepare themselves for every new shape."""


@dataclass
class _Layer:
    """What ALT needs of REF in one layer.

    Parameters
    ----------
    x
        The running sum before the layer, (R, P, D); None where u and the gate are looked up.
    u, y
        Input and output of the long convolution from the first variant on, (R, D, F).
    gate
        The output gate there, (R, F, D), where ALT does not compute it.
    """

    x: Tensor | None
    u: Tensor
    y: Tensor
    gate: Tensor | None


@dataclass
class _Reference:
    """REF windows as read.

    Parameters
    ----------
    first
        Index of the first variant in any of them.
    layers
        What ALT needs.
    logits
        Of A, C, G, T from ``first - 1`` on, (R, F + 1, 4).
    scores
        Log-probabilities from `first` on, one array for each window.
    states
        Last hidden states of whole windows, (R, P, D), where they are pooled.
    """

    first: int
    layers: list[_Layer]
    logits: Tensor
    scores: list[NDArray[np.float32]]
    states: Tensor | None


@dataclass
class _Window:
    """A REF window, and the numbers of its variants."""

    codes: NDArray[np.uint8]
    members: list[int] = field(default_factory=list)


class SharedPrefixReader:
    """Reads REF whole and ALT from the variant on.

    Parameters
    ----------
    model
        A model that :meth:`supports` accepts.
    plain
        Reader for variants without a base before them.
    batch_tokens
        Most positions of a batch; on the CPU less, so that a batch stays in the cache.
    """

    def __init__(self, model: nn.Module, plain: PlainReader, batch_tokens: int) -> None:
        self.model: Any = model
        self.plain = plain
        self.backbone: Backbone = self.model.base_model.backbone
        self.blocks: list[Block] = list(self.backbone.layers)  # type: ignore[misc]
        device = self.model.lm_head.weight.device
        self.device = device
        self.tokens = min(batch_tokens, _CPU_TOKENS) if device.type == "cpu" else batch_tokens
        self.pieces = LayerPieces(self.blocks)
        self.reach = self.pieces.reach

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the model is a stack of causal Hyena operators of order 2 with a linear head."""
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

    def read(self, places: Sequence[Placed], needs: set[Need]) -> list[tuple[Reading, Reading]]:
        """Read all variants; their windows may differ in length and offset."""
        results: list[tuple[Reading, Reading] | None] = [None] * len(places)
        pooled = "pooled" in needs
        windows: dict[int, dict[bytes, _Window]] = {}
        rest: list[int] = []
        for number, one in enumerate(places):
            length = len(one.ref)
            if one.offset < self.reach or length - (0 if pooled else 1) - one.offset < 1:
                rest.append(number)
                continue
            of_length = windows.setdefault(length, {})
            of_length.setdefault(one.ref.tobytes(), _Window(one.ref)).members.append(number)
        if rest:
            found = self.plain.read([places[number] for number in rest], needs)
            for number, pair in zip(rest, found, strict=True):
                results[number] = pair
        with inference_mode(self.model):
            if windows:
                self.pieces.pack()
            if windows and self.pieces.has_words:
                letters = self._ids(np.arange(T + 2, dtype=np.uint8)[None])
                self.pieces.prepare(self.backbone.embeddings(letters)[0])
            for length, of_length in windows.items():
                rows = max(1, self.tokens // length)
                # Windows whose first variants are at like places waste the least together.
                order = sorted(
                    of_length.values(), key=lambda w: min(places[m].offset for m in w.members)
                )
                for low in range(0, len(order), rows):
                    self._read_windows(places, order[low : low + rows], rows, pooled, results)
                self.pieces.clear()
        return [result for result in results if result is not None]

    def _sparse(self, one: Placed, positions: int) -> int:
        """Count the samples of the first convolution that differ; 0 when too many do."""
        if one.ref_bases != one.alt_bases or not self.pieces.has_words:
            return 0
        changed = one.ref_bases + self.reach - 1
        return changed if changed <= min(_SPARSE, positions - one.offset) else 0

    def _read_windows(
        self,
        places: Sequence[Placed],
        windows: list[_Window],
        rows: int,
        pooled: bool,
        results: list[tuple[Reading, Reading] | None],
    ) -> None:
        codes_RW = np.stack([window.codes for window in windows])
        positions = codes_RW.shape[1] - (0 if pooled else 1)
        step = max(1, codes_RW.shape[1] // _SHAPES)
        parts: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for row, window in enumerate(windows):
            for number in window.members:
                one = places[number]
                begin = one.offset // step * step
                begin = begin if begin >= self.reach else one.offset
                sparse = self._sparse(one, positions)
                key = (begin, one.offset - begin if sparse else 0, sparse)
                parts.setdefault(key, []).append((number, row))
        begins = [begin for begin, *_ in parts]
        keep_gate = any(sparse for *_, sparse in parts)
        reference = self._reference(codes_RW, min(begins), pooled, keep_gate)
        for (begin, low, sparse), members in parts.items():
            for start in range(0, len(members), 2 * rows):  # half the positions: twice the rows
                part = members[start : start + 2 * rows]
                owner = [row for _, row in part]
                codes_AW = np.stack([places[number].alt for number, _ in part])
                scores, ref_pooled, alt_pooled = self._alternative(
                    codes_AW, begin, reference, owner, slice(low, low + sparse)
                )
                for i, (number, row) in enumerate(part):
                    offset = places[number].offset
                    results[number] = (
                        Reading(
                            reference.scores[row][offset - reference.first :],
                            None if ref_pooled is None else ref_pooled[i],
                        ),
                        Reading(
                            scores[i][offset - begin :],
                            None if alt_pooled is None else alt_pooled[i],
                        ),
                    )

    def _ids(self, codes: NDArray[np.uint8]) -> Tensor:
        return codes_to_ids(torch.from_numpy(np.ascontiguousarray(codes)).to(self.device))

    def _words(self, codes_BW: NDArray[np.uint8], start: int) -> Tensor:
        return self.pieces.words(codes_BW, start).to(self.device)

    def _letters(
        self,
        x_BSD: Tensor,
        codes_BS: NDArray[np.uint8],
        before_B4: Tensor | None,
        pooled: bool,
        start: int = 0,
    ) -> tuple[list[NDArray[np.float32]], Tensor, Tensor | None]:
        """Look up the log-probabilities of the bases behind logits from `start` on.

        Returns
        -------
        scores, logits, states
            An array for each row; (B, S, 4); and the last hidden states, (B, S, D), when `pooled`.
        """
        norm, first, last = self.backbone.ln_f, BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1] + 1
        weight = self.model.lm_head.weight[first:last]
        codes = torch.from_numpy(np.ascontiguousarray(codes_BS))
        if not pooled and bare(norm):
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
        return list(scores.float().cpu().numpy()), logits, hidden if pooled else None

    def _reference(
        self, codes_RW: NDArray[np.uint8], first: int, pooled: bool, keep_gate: bool
    ) -> _Reference:
        """Read REF windows whose variants lie from `first` on."""
        ids_RP = self._ids(codes_RW if pooled else codes_RW[:, :-1])
        positions = ids_RP.shape[1]
        layers: list[_Layer] = []
        x_RPD: Tensor = self.backbone.embeddings(ids_RP)
        for layer in range(len(self.blocks)):
            # What the last layer gives before the first variant is not read.
            start = first - 1 if layer == len(self.blocks) - 1 and not pooled else 0
            looked_up = layer == 0 and self.pieces.has_words
            if looked_up:
                gate_RPD, u_RDP = self.pieces.first(self._words(codes_RW[:, :positions], 0))
            else:
                gate_RPD, u_RDP = self.pieces.open(layer, x_RPD, 0)
            y_RDP = self.pieces.convolve(layer, u_RDP, positions, start)
            layers.append(
                _Layer(
                    None if looked_up else x_RPD,
                    u_RDP[..., first:],
                    y_RDP[..., first - start :],
                    gate_RPD[:, first:].clone() if layer == 0 and keep_gate else None,
                )
            )
            x_RPD = self.pieces.close(layer, y_RDP, gate_RPD[:, start:], x_RPD[:, start:])
        scores, logits, states = self._letters(
            x_RPD, codes_RW[:, first:], None, pooled, first - 1 if pooled else 0
        )
        return _Reference(first, layers, logits, scores, states)

    def _alternative(
        self,
        codes_AW: NDArray[np.uint8],
        begin: int,
        reference: _Reference,
        owner: list[int],
        changed: slice,
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Read ALT from `begin` on; give log-probabilities, pooled states of REF and of ALT."""
        pooled = reference.states is not None
        codes = codes_AW[:, begin:] if pooled else codes_AW[:, begin:-1]
        positions = codes_AW.shape[1] - (0 if pooled else 1)
        at, before = begin - reference.first, self.reach - 1
        # A single row is looked at where it is; several are gathered.
        rows: Any = slice(owner[0], owner[0] + 1)
        if len(owner) > 1:
            rows = torch.tensor(owner, device=self.device)
        x_ASD: Tensor = self.backbone.embeddings(self._ids(codes))
        for layer in range(len(self.blocks)):
            ref = reference.layers[layer]
            u_ADS, y_ADS = ref.u[rows][..., at:], ref.y[rows][..., at:]
            if layer == 0 and changed.stop > changed.start:
                assert ref.gate is not None
                gate_ASD = ref.gate[rows][:, at:]
                y_ADS, gate_ASD = self._substitute(codes_AW, begin, changed, u_ADS, y_ADS, gate_ASD)
            else:
                if ref.x is None:
                    gate_ASD, change = self.pieces.first(
                        self._words(codes_AW[:, :positions], begin)
                    )
                else:
                    x_ALD = torch.cat((ref.x[rows][:, begin - before : begin], x_ASD), dim=1)
                    gate_ASD, change = self.pieces.open(layer, x_ALD, before)
                change = torch.sub(change, u_ADS)
                y_ADS = self.pieces.convolve(layer, change, positions, 0).add_(y_ADS)
            x_ASD = self.pieces.close(layer, y_ADS, gate_ASD, x_ASD)
        # The first logits come from the base before, which is REF's.
        scores, _, states = self._letters(
            x_ASD, codes_AW[:, begin:], reference.logits[rows][:, at], pooled
        )
        if reference.states is None or states is None:
            return scores, None, None
        own = reference.states[rows]
        shared = own[:, :begin].sum(1)
        means = [(shared + part.sum(1)) / positions for part in (own[:, begin:], states)]
        ref_pooled, alt_pooled = (mean.float().cpu().numpy() for mean in means)
        return scores, ref_pooled, alt_pooled

    def _substitute(
        self,
        codes_AW: NDArray[np.uint8],
        begin: int,
        changed: slice,
        u_ADS: Tensor,
        y_ADS: Tensor,
        gate_ASD: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Convolve in the first layer, where a few samples differ: theirs are added tap by tap.

        Returns
        -------
        y, gate : Tensor
            Output of the long convolution and the output gate of ALT.
        """
        length = y_ADS.shape[-1]
        k_DP, skip_D = self.pieces.filter(0, begin + length)
        words = self._words(codes_AW[:, : begin + changed.stop], begin + changed.start)
        x0, u = self.pieces.first(words)
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

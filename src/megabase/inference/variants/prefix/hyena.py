"""Causal Hyena models of order 2: ALT is computed as what differs from REF.

With u the gated input of a long convolution, y = k conv u is linear, so y_alt = y_ref + k conv
(u_alt - u_ref): a transform over the part after the variant only. In the first layer u and the gate
are looked up; a substitution changes u there only at its own position and at the taps of the short
convolution, which needs no transform either. What no score reads of the last layer is left out.

Shape suffixes as in :mod:`megabase.inference.variants.prefix.passes`; F positions from the first of
ALT on, L those of ALT and before them those that the short convolution sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from megabase.genome.alphabet import BASE_TOKEN_IDS, T
from megabase.inference.variants.methods import Need, Outputs
from megabase.inference.variants.prefix.layers import PrefixLayers
from megabase.inference.variants.prefix.passes import Codes, Part, Prefix, cut, is_plain
from megabase.inference.variants.windows import AlleleWindows
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, untouched
from megabase.models.loading import Loaded, inference_mode
from megabase.ops.hyena_mixer.packed import letter_log_probs

_SPARSE = 8
"""Changed samples up to which adding them tap by tap was faster than a transform."""


class _Layer(NamedTuple):
    """What ALT needs of REF in one layer."""

    x: Tensor | None  # the running sum before it, (R, P, D); None where u and gate are looked up
    u: Tensor  # input of the long convolution from the first position of ALT on, (R, D, F)
    y: Tensor  # its output there, (R, D, F)
    gate: Tensor | None  # the output gate there, (R, F, D), where ALT does not compute it


class HyenaPrefix(Prefix):
    """Reads models that :meth:`fits`."""

    def __init__(self, model: Loaded, needs: set[Need], batch_tokens: int, window: int) -> None:
        super().__init__(model, needs, batch_tokens)
        self.backbone: Backbone = self.model.base_model.backbone
        self.layers = PrefixLayers(list(self.backbone.layers), window)  # type: ignore[arg-type]
        self.least = self.layers.reach
        self.layers.pack()
        if self.layers.has_table:
            letters = self.ids(np.arange(T + 2, dtype=np.uint8)[None])
            with inference_mode(self.model):
                self.layers.make_table(self.backbone.embeddings(letters)[0])
        self._kept: list[_Layer] = []

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model is a stack of causal Hyena operators of order 2 with a linear head."""
        base: Any = getattr(model, "base_model", None)
        backbone = getattr(base, "backbone", None)
        head: Any = getattr(model, "lm_head", None)
        if not isinstance(backbone, Backbone) or not is_plain(head):
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
        self, x_ASD: Tensor, codes_AB: Codes, before_A4: Tensor | None, start: int = 0
    ) -> Outputs:
        """Score bases with a kernel where there is one; `x_ASD` is the running sum."""
        norm = self.backbone.ln_f
        if "states" not in self.needs and bare(norm):
            weight = self.model.lm_head.weight[BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1]
            codes = torch.from_numpy(np.ascontiguousarray(codes_AB))
            of_norm = (norm.weight, norm.bias, norm.eps)
            found = letter_log_probs(x_ASD[:, start:], of_norm, weight, before_A4, codes)
            if found is not None:
                scores, logits = found
                if before_A4 is not None and "logits" in self.needs:
                    logits = torch.cat((before_A4[:, None], logits), dim=1)
                return Outputs(scores, logits, None)
        return super().letters(norm(x_ASD), codes_AB, before_A4, start)

    def read_ref(self, codes_RW: Codes, positions: int, parts: Sequence[Part]) -> Tensor:
        """Read REF; see :meth:`Prefix.read_ref`."""
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
            self._kept.append(_Layer(x, u_RDP[..., first:], y_RDP[..., first - start :], gate))
            x_RPD = self.layers.close(layer, y_RDP, gate_RPD[:, start:], x_RPD[:, start:])
        return x_RPD

    def predict(self, codes_RW: Codes, first: int) -> Tensor:
        """Give logits of A, C, G, T at the bases from `first` >= 1 on, (R, W - first, 4).

        In inference mode, and without states.
        """
        self.first, self.start = first, first - 1
        x_RSD = self.read_ref(codes_RW, codes_RW.shape[1] - 1, ())
        return self.letters(x_RSD, codes_RW[:, first:], None).logits

    def read_alt(self, part: Part) -> Tensor:
        """Read ALT; see :meth:`Prefix.read_alt`."""
        before, rows, length = self.layers.reach - 1, part.rows, part.length
        heads = [begin - before for begin in part.begins]
        ats = [begin - self.first for begin in part.begins]
        codes_AL = np.stack(
            [w.alt[h : h + before + length] for w, h in zip(part.windows, heads, strict=True)]
        )
        x_ASD: Tensor = self.backbone.embeddings(self.ids(codes_AL[:, before:]))
        for layer, ref in enumerate(self._kept):
            u_ADS, y_ADS = cut(ref.u, rows, ats, length, 2), cut(ref.y, rows, ats, length, 2)
            if layer == 0 and part.changed:
                assert ref.gate is not None
                gate_ASD = cut(ref.gate, rows, ats, length)
                y_ADS, gate_ASD = self._substitute(part, codes_AL, u_ADS, y_ADS, gate_ASD)
            else:
                if ref.x is None:
                    kmers = self.layers.kmers(codes_AL, before).to(self.device)
                    gate_ASD, change = self.layers.first(kmers)
                else:
                    x_ALD = torch.cat((cut(ref.x, rows, heads, before), x_ASD), dim=1)
                    gate_ASD, change = self.layers.open(layer, x_ALD, before)
                change = torch.sub(change, u_ADS)
                y_ADS = self.layers.convolve(layer, change, 0).add_(y_ADS)
            x_ASD = self.layers.close(layer, y_ADS, gate_ASD, x_ASD)
        return x_ASD

    def _substitute(
        self, part: Part, codes_AL: Codes, u_ADS: Tensor, y_ADS: Tensor, gate_ASD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the few samples of the first convolution that differ tap by tap; give y and gate."""
        before, count = self.layers.reach - 1, part.changed
        lows = [w.offset - b for w, b in zip(part.windows, part.begins, strict=True)]
        near = [
            codes[low : low + before + count] for codes, low in zip(codes_AL, lows, strict=True)
        ]
        x0_ACD, change_ADC = self.layers.first(
            self.layers.kmers(np.stack(near), before).to(self.device)
        )
        change_ADC = change_ADC - cut(u_ADS, list(range(len(lows))), lows, count, 2)
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

"""Causal Hyena models of order 2: REF is read once, ALT is computed as what differs from it.

With u the gated input of a long convolution, y = k conv u is linear, so y_alt = y_ref + k conv
(u_alt - u_ref): a transform over the part after the variant only. In the first layer u and the gate
are looked up; a substitution changes u there only at its own position and at the taps of the short
convolution, which needs no transform either. What no score reads of the last layer is left out.

What the first layer makes of DNA before its long convolution depends on a k-mer of as many bases as
the short convolution has taps: u = x1 * v and the gate x0 are looked up in a table of k-mers.
Behind it, everything but the long convolution is done by C++ kernels where they are installed.

Shape suffixes as in :mod:`megabase.inference.variants.prefix`; F positions from the first of ALT
on, L those of ALT and before them those that the short convolution sees. Of single layers: B rows,
L positions, D width, C projected channels, F frequencies, K k-mers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS, T
from megabase.inference.variants.methods import AlleleWindows, Need, Outputs
from megabase.inference.variants.prefix import Codes, Part, Prefix
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, from_channel_major, untouched
from megabase.models.loading import Loaded, inference_mode
from megabase.ops import backend
from megabase.ops.hyena_mixer.packed import PackedLayer, letter_log_probs
from megabase.ops.long_conv import fft_length
from megabase.ops.products import matmul
from megabase.ops.short_conv import short_conv

_SPARSE = 8
"""Changed samples up to which adding them tap by tap was faster than a transform."""
_ROWS = 1 << 10
"""Positions whose inner activations exist at a time: they stay in the cache."""
_LONG = 128
"""Positions from which a row is multiplied alone; shorter rows go together, for fewer calls."""
_LETTERS = 6
"""Of a k-mer: A, C, G, T, N, and nothing, before the start; so it is not two bits a base."""
_MOST_KMERS = _LETTERS**4
"""Largest table; more k-mers would not stay in the cache of a core."""
_STEPS = 8
"""Lengths of transforms in a window: variants at many positions share the spectra of these."""
_SHORT, _FINE = 256, 16
"""Up to this length lengths are multiples of the second: their spectra take little memory."""


class _Kept(NamedTuple):
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
        if not isinstance(backbone, Backbone) or not Prefix.is_plain(head):
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
                if before_A4 is not None and "logits" in self.needs:
                    found = found[0], torch.cat((before_A4[:, None], found[1]), dim=1)
                return Outputs(*found)
        return super().letters(norm(x_ASD), codes_AB, before_A4, start)

    def read_ref(self, codes_RW: Codes, positions: int, parts: Sequence[Part]) -> Tensor:
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

    def predict(self, codes_RW: Codes, first: int) -> Tensor:
        """Give logits of A, C, G, T at the bases from `first` >= 1 on, (R, W - first, 4).

        In inference mode, and without states.
        """
        self.first, self.start = first, first - 1
        x_RSD = self.read_ref(codes_RW, codes_RW.shape[1] - 1, ())
        return self.letters(x_RSD, codes_RW[:, first:], None).logits

    def read_alt(self, part: Part) -> Tensor:
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
        self, part: Part, codes_AL: Codes, u_ADS: Tensor, y_ADS: Tensor, gate_ASD: Tensor
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

    def kmers(self, codes_BL: Codes, start: int) -> Tensor:
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

"""Both alleles of a variant under a causal Hyena model, computing only what differs.

The windows of REF and ALT are equal before the variant, and so is everything a causal model makes
of that part. REF is read once; ALT is read from the variant on. With u the gated input of a long
convolution, y = k conv u is linear, so y_alt = y_ref + k conv (u_alt - u_ref), where the difference
lives on the part after the variant: a transform of half the length. In the first layer a
substitution changes u at its own place and at the taps of the short convolution only: no transform
and no input projection are needed there. In the last layer what no score reads is not computed.

Shape suffixes: R reference windows, A alternative alleles, B either, P positions, S positions from
the variant on, D width, K taps of the short convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.data.augment import codes_to_ids
from megabase.genome.alphabet import BASE_TOKEN_IDS, T
from megabase.inference.alleles import Placed
from megabase.inference.log_probs import evaluating
from megabase.inference.methods import Need, Reading
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.linear import bare, from_channel_major, to_channel_major
from megabase.ops.long_conv.lengths import fft_length
from megabase.ops.short_conv import short_conv

if TYPE_CHECKING:
    from megabase.inference.readers import PlainReader

__all__ = ["SharedPrefixReader"]

_SPARSE = 8
"""Changed samples of the first convolution up to which they are added tap by tap."""
_MLP_ROWS = 1 << 10
"""Positions whose inner activations exist at a time: they stay in the cache."""
_CPU_TOKENS = 1 << 13


@dataclass
class _Layer:
    """What ALT needs of REF in one layer.

    Parameters
    ----------
    tail
        Projected channels just before the variant, (R, 3 D, K - 1).
    u, y
        Input and output of the long convolution from the variant on, (R, D, S).
    gate
        The output gate there, (R, D, S), where ALT does not compute it.
    """

    tail: Tensor
    u: Tensor
    y: Tensor
    gate: Tensor | None


@dataclass
class _Group:
    """Variants of one window length and offset, and of one way through the first layer."""

    sparse: int
    numbers: list[int] = field(default_factory=list)
    refs: dict[bytes, int] = field(default_factory=dict)
    ref_codes: list[NDArray[np.uint8]] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)


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
        self._taps: dict[int, list[Tensor]] = {}
        self._spectra: dict[tuple[int, int, int], Tensor] = {}

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the model is a stack of causal Hyena operators of order 2 with a linear head."""
        base: Any = getattr(model, "base_model", None)
        backbone = getattr(base, "backbone", None)
        head = getattr(model, "lm_head", None)
        if not isinstance(backbone, Backbone) or not isinstance(head, nn.Linear):
            return False
        if head.bias is not None or head.weight.dtype not in (torch.float32, torch.float64):
            return False
        return backbone.embeddings.position_embeddings is None and all(
            isinstance(block, Block)
            and isinstance(block.mixer, HyenaOperator)
            and block.mixer.order == 2
            and block.mixer.bidirectional == "none"
            and block.mixer.output_activation == "id"
            and bare(block.mixer.in_proj, block.mixer.out_proj, block.mlp.fc1, block.mlp.fc2)
            for block in backbone.layers
        )

    def read(self, places: Sequence[Placed], needs: set[Need]) -> list[tuple[Reading, Reading]]:
        """Read all variants; their windows may differ in length and offset."""
        results: list[tuple[Reading, Reading] | None] = [None] * len(places)
        pooled = "pooled" in needs
        taps = self._short_taps()
        groups: dict[tuple[int, int, int], _Group] = {}
        rest: list[int] = []
        for number, one in enumerate(places):
            positions = len(one.ref) - (0 if pooled else 1)
            if one.offset < taps or positions - one.offset < 1:
                rest.append(number)
                continue
            changed = one.ref_bases + taps - 1 if one.ref_bases == one.alt_bases else 0
            sparse = changed if changed <= min(_SPARSE, positions - one.offset) else 0
            key = (len(one.ref), one.offset, sparse)
            group = groups.setdefault(key, _Group(sparse))
            text = one.ref.tobytes()
            row = group.refs.setdefault(text, len(group.ref_codes))
            if row == len(group.ref_codes):
                group.ref_codes.append(one.ref)
            group.owner.append(row)
            group.numbers.append(number)
        if rest:
            found = self.plain.read([places[number] for number in rest], needs)
            for number, pair in zip(rest, found, strict=True):
                results[number] = pair
        with evaluating(self.model):
            for (window, offset, _), group in groups.items():
                self._read_group(places, group, window, offset, pooled, results)
            self._taps.clear()  # weights may change between calls
            self._spectra.clear()
        return [result for result in results if result is not None]

    def _short_taps(self) -> int:
        mixer: Any = self.blocks[0].mixer
        return int(mixer.short_filter.weight.shape[-1])

    def _read_group(
        self,
        places: Sequence[Placed],
        group: _Group,
        window: int,
        offset: int,
        pooled: bool,
        results: list[tuple[Reading, Reading] | None],
    ) -> None:
        rows = max(1, self.tokens // window)
        by_ref: list[list[int]] = [[] for _ in group.ref_codes]
        for place_number, row in enumerate(group.owner):
            by_ref[row].append(place_number)
        for low in range(0, len(group.ref_codes), rows):
            refs = range(low, min(low + rows, len(group.ref_codes)))
            codes_RW = np.stack([group.ref_codes[row] for row in refs])
            state, ref_logits, ref_pooled = self._reference(codes_RW, offset, pooled, group.sparse)
            ref_scores = self._scores(ref_logits, codes_RW[:, offset:], pooled)
            members = [(m, row - low) for row in refs for m in by_ref[row]]
            for start in range(0, len(members), 2 * rows):  # half the positions: twice the rows
                part = members[start : start + 2 * rows]
                owner = torch.tensor([row for _, row in part], device=self.device)
                codes_AW = np.stack([places[group.numbers[m]].alt for m, _ in part])
                logits, alt_pooled = self._alternative(
                    codes_AW, offset, state, owner, group.sparse, pooled
                )
                # The first logits come from the base before the variant, which is REF's.
                logits = torch.cat((ref_logits[owner, :1], logits), dim=1)
                scores = self._scores(logits, codes_AW[:, offset:], pooled)
                for i, (m, row) in enumerate(part):
                    results[group.numbers[m]] = (
                        Reading(ref_scores[row], None if ref_pooled is None else ref_pooled[row]),
                        Reading(scores[i], None if alt_pooled is None else alt_pooled[i]),
                    )

    def _scores(
        self, logits_BSV: Tensor, codes_BS: NDArray[np.uint8], pooled: bool
    ) -> list[NDArray[np.float32]]:
        """Look up the log-probabilities; the last logits of a pooled pass predict no base here."""
        if pooled:
            logits_BSV = logits_BSV[:, :-1]
        base = torch.from_numpy(codes_BS.astype(np.int64)).to(self.device)
        known = base <= T
        own = logits_BSV.gather(-1, torch.where(known, base, 0)[..., None])[..., 0]
        found = torch.where(known, own - logits_BSV.logsumexp(-1), torch.nan)
        return list(found.float().cpu().numpy())

    def _ids(self, codes: NDArray[np.uint8]) -> Tensor:
        return codes_to_ids(torch.from_numpy(np.ascontiguousarray(codes)).to(self.device))

    def _filter(self, layer: int, positions: int) -> Tensor:
        if positions not in self._taps:
            mixers: list[Any] = [block.mixer for block in self.blocks]
            self._taps[positions] = [mixer.taps(positions)[0] for mixer in mixers]
        return self._taps[positions][layer]

    def _convolve(self, layer: int, u_BDL: Tensor, positions: int, clean_from: int) -> Tensor:
        """Convolve; samples before `clean_from` may be wrong (they are not used)."""
        length = u_BDL.shape[-1]
        n_fft = fft_length(2 * length - 1 - clean_from)
        key = (layer, n_fft, length)
        if key not in self._spectra:
            k_DL = self._filter(layer, positions)[:, :length]
            mixer: Any = self.blocks[layer].mixer
            spectrum = torch.fft.rfft(k_DL, n=n_fft)
            skip_D = mixer.filter_fn.skip()
            self._spectra[key] = spectrum if skip_D is None else spectrum + skip_D[:, None]
        K_DF = self._spectra[key]
        y_BDL = torch.empty_like(u_BDL)
        for row in range(u_BDL.shape[0]):
            U_DF = torch.fft.rfft(u_BDL[row], n=n_fft).mul_(K_DF)
            y_BDL[row] = torch.fft.irfft(U_DF, n=n_fft)[..., :length]
        return y_BDL

    def _finish_block(self, block: Block, z_BDL: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Project out, add to the running sum, and run the MLP in pieces that fit the cache."""
        mixer: Any = block.mixer
        residual = residual + from_channel_major(mixer.out_proj, z_BDL)
        if block.mlp.fuses():
            return block.mlp.fused(residual, block.norm2), residual
        x = block.norm2(residual).flatten(0, 1)
        hidden = torch.empty_like(x)
        for low in range(0, x.shape[0], _MLP_ROWS):
            inner = block.mlp.fc1(x[low : low + _MLP_ROWS])
            hidden[low : low + _MLP_ROWS] = block.mlp.fc2(F.gelu(inner, approximate="tanh"))
        return hidden.view(residual.shape), residual

    def _head(self, total: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.backbone.ln_f(total)
        weight = self.model.lm_head.weight[BASE_TOKEN_IDS[0] : BASE_TOKEN_IDS[-1] + 1]
        return F.linear(hidden, weight), hidden

    def _reference(
        self, codes_RW: NDArray[np.uint8], offset: int, pooled: bool, sparse: int
    ) -> tuple[list[_Layer], Tensor, NDArray[np.float32] | None]:
        """Read REF; give what ALT needs, the logits from ``offset - 1`` on, the pooled states."""
        ids_RP = self._ids(codes_RW if pooled else codes_RW[:, :-1])
        positions, state = ids_RP.shape[1], []
        hidden: Tensor = self.backbone.embeddings(ids_RP)
        residual: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            mixer: Any = block.mixer
            residual = hidden if residual is None else hidden + residual
            last = layer == len(self.blocks) - 1
            first = offset - 1 if last and not pooled else 0
            p_RPL = to_channel_major(mixer.in_proj, block.norm1(residual))
            taps, bias = mixer.short_filter.weight[:, 0], mixer.short_filter.bias
            tail = p_RPL[..., offset - taps.shape[-1] + 1 : offset].clone()
            x0, x1, v = short_conv(p_RPL, taps, bias).split(mixer.d_model, dim=1)
            u_RDP = x1 * v
            y_RDP = self._convolve(layer, u_RDP, positions, first)
            keep_gate = layer == 0 and sparse > 0
            state.append(
                _Layer(
                    tail,
                    u_RDP[..., offset:].clone(),
                    y_RDP[..., offset:].clone(),
                    x0[..., offset:].clone() if keep_gate else None,
                )
            )
            hidden, residual = self._finish_block(
                block, y_RDP[..., first:] * x0[..., first:], residual[:, first:]
            )
        assert residual is not None
        logits, states = self._head(hidden + residual)
        if not pooled:
            return state, logits, None
        self._prefix_sum = states[:, :offset].sum(1)
        mean = (self._prefix_sum + states[:, offset:].sum(1)) / positions
        return state, logits[:, offset - 1 :], mean.float().cpu().numpy()

    def _alternative(
        self,
        codes_AW: NDArray[np.uint8],
        offset: int,
        state: list[_Layer],
        owner: Tensor,
        sparse: int,
        pooled: bool,
    ) -> tuple[Tensor, NDArray[np.float32] | None]:
        """Read ALT from the variant on; give its logits there and the pooled states."""
        codes = codes_AW[:, offset:] if pooled else codes_AW[:, offset:-1]
        positions = codes_AW.shape[1] - (0 if pooled else 1)
        hidden: Tensor = self.backbone.embeddings(self._ids(codes))
        residual: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            mixer: Any = block.mixer
            ref = state[layer]
            residual = hidden if residual is None else hidden + residual
            count = sparse if layer == 0 and sparse else residual.shape[1]
            p_APL = to_channel_major(mixer.in_proj, block.norm1(residual[:, :count]))
            p_APL = torch.cat((ref.tail[owner], p_APL), dim=-1)
            taps, bias = mixer.short_filter.weight[:, 0], mixer.short_filter.bias
            before = taps.shape[-1] - 1
            x0, x1, v = short_conv(p_APL, taps, bias)[..., before:].split(mixer.d_model, dim=1)
            change = x1 * v - ref.u[owner, :, :count]
            y_ADS = ref.y[owner]
            if count < residual.shape[1] or (layer == 0 and sparse):
                assert ref.gate is not None
                self._add_taps(layer, change, y_ADS, positions)
                gate = ref.gate[owner]
                gate[..., :count] = x0
                x0 = gate
            else:
                y_ADS += self._convolve(layer, change, positions, 0)
            hidden, residual = self._finish_block(block, y_ADS.mul_(x0), residual)
        assert residual is not None
        logits, states = self._head(hidden + residual)
        if not pooled:
            return logits, None
        mean = (self._prefix_sum[owner] + states.sum(1)) / positions
        return logits, mean.float().cpu().numpy()

    def _add_taps(self, layer: int, change_ADC: Tensor, y_ADS: Tensor, positions: int) -> None:
        """Add the convolution of a few samples, tap by tap."""
        k_DP = self._filter(layer, positions)
        length = y_ADS.shape[-1]
        for place in range(change_ADC.shape[-1]):
            sample = change_ADC[..., place : place + 1]
            y_ADS[..., place:].addcmul_(sample, k_DP[:, : length - place])
        mixer: Any = self.blocks[layer].mixer
        skip_D = mixer.filter_fn.skip()
        if skip_D is not None:
            y_ADS[..., : change_ADC.shape[-1]].addcmul_(change_ADC, skip_D[:, None])

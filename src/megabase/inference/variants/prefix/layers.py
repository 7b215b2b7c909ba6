"""Parts of a Hyena layer that are computed alone, keeping what many windows share.

What the first layer makes of DNA before its long convolution depends on a k-mer of as many bases as
the short convolution has taps: u = x1 * v and the gate x0 are looked up in a table of k-mers.
Behind it, everything but the long convolution is done by C++ kernels where they are installed.

Shape suffixes: B rows, L positions, D width, C projected channels, F frequencies, K k-mers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.genome.alphabet import BASE_BITS
from megabase.layers.backbone import Block
from megabase.layers.linear import from_channel_major
from megabase.ops import backend
from megabase.ops.hyena_mixer.packed import PackedLayer
from megabase.ops.long_conv import fft_length
from megabase.ops.products import matmul
from megabase.ops.short_conv import short_conv

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


class PrefixLayers:
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
        self._packed = [_pack(block) for block in self.blocks]

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

    def kmers(self, codes_BL: NDArray[np.uint8], start: int) -> Tensor:
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
        packed = self._packed[layer]
        if packed is not None:
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
        packed = self._packed[layer]
        if packed is not None:
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


def _pack(block: Block) -> PackedLayer | None:
    """Pack the weights of a layer, whose modules do nothing else; None without kernels for it."""
    mixer: Any = block.mixer
    mlp, short = block.mlp, mixer.short_filter
    norms = [(norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)]
    return PackedLayer.of(
        norms,
        [
            mixer.in_proj.weight, mixer.in_proj.bias, short.weight[:, 0], short.bias,
            mixer.out_proj.weight, mixer.out_proj.bias, mlp.fc1.weight, mlp.fc1.bias,
            mlp.fc2.weight, mlp.fc2.bias,
        ],
    )  # fmt: skip

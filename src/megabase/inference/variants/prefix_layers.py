"""Pieces of a Hyena layer that are computed alone, with what many windows share kept.

What the first layer makes of DNA before its long convolution depends on a word of as many bases as
the short convolution has taps: u = x1 * v and the gate x0 are looked up in a table of words. Of the
layers behind it, everything but the long convolution is done by C++ kernels where they are
installed, and else by products of pieces that fit the cache.

Shape suffixes: B rows, L positions, D width, C projected channels, F frequencies, W words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.genome.alphabet import BASE_BITS
from megabase.layers.backbone import Block
from megabase.layers.linear import bare, from_channel_major
from megabase.ops import backend
from megabase.ops.fft_lengths import fft_length
from megabase.ops.packed_layer import PackedLayer
from megabase.ops.products import matmul, matmul_gelu
from megabase.ops.short_conv import short_conv

__all__ = ["LayerPieces"]

_ROWS = 1 << 10
"""Positions whose inner activations exist at a time: they stay in the cache."""
_LONG = 128
"""Positions from which a row is multiplied alone; shorter rows go together."""
_LETTERS = 6
"""Of a word: A, C, G, T, N, and nothing, before the start."""
_WORDS = _LETTERS**4
"""Most words of a table; more would not stay near the core."""
_STEPS = 8
"""Lengths of transforms in a window: variants at many places share the spectra of these."""


class LayerPieces:
    """Pieces of the layers of a causal model of order 2.

    Parameters
    ----------
    blocks
        The layers; their mixers are Hyena operators.
    """

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        mixer: Any = blocks[0].mixer
        self.reach = int(mixer.short_filter.weight.shape[-1])
        self._filters: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
        self._spectra: dict[tuple[int, int, int], Tensor] = {}
        self._table: tuple[Tensor, Tensor] | None = None
        self._packed: list[PackedLayer | None] = [None] * len(blocks)

    @property
    def has_words(self) -> bool:
        """Whether the first layer is looked up."""
        return _LETTERS**self.reach <= _WORDS

    def clear(self) -> None:
        """Forget filters and their spectra."""
        self._filters.clear()
        self._spectra.clear()

    def pack(self) -> None:
        """Lay the weights out for the kernels, where there are kernels for them."""
        self._packed = [_pack(block) for block in self.blocks]

    def prepare(self, letters_LD: Tensor) -> None:
        """Make the table of words from the embeddings of A, C, G, T and N, (5, D)."""
        block, taps = self.blocks[0], self.reach
        mixer: Any = block.mixer
        p_CL = self.project(mixer, block.norm1(letters_LD[None]), slice(None))[0]
        p_CL = torch.cat((p_CL, p_CL.new_zeros(p_CL.shape[0], 1)), dim=1)
        s_CW: Tensor = p_CL.new_zeros(p_CL.shape[0], 1)
        for tap in range(taps):  # the last one is at the base itself, and changes fastest
            own = mixer.short_filter.weight[:, 0, tap, None] * p_CL
            s_CW = (s_CW[:, :, None] + own[:, None]).flatten(1)
        if mixer.short_filter.bias is not None:
            s_CW = s_CW + mixer.short_filter.bias[:, None]
        x0_DW, x1_DW, v_DW = s_CW.split(mixer.d_model, dim=0)
        self._table = x0_DW.t().contiguous(), x1_DW * v_DW

    def words(self, codes_BL: NDArray[np.uint8], start: int) -> Tensor:
        """Give the number of the word that ends at each base from `start` on, (B, L - start)."""
        letters = (codes_BL[:, max(0, start - self.reach + 1) :] & BASE_BITS).astype(np.int32)
        missing = self.reach - 1 - start
        if missing > 0:
            letters = np.pad(letters, ((0, 0), (missing, 0)), constant_values=_LETTERS - 1)
        length = codes_BL.shape[1] - start
        found = np.zeros((len(letters), length), np.int32)
        for tap in range(self.reach):
            found = found * _LETTERS + letters[:, tap : tap + length]
        return torch.from_numpy(found)

    def first(self, words_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the gate x0 (B, L, D) and u = x1 * v (B, D, L) of the first layer."""
        assert self._table is not None
        x0_WD, u_DW = self._table
        gate = x0_WD.index_select(0, words_BL.flatten()).view(*words_BL.shape, -1)
        return gate, _stacked([u_DW.index_select(1, words) for words in words_BL])

    def open(self, layer: int, x_BLD: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Give the gate x0 (B, L, D) and u = x1 * v (B, D, L) of a layer from `first` on.

        The positions before `first` are those that the short convolution sees, or none.
        """
        packed = self._packed[layer]
        if packed is not None:
            return packed.open(x_BLD, first)
        block = self.blocks[layer]
        mixer: Any = block.mixer
        p_BCL = self.project(mixer, block.norm1(x_BLD), slice(None))
        x0, x1, v = self.short(mixer, p_BCL)[..., first:].split(mixer.d_model, dim=1)
        return x0.transpose(1, 2), x1 * v

    def filter(self, layer: int, positions: int) -> tuple[Tensor, Tensor | None]:
        """Give taps (D, positions) and skip term (D,) of a layer for a number of positions."""
        if positions not in self._filters:
            mixers: list[Any] = [block.mixer for block in self.blocks]
            both = [mixer.filters(positions) for mixer in mixers]
            self._filters[positions] = [(taps, skip) for (taps,), (skip,) in both]
        return self._filters[positions][layer]

    def convolve(self, layer: int, u_BDL: Tensor, positions: int, start: int) -> Tensor:
        """Convolve; give the samples from `start` on."""
        length, step = u_BDL.shape[-1], -(-positions // _STEPS)
        most = min(positions, -(-length // step) * step)
        n_fft = fft_length(2 * most - 1 - start // step * step)
        key = (layer, n_fft, most)
        if key not in self._spectra:
            k_DL, skip_D = self.filter(layer, positions)
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

    def project(self, mixer: Any, x_BLD: Tensor, channels: slice) -> Tensor:
        """Give some of the projected channels, (B, C, L)."""
        w_CD, bias = mixer.in_proj.weight[channels], mixer.in_proj.bias
        bias_C1 = None if bias is None else bias[channels, None]
        if x_BLD.device.type == "cpu" and x_BLD.shape[1] >= _LONG:
            return _stacked([matmul(w_CD, x_LD.t(), bias_C1) for x_LD in x_BLD])
        p_BCL = torch.matmul(w_CD, x_BLD.transpose(1, 2))
        return p_BCL if bias_C1 is None else p_BCL.add_(bias_C1)

    def short(self, mixer: Any, p_BCL: Tensor, channels: slice = slice(None)) -> Tensor:
        """Apply the short convolution to some of the channels."""
        bias = mixer.short_filter.bias
        taps_CK = mixer.short_filter.weight[channels, 0]
        return short_conv(p_BCL, taps_CK, None if bias is None else bias[channels])

    def close(self, layer: int, y_BDL: Tensor, gate_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        """Gate what the convolution gave, project it, and run the MLP.

        Parameters
        ----------
        layer
            Number of the layer.
        y_BDL, gate_BLD
            The output of the long convolution and the gate x0, which may be overwritten.
        x_BLD
            The running sum before the layer.

        Returns
        -------
        Tensor
            The running sum after the layer.
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
        if backend.use_reference() or x_ND.device.type != "cpu":
            return x_BLD + mlp(x_ND).view(x_BLD.shape)
        parts = [
            matmul(matmul_gelu(part, mlp.fc1.weight.t(), mlp.fc1.bias), mlp.fc2.weight.t(),
                   mlp.fc2.bias)
            for part in x_ND.split(_ROWS)
        ]  # fmt: skip
        return x_BLD + (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x_BLD.shape)


def _stacked(rows: list[Tensor]) -> Tensor:
    """Stack rows; a single one is not copied."""
    return rows[0][None] if len(rows) == 1 else torch.stack(rows)


def _pack(block: Block) -> PackedLayer | None:
    mixer: Any = block.mixer
    mlp, short = block.mlp, mixer.short_filter
    maps = (mixer.in_proj, mixer.out_proj, mlp.fc1, mlp.fc2)
    if not bare(block.norm1, block.norm2, short, *maps):
        return None
    norms = [(norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)]
    return PackedLayer.of(
        norms,
        [
            mixer.in_proj.weight, mixer.in_proj.bias, short.weight[:, 0], short.bias,
            mixer.out_proj.weight, mixer.out_proj.bias, mlp.fc1.weight, mlp.fc1.bias,
            mlp.fc2.weight, mlp.fc2.bias,
        ],
    )  # fmt: skip

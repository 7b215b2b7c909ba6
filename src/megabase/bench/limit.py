"""The limit of a training step: its matrix products and Fourier transforms, and nothing else.

Sizes are those of HyenaDNA of order 2 computed the published way: of each product the forward one
and the two of the backward pass, of each long convolution three transforms forward and three back.
What is computed again to save memory is not counted. Outputs are reused, so nothing is allocated.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from megabase.ops.products import matmul

__all__ = ["Limit", "product_sizes"]

_PIECE = 1_024


def product_sizes(config: Any, tokens: int, length: int) -> list[tuple[int, int, int]]:
    """List (rows, inputs, outputs) of every linear map of a step.

    Parameters
    ----------
    config
        HyenaDNA configuration.
    tokens, length
        Positions of the whole batch, and of one sequence.
    """
    d, inner, width = config.d_model, config.d_inner, config.filter_order
    layer = [(tokens, d, 3 * d), (tokens, d, d), (tokens, d, inner), (tokens, inner, d)]
    layer += [(length, config.emb_dim, width), (length, width, d)]
    layer += [(length, width, width)] * config.num_inner_mlps
    return layer * config.n_layer + [(tokens, d, config.vocab_rows)]


class Limit:
    """Bare products and transforms of one step.

    Parameters
    ----------
    config
        HyenaDNA configuration.
    batch, length
        Shape of the step.
    dtype
        Of the products of blocks and head; those of the filter are in float32.
    """

    def __init__(self, config: Any, batch: int, length: int, dtype: torch.dtype) -> None:
        self.config, self.batch, self.length, self.dtype = config, batch, length, dtype
        self.sizes = product_sizes(config, batch * length, length)
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._transform: dict[str, Tensor] = {}

    def _matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        key = (name, rows, columns, dtype)
        if key not in self._kept:
            self._kept[key] = torch.randn(rows, columns).mul_(0.1).to(dtype)
        return self._kept[key]

    def products(self) -> float:
        """Give the seconds of all products, each over the whole length with a reused output."""
        calls = []
        for number, (rows, inputs, outputs) in enumerate(self.sizes):
            dtype = torch.float32 if self._is_filter(number) else self.dtype
            x, y = (self._matrix("in", rows, n, dtype) for n in (inputs, outputs))
            out_y = self._matrix("out", rows, outputs, dtype)
            out_x = self._matrix("out", rows, inputs, dtype)
            w, dw = (self._matrix(name, outputs, inputs, dtype) for name in ("w", "dw"))
            calls.append((x, y, w, out_x, out_y, dw))
        began = time.perf_counter()
        for x, y, w, out_x, out_y, dw in calls:
            torch.mm(x, w.t(), out=out_y)
            torch.mm(y, w, out=out_x)
            torch.mm(y.t(), x, out=dw)
        return time.perf_counter() - began

    def _is_filter(self, number: int) -> bool:
        per_layer = (len(self.sizes) - 1) // self.config.n_layer
        return number < len(self.sizes) - 1 and number % per_layer >= 4

    def products_in_cache(self) -> float:
        """Give the seconds of all products in pieces of a length that stays in the cache.

        Pieces are not read from memory anew, and the quicker of two libraries is used: no
        computation of a step can be as quick.
        """
        seconds = 0.0
        for number, (rows, inputs, outputs) in enumerate(self.sizes):
            dtype = torch.float32 if self._is_filter(number) else self.dtype
            size = min(rows, _PIECE)
            x, y = (self._matrix("piece", size, n, dtype) for n in (inputs, outputs))
            w = self._matrix("w", outputs, inputs, dtype)
            began = time.perf_counter()
            for _ in range(-(-rows // size)):
                matmul(x, w.t())
                matmul(y, w)
                matmul(y.t(), x)
            seconds += time.perf_counter() - began
        return seconds

    def transforms(self) -> float:
        """Give the seconds of all transforms of twice the length, with reused outputs."""
        d, n = self.config.d_model, 2 * self.length
        rows = self.batch * d
        if "samples" not in self._transform:
            samples = torch.zeros(rows, n)
            samples[:, : self.length] = 1e-3
            self._transform["samples"] = samples
            self._transform["spectrum"] = torch.fft.rfft(samples)
        samples, spectrum = self._transform["samples"], self._transform["spectrum"]
        began = time.perf_counter()
        for _ in range(self.config.n_layer):
            for count in (rows, rows, d):  # input, incoming gradient; taps
                torch.fft.rfft(samples[:count], out=spectrum[:count])
            for count in (rows, rows, d):  # output, input's gradient; taps' gradient
                torch.fft.irfft(spectrum[:count], n=n, out=samples[:count])
        return time.perf_counter() - began

    def forget(self) -> None:
        """Free what the transforms or products use."""
        self._kept.clear()
        self._transform.clear()

"""Cutting a batch into pieces that stay in the cache, and a LayerNorm computed piece by piece.

Shape suffixes: B batch, L positions, D width; b and l are those of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PIECE_POSITIONS = 1024
"""Positions of a piece on a CPU: long enough for products, short enough for a core's own cache."""

_FAR = 1 << 16
"""Positions of a piece elsewhere, where starting an operation costs more than memory."""


class Piece(NamedTuple):
    """Some positions of some sequences."""

    b: slice
    """Sequences."""
    at: slice
    """Positions."""
    wide: slice
    """Positions with those around them that a short convolution reads."""
    inner: slice
    """Where `at` lies within `wide`."""


def pieces(
    rows: slice, length: int, like: Tensor, before: int = 0, after: int = 0
) -> Iterator[Piece]:
    """Cut the sequences `rows` into pieces: several whole sequences, or a part of one.

    `like` is on the device of the work; `before` and `after` are neighboring positions that `wide`
    adds on either side, as far as there are any.
    """
    size = PIECE_POSITIONS if like.device.type == "cpu" else _FAR
    together = max(1, size // max(1, length))
    for first in range(rows.start, rows.stop, together):
        b = slice(first, min(first + together, rows.stop))
        for start in range(0, length, size):
            stop = min(start + size, length)
            wide = slice(max(0, start - before), min(length, stop + after))
            inner = slice(start - wide.start, stop - wide.start)
            yield Piece(b, slice(start, stop), wide, inner)


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last axis, or none when `weight` is None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def apply(self, x_blD: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalize in the dtype of the weights, and give the result in `dtype`."""
        if self.weight is None:
            return x_blD.to(dtype)
        x_blD = x_blD.to(self.weight.dtype)
        width = [x_blD.shape[-1]]
        return torch.native_layer_norm(x_blD, width, self.weight, self.bias, self.eps)[0].to(dtype)

    def backward(self, dh_blD: Tensor, x_blD: Tensor, sums: tuple[Tensor, Tensor] | None) -> Tensor:
        """Give the gradient of `x_blD`, and add those of weight and bias to `sums`."""
        if self.weight is None:
            return dh_blD
        # Sums over positions and the subtraction of means are wide whatever the weights are.
        dtype = torch.promote_types(self.weight.dtype, dh_blD.dtype)
        x_blD = x_blD.to(self.weight.dtype).to(dtype)
        weight, width = self.weight.to(dtype), [x_blD.shape[-1]]
        bias = None if self.bias is None else self.bias.to(dtype)
        _, mean, rstd = torch.native_layer_norm(x_blD, width, weight, bias, self.eps)
        dx_blD, dw_D, db_D = torch.ops.aten.native_layer_norm_backward(
            dh_blD.to(dtype), x_blD, width, mean, rstd, weight, bias,
            [True, sums is not None, sums is not None],
        )  # fmt: skip
        if sums is not None:
            sums[0].add_(dw_D)
            sums[1].add_(db_D)
        return dx_blD

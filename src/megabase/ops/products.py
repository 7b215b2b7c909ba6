"""Matrix products by the quickest library at hand.

On x86 torch multiplies float32 matrices with MKL, which on some processors leaves half of the
vector width unused; oneDNN, which torch brings too, does not. Values differ by rounding only.
"""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops.registry import wide_dtype

PIECE_POSITIONS = 1024
"""Positions of a piece: long enough for products, short enough for a core's own cache."""


class Piece(NamedTuple):
    """Some positions of some sequences."""

    b: slice  # sequences
    at: slice  # positions
    wide: slice  # with those around them that a short convolution reads
    inner: slice  # where `at` lies within `wide`


def pieces(rows: slice, length: int, before: int = 0, after: int = 0) -> Iterator[Piece]:
    """Cut the sequences `rows` into pieces: several whole sequences, or a part of one.

    `before` and `after` are neighboring positions that `wide` adds on either side, as far as there
    are any.
    """
    together = max(1, PIECE_POSITIONS // max(1, length))
    for first in range(rows.start, rows.stop, together):
        b = slice(first, min(first + together, rows.stop))
        for start in range(0, length, PIECE_POSITIONS):
            stop = min(start + PIECE_POSITIONS, length)
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
        dx_blD, *found = torch.ops.aten.native_layer_norm_backward(
            dh_blD.to(dtype), x_blD, width, mean, rstd, weight, bias,
            [True, sums is not None, sums is not None],
        )  # fmt: skip
        for total, own in zip(sums or (), found, strict=False):
            total.add_(own)
        return dx_blD

    def backward_into(
        self, a: Tensor, b: Tensor, x_ND: Tensor, dx_ND: Tensor | None, sums: tuple[Tensor, Tensor]
    ) -> None:
        """Write the gradients of all positions, where that of the norm is the product ``a @ b``.

        Those of weight and bias are written if they have elements.
        """
        for total in sums:
            if total.numel():
                total.zero_()
        wanted = sums[0].numel() > 0 and self.weight is not None
        if self.weight is None and dx_ND is not None:
            product_into(dx_ND, a, b)
        elif dx_ND is not None or wanted:
            dh_ND = a @ b
            wide = dh_ND.to(wide_dtype(dh_ND.dtype))
            found = self.backward(wide, x_ND, sums if wanted else None)
            if dx_ND is not None:
                dx_ND.copy_(found)


def product_into(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Write ``a @ b`` into `total`, which may be wider."""
    if total.dtype == a.dtype:
        torch.mm(a, b, out=total)
    else:
        total.copy_(a @ b)


_SMALL = 1 << 18  # multiplications below which starting the other library costs more than it saves
_FEW = 256  # summands up to which a column-major left matrix is taken as it is


def _find_onednn() -> bool:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not x86 or not torch.backends.mkldnn.is_available():
        return False
    try:
        return len(_linear(torch.ones(2, 2), torch.ones(2, 2))) == 2
    except (AttributeError, RuntimeError):
        return False


_ONEDNN: list[bool] = []
"""Whether oneDNN is there, once it was looked for: a list, because compilers can read one."""


def _uses_onednn() -> bool:
    """Say whether float32 products on this CPU go through oneDNN."""
    if not _ONEDNN:
        _ONEDNN.append(_find_onednn())
    return _ONEDNN[0] and bool(torch.backends.mkldnn.enabled)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Map rows, and apply GELU in its tanh form."""
    then = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, *then)


def _dense(x: Tensor) -> Tensor:
    """Copy a matrix without gaps between rows or columns, unless it has none."""
    if x.is_contiguous() or x.t().is_contiguous():
        return x
    return x.contiguous() if x.stride(1) == 1 else x.t().contiguous().t()


def _pays(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN multiplies these."""
    return (
        a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.shape[0] * a.shape[1] * b.shape[1] >= _SMALL
        and _uses_onednn()
    )


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Multiply (m, k) by (k, n), row-major or column-major; the result is whichever is quicker.

    The bias is added to every row, shape (n,), or to every column, shape (m, 1). With `gelu` that
    is applied in its tanh form, without a gradient: `b` is column-major and the bias (n,).
    """
    if not _pays(a, b):
        found = a @ b if bias is None else torch.addmm(bias, a, b)
        return F.gelu(found, approximate="tanh") if gelu else found
    if gelu:
        return _linear(_dense(a), b.t(), bias, gelu=True)
    # The library has a slow general way for matrices with gaps between their rows.
    a, b = _dense(a), _dense(b)
    own = bias if bias is not None and bias.dim() == 1 else None
    if a.is_contiguous() or (a.shape[1] <= _FEW and a.shape[0] > b.shape[1]):
        out = _linear(a, b.t(), own)
    elif a.numel() <= b.numel():
        out = _linear(a.contiguous(), b.t(), own)
    else:
        # The left matrix should be row-major; of the two transposed ones the smaller is copied.
        out = _linear(b.t().contiguous(), a).t()
        if own is not None:
            out += own
    if bias is not None and own is None:
        out += bias
    return out


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to `total`, (m, n), which may be wider; of stacks the sum of all products."""
    if a.dim() == 3:
        if a.shape[0] > 1 and a.shape[2] < 128:
            total += torch.bmm(a, b).sum(0, dtype=total.dtype)
            return
        for one, other in zip(a, b, strict=True):
            add_product(total, one, other)
        return
    total += matmul(a, b)

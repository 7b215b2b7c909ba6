"""What several kernels use: sine and cosine, and the sum of what programs summed apart."""
# pyright: reportMissingParameterType=false

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.triton import blocks, launch

_ROWS, _COLUMNS = 32, 64
"""Tile of partial sums: columns are few, so that many programs share them."""


@triton.jit
def _sum_rows(partial, found, rows, size, ENDS: tl.constexpr, R: tl.constexpr, S: tl.constexpr):
    c = tl.program_id(0) * S + tl.arange(0, S)
    total = tl.zeros([R, S], tl.float32)
    for first in range(0, rows, R):
        r = (first + tl.arange(0, R))[:, None].to(tl.int64)
        here = (r < rows) & (c < size)[None, :]
        total += tl.load(partial + r * size + c[None, :], here, 0.0)
    sums = tl.sum(total, 0)
    for i in tl.static_range(len(found)):
        begin = 0 if i == 0 else ENDS[i - 1]
        value = sums.to(found[i].dtype.element_ty)
        tl.store(found[i] + c - begin, value, (c >= begin) & (c < ENDS[i]))


def sum_rows(partial: Tensor, found: Sequence[Tensor]) -> None:
    """Sum (programs, size) over programs, into tensors that lie one behind the other in it.

    Where there are none the sums of weights are not wanted.
    """
    rows, size = partial.shape
    ends = [0]
    for one in found:
        ends.append(ends[-1] + one.numel())
    launch(
        _sum_rows, (blocks(size, _COLUMNS),), [partial], [tuple(found)], rows, size,
        ENDS=tuple(ends[1:]), R=_ROWS, S=_COLUMNS,
    )  # fmt: skip


@triton.jit
def sine_cosine(x):
    """Give both, exact to float32 for arguments below ten thousand, without branches.

    Those of the library have a long way for huge arguments, which is unrolled for every value of
    a tile and takes minutes to compile.
    """
    # Quarter turns are taken off in three parts, the first two of few bits: products are exact.
    k = tl.floor(x * 0.6366197723675814 + 0.5)
    r = ((x - k * 1.5703125) - k * 4.837512969970703125e-4) - k * 7.54978995489188216e-8
    square = r * r
    sin = -1.9515295891e-4 * square + 8.3321608736e-3
    sin = r + r * square * (sin * square - 1.6666654611e-1)
    cos = 2.443315711809948e-5 * square - 1.388731625493765e-3
    cos = (cos * square + 4.166664568298827e-2) * square * square - 0.5 * square + 1.0
    quarter = k.to(tl.int32) & 3
    odd = (quarter & 1) == 1
    s = tl.where(odd, cos, sin)
    c = tl.where(odd, sin, cos)
    return tl.where(quarter >= 2, -s, s), tl.where((quarter == 1) | (quarter == 2), -c, c)

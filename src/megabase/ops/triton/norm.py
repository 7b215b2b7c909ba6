"""A running sum and its norm in one kernel, and back; GELU and its derivative in one.

Shape suffixes: R rows (positions, or strands of positions), D channels of a row, E inner width.
"""
# pyright: reportMissingParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.triton import blocks, launch, power
from megabase.ops.triton.shared import sum_rows

if TYPE_CHECKING:
    from megabase.ops.norm_mlp import NormKind, NormWeights

_TILE = 2048  # elements that a program works on at once: 16 for each of 128 threads
_PROGRAMS = 512
"""Programs that share the rows where sums over rows are made: a few for each multiprocessor."""


@triton.jit
def _add_norm(
    hidden, residual, weight, bias, normed, total, rows, width, eps,
    RMS: tl.constexpr, STRANDS: tl.constexpr, SWAP: tl.constexpr,
    R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    r = (tl.program_id(0) * R + tl.arange(0, R))[:, None].to(tl.int64)
    d = tl.arange(0, D)[None, :]
    here = (r < rows) & (d < width)
    # Where channel d of the weights lies: the second strand is in reverse order.
    at = tl.where(r % STRANDS == 0, d, width - 1 - d)
    source = (r ^ 1 if SWAP else r) * width + at
    if SWAP and STRANDS == 1:
        source = (rows - 1 - r) * width + (width - 1 - d)
    x = tl.load(hidden + source, here, 0.0).to(tl.float32)
    if residual is not None:
        x += tl.load(residual + source, here, 0.0).to(tl.float32)
    kept = x.to(total.dtype.element_ty)
    tl.store(total + r * width + at, kept, here)
    # The sum may be rounded where it is kept: the norm is of that, as its gradient will be.
    x = kept.to(tl.float32)
    if not RMS:
        x = tl.where(here, x - tl.sum(x, 1, keep_dims=True) / width, 0.0)
    scale = 1 / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / width + eps)
    y = x * scale * tl.load(weight + d, d < width, 0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + d, d < width, 0.0).to(tl.float32)
    tl.store(normed + r * width + at, y.to(normed.dtype.element_ty), here)


@triton.jit
def _add_norm_backward(
    dnormed, dtotal, total, weight, dx, partial, rows, width, eps,
    RMS: tl.constexpr, STRANDS: tl.constexpr, SWAP: tl.constexpr, BIAS: tl.constexpr,
    R: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, D)[None, :]
    dw = tl.zeros([R, D], tl.float32)
    db = tl.zeros([R, D], tl.float32)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        r = (first + tl.arange(0, R))[:, None].to(tl.int64)
        here = (r < rows) & (d < width)
        at = r * width + tl.where(r % STRANDS == 0, d, width - 1 - d)
        x = tl.load(total + at, here, 0.0).to(tl.float32)
        if not RMS:
            x = tl.where(here, x - tl.sum(x, 1, keep_dims=True) / width, 0.0)
        scale = 1 / tl.sqrt(tl.sum(x * x, 1, keep_dims=True) / width + eps)
        x *= scale
        dy = tl.load(dnormed + at, here, 0.0).to(tl.float32)
        dw += dy * x
        if BIAS:
            db += dy
        dy *= tl.load(weight + d, d < width, 0.0).to(tl.float32)
        back = dy - x * (tl.sum(dy * x, 1, keep_dims=True) / width)
        if not RMS:
            back -= tl.sum(dy, 1, keep_dims=True) / width
        back *= scale
        if dtotal is not None:
            back += tl.load(dtotal + at, here, 0.0).to(tl.float32)
        if SWAP and STRANDS == 1:
            at = (rows - 1 - r) * width + (width - 1 - d)
        elif SWAP:
            at = (r ^ 1) * width + tl.where(r % STRANDS == 0, d, width - 1 - d)
        tl.store(dx + at, back.to(dx.dtype.element_ty), here)
    own = partial + tl.program_id(0) * 2 * width + tl.arange(0, D)
    inside = tl.arange(0, D) < width
    tl.store(own, tl.sum(dw, 0), inside)
    tl.store(own + width, tl.sum(db, 0), inside)


def add_norm(
    given: Sequence[Tensor | None], weights: NormWeights, found: Sequence[Tensor], kind: NormKind
) -> None:
    """Write norm and running sum of hidden values and running sum before.

    Of three tensors, the gradients of norm and running sum, and the running sum: the gradient of
    what was added, and of weight and bias, shape (2, width).
    """
    weight, bias, eps = weights
    width = weight.shape[0]
    rows, columns = found[0].numel() // width, power(width, 16)
    each = max(1, _TILE // columns)
    options = {"RMS": kind.rms, "STRANDS": kind.strands, "SWAP": kind.swap}
    tile = {"R": each, "D": columns}
    programs = blocks(rows, each)
    if len(given) == 2:
        reads = [*given, weight, bias]
        launch(_add_norm, (programs,), reads, found, rows, width, eps, **options, **tile)
        return
    programs = min(_PROGRAMS, programs)
    partial = found[0].new_empty((programs, 2 * width), dtype=torch.float32)
    launch(
        _add_norm_backward, (programs,), [*given, weight], [found[0], partial], rows, width, eps,
        **options, BIAS=bias is not None, **tile,
    )  # fmt: skip
    sum_rows(partial, [found[1]])


@triton.jit
def _gelu_backward(
    a_in, dg, g, da, partial, rows, width, R: tl.constexpr, E: tl.constexpr
):  # fmt: skip
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    total = tl.zeros([R, E], tl.float32)
    for first in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        r = (first + tl.arange(0, R))[:, None].to(tl.int64)
        here = (r < rows) & (e < width)
        a = tl.load(a_in + r * width + e, here, 0.0).to(tl.float32)
        s = tl.sigmoid(a * (1.5957691216057308 + 0.07135481627260025 * a * a))
        slope = s + a * s * (1 - s) * (1.5957691216057308 + 0.21406444881780073 * a * a)
        back = slope * tl.load(dg + r * width + e, here, 0.0).to(tl.float32)
        tl.store(g + r * width + e, (a * s).to(g.dtype.element_ty), here)
        tl.store(da + r * width + e, back.to(da.dtype.element_ty), here)
        total += back
    column = tl.program_id(1) * E + tl.arange(0, E)
    tl.store(partial + tl.program_id(0) * width + column, tl.sum(total, 0), column < width)


def gelu_backward(a_RE: Tensor, dg_RE: Tensor, da_sum_E: Tensor | None) -> None:
    """Turn `a_RE` into its GELU and `dg_RE` into the gradient of `a_RE`; write the latter's sum."""
    rows, width = a_RE.shape
    columns = min(256, power(width, 16))
    each = max(1, _TILE // columns)
    programs = min(_PROGRAMS, blocks(rows, each))
    partial = torch.empty(programs, width, dtype=torch.float32, device=a_RE.device)
    launch(
        _gelu_backward, (programs, blocks(width, columns)), [a_RE, dg_RE],
        [a_RE, dg_RE, partial], rows, width, R=each, E=columns,
    )  # fmt: skip
    if da_sum_E is not None:
        sum_rows(partial, [da_sum_E])

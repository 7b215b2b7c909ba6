"""The causal convolution before a scan, with its SiLU, in one kernel, and back in another.

Positions are counted in the order they are read in, so that neither direction is turned around;
inputs before the first are those of `past`, or zeros.

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1; in kernels T and C are blocks
of positions and of channels.
"""
# Kernels are compiled: to a type checker a call of one from another gives nothing.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.triton import blocks, launch, power
from megabase.ops.triton.shared import sum_rows

_POSITIONS, _CHANNELS = 32, 64
"""Tile of a program: rows of 256 bytes, 16 values for each of 128 threads."""


@triton.jit
def _read(
    x, past, b, i, c, inside, length, channels, stride, K: tl.constexpr, REVERSE: tl.constexpr
):
    """Load input i, counted from the first of the past."""
    t = i - (K - 1)
    here = (t >= 0) & (t < length) & inside
    place = length - 1 - t if REVERSE else t
    value = tl.load(x + (b * length + place) * stride + c, here, 0.0).to(tl.float32)
    if past is not None:
        before = (i >= 0) & (t < 0) & inside
        value += tl.load(past + (b * (K - 1) + i) * channels + c, before, 0.0).to(tl.float32)
    return value


@triton.jit
def _sums(
    x, past, taps, bias, b, t, c, inside, length, channels, stride,
    K: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Convolve at output t: (T, C), before SiLU."""
    if bias is None:
        total = tl.zeros_like((t + c).to(tl.float32))
    else:
        total = tl.load(bias + c, inside, 0.0).to(tl.float32)
    for k in tl.static_range(K):
        tap = tl.load(taps + c * K + k, inside, 0.0).to(tl.float32)
        x_k = _read(x, past, b, t + k, c, inside, length, channels, stride, K, REVERSE)
        total += tap * x_k
    return total


@triton.jit
def _conv(
    x, taps, bias, past, y, length, channels, stride,
    K: tl.constexpr, REVERSE: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    c = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside, b = c < channels, tl.program_id(2).to(tl.int64)
    p = _sums(x, past, taps, bias, b, t, c, inside, length, channels, stride, K, REVERSE)
    place = length - 1 - t if REVERSE else t
    y += (b * length + place) * channels + c
    tl.store(y, (p * tl.sigmoid(p)).to(y.dtype.element_ty), (t < length) & inside)


@triton.jit
def _conv_backward(
    dy, x, taps, bias, past, dx, dpast, partial, length, channels, stride,
    K: tl.constexpr, REVERSE: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    # Of inputs, counted from the first of the past.
    i = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    column = tl.program_id(1) * C + tl.arange(0, C)
    c = column[None, :]
    inside, b = c < channels, tl.program_id(2).to(tl.int64)
    own = partial + (b * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * channels
    x_i = _read(x, past, b, i, c, inside, length, channels, stride, K, REVERSE)
    total = tl.zeros([T, C], tl.float32)
    for k in tl.static_range(K):
        # The output that tap k carries the input to.
        t = i - k
        valid = (t >= 0) & (t < length) & inside
        p = _sums(x, past, taps, bias, b, t, c, inside, length, channels, stride, K, REVERSE)
        s = tl.sigmoid(p)
        place = length - 1 - t if REVERSE else t
        dp = tl.load(dy + (b * length + place) * channels + c, valid, 0.0).to(tl.float32)
        dp *= s * (1 + p * (1 - s))
        total += dp * tl.load(taps + c * K + k, inside, 0.0).to(tl.float32)
        tl.store(own + column * K + k, tl.sum(dp * x_i, 0), column < channels)
        if k == K - 1:
            tl.store(own + channels * K + column, tl.sum(dp, 0), column < channels)
    t = i - (K - 1)
    place = length - 1 - t if REVERSE else t
    dx += (b * length + place) * channels + c
    tl.store(dx, total.to(dx.dtype.element_ty), (t >= 0) & (t < length) & inside)
    if dpast is not None:
        dpast += (b * (K - 1) + i) * channels + c
        tl.store(dpast, total.to(dpast.dtype.element_ty), (i < K - 1) & inside)


def _rows(x_BLE: Tensor) -> Tensor:
    """Give a tensor whose rows lie at one distance from another: half a projection, say."""
    even = x_BLE.stride(2) == 1 and x_BLE.stride(0) == x_BLE.shape[1] * x_BLE.stride(1)
    return x_BLE if even else x_BLE.contiguous()


def conv(
    given: Sequence[Tensor | None], reverse: bool, y_BLE: Tensor, grads: Sequence[Tensor] = ()
) -> None:
    """Write the convolution of (x, taps, bias, past), or from its gradient those of all four.

    Gradients of what is None have no elements.
    """
    x, *others = given
    assert x is not None
    assert others[0] is not None
    x = _rows(x)
    taps, bias, past = (t if t is None else t.contiguous() for t in others)
    batch, length, channels = x.shape
    count = others[0].shape[1]
    columns = min(_CHANNELS, power(channels, 16))
    rows = blocks(length + count - 1 if grads else length, _POSITIONS)
    grid, sizes = (rows, blocks(channels, columns), batch), (length, channels, x.stride(1))
    tile = {"K": count, "REVERSE": reverse, "T": _POSITIONS, "C": columns}
    if not grads:
        launch(_conv, grid, [x, taps, bias, past], [y_BLE], *sizes, **tile)
        return
    dx, dtaps, dbias, dpast = grads
    partial = x.new_empty((batch * rows, (count + 1) * channels), dtype=torch.float32)
    launch(
        _conv_backward, grid, [y_BLE.contiguous(), x, taps, bias, past],
        [dx, dpast if past is not None else None, partial], *sizes, **tile,
    )  # fmt: skip
    sum_rows(partial, [dtaps, dbias] if bias is not None else [dtaps])

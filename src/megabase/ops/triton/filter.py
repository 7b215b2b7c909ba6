"""The implicit filter in registers, a block of lags at a time: no hidden value is kept.

The network's weights lie one behind the other in one array: frequencies, then the matrices and
then the biases of the hidden layers. Products are of float32 operands and as exact: a sine of
frequency 10 would show what rounding them does.

Shape suffixes: M lags, E features, W width, C channels; in kernels these are block sizes.
"""
# pyright: reportMissingParameterType=false

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.triton import blocks, launch, power
from megabase.ops.triton.shared import sine_cosine, sum_rows

_LAGS = 32  # lags of a block: hidden values of width 64 take 8 registers of each of 256 threads
_CHANNELS = 64  # channels of the output map that are worked on at once
_WARPS = 8  # warps of a program: products of a tile are unrolled for each thread
_PROGRAMS = 264
"""Programs that share the lags in the backward pass, two for each multiprocessor of an H100: each
keeps its own sums of gradients, which stay in the second-level cache."""
_PRECISION = "tf32x3" if torch.version.hip is None else "ieee"
"""How float32 is multiplied: by three products of tensor cores, which NVIDIA's have."""


@triton.jit
def _features(z, m, lags, features, E: tl.constexpr):
    e = tl.arange(0, E)[None, :]
    at = m[:, None].to(tl.int64) * features + e
    return tl.load(z + at, (m[:, None] < lags) & (e < features), 0.0).to(tl.float32)


@triton.jit
def _matrix(net, layer, features, width, E: tl.constexpr, W: tl.constexpr, FIRST: tl.constexpr):
    """Give the matrix of a hidden layer, (W, inputs); the first one has other inputs."""
    w = tl.arange(0, W)[:, None]
    inputs = features if FIRST else width
    e = tl.arange(0, E if FIRST else W)[None, :]
    at = width + w * inputs + e
    if not FIRST:
        at += width * features + (layer - 1) * width * width
    return tl.load(net + at, (w < width) & (e < inputs), 0.0).to(tl.float32)


@triton.jit
def _angles(
    net, x, layer, layers, features, width,
    E: tl.constexpr, W: tl.constexpr, FIRST: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Apply a hidden layer without its sine to (M, inputs)."""
    w = tl.arange(0, W)
    matrix = _matrix(net, layer, features, width, E, W, FIRST)
    bias = net + width + width * features + (layers - 1) * width * width + layer * width
    bias = tl.load(bias + w, w < width, 0.0).to(tl.float32)
    return tl.dot(x, tl.trans(matrix), input_precision=DOT) + bias


@triton.jit
def _hidden(
    z, net, m, upto, layers, lags, features, width,
    E: tl.constexpr, W: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Give what `upto` hidden layers, at least one, make of the features."""
    w = tl.arange(0, W)
    freq = tl.load(net + w, w < width, 0.0).to(tl.float32)[None, :]
    x = _features(z, m, lags, features, E)
    x, _ = sine_cosine(freq * _angles(net, x, 0, layers, features, width, E, W, True, DOT))
    for layer in range(1, upto):
        a = _angles(net, x, layer, layers, features, width, E, W, False, DOT)
        x, _ = sine_cosine(freq * a)
    return x


@triton.jit
def _window(t, rate, c, m, lags, channels, shift):
    """Give the window of a tile (C, M); 1 without rates."""
    times = tl.load(t + m, m < lags, 0.0).to(tl.float32)[None, :]
    rates = tl.load(rate + c, c < channels, 0.0).to(tl.float32)[:, None]
    return tl.exp(-rates * times) + shift


@triton.jit
def _taps(
    z, t, net, last, rate, k, layers, lags, features, width, channels, shift,
    M: tl.constexpr, E: tl.constexpr, W: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * M + tl.arange(0, M)
    w = tl.arange(0, W)[None, :]
    x = tl.trans(_hidden(z, net, m, layers, layers, lags, features, width, E, W, DOT))
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        inside = (c[:, None] < channels) & (w < width)
        out = tl.load(last + c[:, None] * width + w, inside, 0.0).to(tl.float32)
        y = tl.dot(out, x, input_precision=DOT)
        if rate is not None:
            y *= _window(t, rate, c, m, lags, channels, shift)
        at = c[:, None].to(tl.int64) * lags + m[None, :]
        here = (c[:, None] < channels) & (m[None, :] < lags)
        tl.store(k + at, y.to(k.dtype.element_ty), here)


@triton.jit
def _add(sums, value, inside, seen):
    """Add to a program's own sums; at the first time they hold nothing."""
    old = tl.where(seen, tl.load(sums, inside, 0.0), 0.0)
    tl.store(sums, old + value, inside)


@triton.jit
def _through(
    net, x, dx, freq, dnet, layer, layers, features, width, seen,
    E: tl.constexpr, W: tl.constexpr, FIRST: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Take a gradient (M, W) through the sine of a layer, and add to the sums of the layer.

    Gives the gradient of the layer's output before the sine, and that of the frequencies.
    """
    w = tl.arange(0, W)
    a = _angles(net, x, layer, layers, features, width, E, W, FIRST, DOT)
    _, da = sine_cosine(freq * a)
    da *= dx
    dfreq = tl.sum(da * a, 0)
    da *= freq
    inputs = features if FIRST else width
    e = tl.arange(0, E if FIRST else W)[None, :]
    at = width + w[:, None] * inputs + e
    if not FIRST:
        at += width * features + (layer - 1) * width * width
    inside = (w[:, None] < width) & (e < inputs)
    _add(dnet + at, tl.dot(tl.trans(da), x, input_precision=DOT), inside, seen)
    biases = width + width * features + (layers - 1) * width * width + layer * width
    _add(dnet + biases + w, tl.sum(da, 0), w < width, seen)
    return da, dfreq


@triton.jit
def _taps_backward(
    dk, z, t, net, last, rate, dz, partial,
    layers, lags, features, width, channels, shift, size,
    M: tl.constexpr, E: tl.constexpr, W: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    w = tl.arange(0, W)
    has_w = w < width
    freq = tl.load(net + w, has_w, 0.0).to(tl.float32)[None, :]
    dfreq = tl.zeros([W], tl.float32)
    dnet = partial + tl.program_id(0) * (size + channels * width)
    for start in range(tl.program_id(0) * M, lags, tl.num_programs(0) * M):
        seen = tl.program_id(0) * M < start
        m = start + tl.arange(0, M)
        x = _hidden(z, net, m, layers, layers, lags, features, width, E, W, DOT)
        dx = tl.zeros([M, W], tl.float32)
        for first in range(0, channels, C):
            c = first + tl.arange(0, C)
            at = c[:, None].to(tl.int64) * lags + m[None, :]
            here = (c[:, None] < channels) & (m[None, :] < lags)
            dy = tl.load(dk + at, here, 0.0).to(tl.float32)
            if rate is not None:
                dy *= _window(t, rate, c, m, lags, channels, shift)
            inside = (c[:, None] < channels) & has_w[None, :]
            own = c[:, None] * width + w[None, :]
            out = tl.load(last + own, inside, 0.0).to(tl.float32)
            _add(dnet + size + own, tl.dot(dy, x, input_precision=DOT), inside, seen)
            dx = tl.dot(tl.trans(dy), out, dx, input_precision=DOT)
        for i in range(1, layers):
            layer = layers - i
            x = _hidden(z, net, m, layer, layers, lags, features, width, E, W, DOT)
            da, own_freq = _through(
                net, x, dx, freq, dnet, layer, layers, features, width, seen, E, W, False, DOT
            )
            dfreq += own_freq
            matrix = _matrix(net, layer, features, width, E, W, False)
            dx = tl.dot(da, matrix, input_precision=DOT)
        given = _features(z, m, lags, features, E)
        da, own_freq = _through(
            net, given, dx, freq, dnet, 0, layers, features, width, seen, E, W, True, DOT
        )
        dfreq += own_freq
        if dz is not None:
            e = tl.arange(0, E)[None, :]
            matrix = _matrix(net, 0, features, width, E, W, True)
            back = tl.dot(da, matrix, input_precision=DOT).to(dz.dtype.element_ty)
            at = m[:, None].to(tl.int64) * features + e
            tl.store(dz + at, back, (m[:, None] < lags) & (e < features))
        # What other threads stored is read in the next round.
        tl.debug_barrier()
    tl.store(dnet + w, dfreq, has_w)


def _pack(weights: Any) -> Tensor:
    """Lay frequencies, matrices and biases one behind the other."""
    parts = (weights.freq, *weights.weights, *weights.biases)
    return torch.cat([part.reshape(-1) for part in parts])


def taps(
    z_ME: Tensor, t_M: Tensor, weights: Any, k_CM: Tensor, grads: Sequence[Tensor] = ()
) -> None:
    """Write the taps, or from their gradient that of features, frequencies, layers and last map.

    That of features unless it has no elements.
    """
    (lags, features), (channels, width) = z_ME.shape, weights.last.shape
    constants: dict[str, Any] = {
        "M": min(_LAGS, power(lags, 16)), "E": power(features, 16),
        "W": power(width, 16), "C": min(_CHANNELS, power(channels, 16)), "DOT": _PRECISION,
    }  # fmt: skip
    numbers = (len(weights.weights), lags, features, width, channels, weights.shift)
    net = _pack(weights)
    rate = None if weights.rate is None else weights.rate.contiguous()
    reads = [z_ME.contiguous(), t_M.contiguous(), net, weights.last.contiguous(), rate]
    programs = blocks(lags, constants["M"])
    if not grads:
        launch(_taps, (programs,), reads, [k_CM], *numbers, warps=_WARPS, **constants)
        return
    dz, *sums, dlast = grads
    programs = min(_PROGRAMS, programs)
    partial = net.new_empty((programs, net.shape[0] + dlast.numel()), dtype=torch.float32)
    launch(
        _taps_backward, (programs,), [k_CM.contiguous(), *reads],
        [dz if dz.numel() else None, partial], *numbers, net.shape[0], warps=_WARPS, **constants,
    )  # fmt: skip
    sum_rows(partial, [*sums, dlast])

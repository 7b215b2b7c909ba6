"""Floating-point operations of the operators, for ``torch.utils.flop_counter.FlopCounterMode``.

The convention is torch's, with transforms added: a multiply-add counts as two; elementwise work
(norms, gates, activations, products of spectra) is not counted; a real transform of n points counts
as 2.5 n log2 n. What a backward pass computes again is not counted, so that figures compare with
those of the definitions: the gradient of a product counts twice the product, and that of a
convolution by transforms as much as the convolution. A position, channel and state of the selective
scan counts 6: the exponent, the recurrence and the sum over states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from megabase.ops.fft_lengths import fft_length

Shape = Sequence[int]


def transform_flops(points: int) -> int:
    """Count a real Fourier transform of `points`."""
    return round(2.5 * points * math.log2(points)) if points > 1 else 0


def _taps(x: Shape, w: Shape) -> int:
    return 2 * math.prod(x) * w[-1]


def _long(batch: int, channels: int, length: int) -> int:
    return (2 * batch + 1) * channels * transform_flops(fft_length(2 * length - 1))


def _mlp(x: Shape, w1: Shape) -> int:
    return 4 * math.prod(x) * w1[0]


def _mixer(x: Shape, w: Shape, k: Shape) -> int:
    batch, length, width = x
    short = _taps((batch, 3 * width, length), w)
    return 8 * batch * length * width**2 + short + _long(batch, k[0], length)


def _filter(z: Shape, weights: Sequence[Shape], last: Shape) -> int:
    return 2 * z[0] * sum(math.prod(shape) for shape in (*weights, last))


def _scan(u: Shape, A: Shape) -> int:
    return 6 * math.prod(u) * A[1]


def _short_backward(dy: Any, x: Any, w: Any, after: int, needs_x: bool, needs_taps: bool) -> int:
    return (needs_x + needs_taps) * _taps(x, w)


def _mlp_backward(dy: Any, x: Any, nw: Any, nb: Any, eps: float, w1: Any, *rest: Any) -> int:
    needs_x, needs_weights = rest[-2:]
    if not needs_weights:
        return _mlp(x, w1) if needs_x else 0
    # Of the two products back the second is for the input and the norm.
    return 2 * _mlp(x, w1) if needs_x or nw is not None else 3 * _mlp(x, w1) // 2


def _mixer_backward(dy: Any, kept: Any, x: Any, nw: Any, nb: Any, eps: Any, *rest: Any) -> int:
    w_in, _, w, *_, needs_x, needs_weights, _ = rest
    batch, length, width = x
    project, out = 2 * batch * length * math.prod(w_in), 2 * batch * length * width**2
    inputs = out + (project if needs_x or (needs_weights and nw is not None) else 0)
    return (
        inputs
        + (project + out if needs_weights else 0)
        + (1 + needs_weights) * _taps((batch, 3 * width, length), w)
        + _long(batch, width, length)
    )


def _filter_backward(dk: Any, z: Any, t: Any, freq: Any, weights: Any, *rest: Any) -> int:
    last, needs_z = rest[1], rest[-1]
    first = 0 if needs_z or not weights else 2 * z[0] * math.prod(weights[0])
    return 2 * _filter(z, weights, last) - first


FORMULAS: dict[str, Callable[..., int]] = {
    "short_conv": lambda x, w, *_: _taps(x, w),
    "short_conv_backward": _short_backward,
    "long_conv": lambda u, *_: _long(*u),
    "long_conv_backward": lambda dy, u, *_: _long(*u),
    "norm_mlp": lambda x, nw, nb, eps, w1, *_: _mlp(x, w1),
    "norm_mlp_backward": _mlp_backward,
    "hyena_mixer": lambda x, nw, nb, eps, w_in, b_in, w, b, k, *_: _mixer(x, w, k),
    "hyena_mixer_backward": _mixer_backward,
    "implicit_filter": lambda z, t, f, weights, b, last, *_: _filter(z, weights, last),
    "implicit_filter_backward": _filter_backward,
    "causal_conv": lambda x, taps, *_: _taps(x, taps),
    "causal_conv_backward": lambda dy, x, taps, *_: 2 * _taps(x, taps),
    "selective_scan": lambda u, delta, A, *_: _scan(u, A),
    "selective_scan_backward": lambda dy, df, kept, u, delta, A, *_: 2 * _scan(u, A),
    "selective_scan_blocked": lambda u, delta, A, *_: _scan(u, A),
    "selective_scan_blocked_backward": lambda dy, df, kept, u, delta, A, *_: 2 * _scan(u, A),
}
"""Counts by operator, of the shapes of its tensors and its other arguments."""


def register(name: str, packet: Any) -> None:
    """Tell torch the count of an operator."""
    formula = FORMULAS[name]
    register_flop_formula(packet)(lambda *args, out_shape=None, **_: formula(*args))

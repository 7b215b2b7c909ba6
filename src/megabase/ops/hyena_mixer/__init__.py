"""LayerNorm and the whole Hyena mixer of order 2, in one pass.

A fast path in torch (:mod:`.passes`) and one in C++ (:mod:`.kernel`), each with a backward pass
that keeps only its inputs and, of short sequences, what the transforms read and gave.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend, kernels, triton
from megabase.ops.hyena_mixer import kernel
from megabase.ops.hyena_mixer.passes import Backward, Mixer, MixerOptions, MixerWeights, run_forward
from megabase.ops.long_conv import convolution_flops, lags, long_conv
from megabase.ops.registry import Saved, operator, wants_gradient, wide_dtype
from megabase.ops.short_conv import short_conv, taps_behind, taps_flops

_CHECKS: dict[str, Any] = {
    "rules": {"M": lags}, "least": {"L": 1, "K": 1}, "below": {"after": "K"},
    "same": {"norm_b": "norm_w"},
}  # fmt: skip
"""What holds for the operator and for its gradient."""


class _Needs(NamedTuple):
    """Which gradients of a mixer are wanted."""

    needs_x: bool
    needs_weights: bool
    needs_filter: bool


def hyena_mixer(
    x: Tensor, weights: MixerWeights, *, centered: bool = False, two_sided: bool = False,
    product: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Normalize, project, convolve shortly, gate, convolve over the whole length, gate, project.

    Parameters
    ----------
    x
        Input, shape (batch, length, width).
    weights
        LayerNorm, shapes (width,); projection, shapes (3 width, width) and (3 width,); short
        convolution, shapes (3 width, taps) and (3 width,); filter, shape (width, length), or
        (width, 2 length - 1) when `two_sided`; skip terms, shape (width,), or None; output
        projection, shapes (width, width) and (width,).
    centered
        Whether the short taps lie around the position instead of before it.
    two_sided
        Whether the filter also has negative lags.
    product
        Dtype of the matrix products; that of the weights when None. Short convolution, gates and
        transforms are in float32 at least.

    Returns
    -------
    Tensor
        Shape of `x`, in the dtype of the products. The fast path has no second derivative.
    """
    options = MixerOptions(taps_behind(weights.w, centered), two_sided, product)
    if backend.active() == "reference" or backend.use_plain(x):
        _forward.check(x, *weights, *options, False)
        given: Any = {"centered": centered, "two_sided": two_sided, "product": product}
        return _hyena_mixer_by_parts(x, weights, **given)
    keep = wants_gradient(x, weights) and (x.device.type != "cpu" or kernels.keeps(x))
    return _forward(x, weights, options, keep)[0]


def _hyena_mixer_by_parts(
    x: Tensor, weights: MixerWeights, *, centered: bool = False, two_sided: bool = False,
    product: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Mix by operators and functions of torch for the parts: the definition of the mixer."""
    norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out = weights
    dtype = w_in.dtype if product is None else product
    out_dtype = dtype if product is None else x.dtype
    if norm_w is not None:
        x = F.layer_norm(x.to(norm_w.dtype), x.shape[-1:], norm_w, norm_b, eps)
    p_BLP = F.linear(x.to(dtype), w_in.to(dtype), b_in.to(dtype))
    p_BPL = p_BLP.transpose(1, 2).to(wide_dtype(dtype))
    first_BDL, gate_BDL, v_BDL = short_conv(p_BPL, w, b, centered=centered).chunk(3, 1)
    g_BDL = first_BDL * long_conv(v_BDL * gate_BDL, k, skip, two_sided=two_sided)
    y = F.linear(g_BDL.to(dtype).transpose(1, 2), w_out.to(dtype), b_out.to(dtype))
    return y.to(out_dtype)


def _flops(x: Sequence[int], weights: Any, *_: Any) -> int:
    batch, length, width = x
    short = taps_flops((batch, 3 * width, length), weights.w)
    return 8 * batch * length * width**2 + short + convolution_flops(batch, width, length)


def _in_triton(x: Tensor, weights: MixerWeights, options: MixerOptions) -> bool:
    """Whether Triton computes this; products are in one of its dtypes."""
    known = options.product_dtype(weights) in triton.DTYPES
    return known and backend.use_triton(x, weights.k, weights.w) and x.numel() > 0


def _room_to_keep(
    x: Tensor, weights: MixerWeights, options: MixerOptions, keep: bool
) -> tuple[Tensor, Tensor]:
    """Make room for the transforms' result, channels first, and for the projected channels.

    These in panels of gates and value; what is not kept has no elements.
    """
    batch, length, width = x.shape
    in_kernels = keep and kernel.takes(x, weights, options)
    keep = in_kernels or (keep and _in_triton(x, weights, options))
    wide = wide_dtype(options.product_dtype(weights))
    kept = x.new_empty((batch, width, length) if keep else (0,), dtype=wide)
    if not in_kernels:
        return kept, x.new_empty((0,), dtype=wide)
    panel = kernels.native().panel(x.dtype == torch.float64)
    return kept, x.new_empty((batch, -(-width // panel), 3, length, panel), dtype=wide)


@operator("hyena_mixer", _flops, kept=2, **_CHECKS)
def _forward(
    x: Annotated[Tensor, "B L D"], weights: MixerWeights, options: MixerOptions, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    m = Mixer(x, weights, options)
    kept = _room_to_keep(x, weights, options, keep)
    if kernel.takes(x, weights, options):
        return kernel.forward(m, *kept), *kept
    if _in_triton(x, weights, options):
        from megabase.ops.triton import mixer

        return mixer.forward(m, kept[0]), *kept
    return run_forward(m), *kept


@_forward.register_fake
def _(x: Tensor, weights: MixerWeights, options: MixerOptions, keep: bool) -> tuple[Tensor, ...]:
    out = x.new_empty(x.shape, dtype=weights.w_in.dtype if options.product is None else x.dtype)
    return out, *_room_to_keep(x, weights, options, keep)


def _backward_flops(
    dy: Any, kept: Any, projected: Any, x: Sequence[int], weights: Any, options: Any, needs: _Needs
) -> int:
    batch, length, width = x
    project = 2 * batch * length * math.prod(weights.w_in)
    out = 2 * batch * length * width**2
    to_input = needs.needs_x or (needs.needs_weights and weights.norm_w is not None)
    products = out + to_input * project + needs.needs_weights * (project + out)
    short = taps_flops((batch, 3 * width, length), weights.w)
    return products + (1 + needs.needs_weights) * short + convolution_flops(batch, width, length)


@operator("hyena_mixer_backward", _backward_flops, **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "B L D"], kept: Annotated[Tensor, "B D L|0"],
    projected: Annotated[Tensor, "B Q 3 L C|0"], x: Annotated[Tensor, "B L D"],
    weights: MixerWeights, options: MixerOptions, needs: _Needs,
) -> list[Tensor]:  # fmt: skip
    m, grads = Mixer(x, weights, options), _room(dy, kept, projected, x, weights, options, needs)
    if kernel.takes(x, weights, options):
        kernel.backward(m, dy, kept, projected, grads)
    elif _in_triton(x, weights, options):
        from megabase.ops.triton import mixer

        mixer.backward(m, dy, kept, grads)
    else:
        Backward(m, dy, grads).run()
    return grads


@_backward.register_fake
def _room(
    _dy: Tensor, _kept: Tensor, _projected: Tensor, x: Tensor, weights: MixerWeights,
    options: MixerOptions, needs: _Needs,
) -> list[Tensor]:  # fmt: skip
    """Make room for the gradients; sums over positions are kept in float32 at least."""
    wide, k, skip = wide_dtype(options.product_dtype(weights)), weights.k, weights.skip
    norm, w_in = (weights.w_in.shape[1:],) * 2, weights.w_in.shape
    shapes = [*norm, w_in, w_in[:1], weights.w.shape, w_in[:1], weights.w_out.shape, *norm[:1]]
    *sums, dw_out, db_out = (
        weights.w_in.new_empty(s if needs.needs_weights else (0,), dtype=wide) for s in shapes
    )
    taps = needs.needs_filter
    dskip = skip.new_empty(skip.shape) if skip is not None and taps else k.new_empty((0,))
    dx, dk = x.new_empty(x.shape if needs.needs_x else (0,)), k.new_empty(k.shape if taps else (0,))
    return [dx, *sums, dk, dskip, dw_out, db_out]


@_forward.register_gradients
def _(saved: Saved, dy: Tensor) -> list[Tensor]:
    needs_x, needs, *_ = saved.needs
    needs_weights = any(needs._replace(k=False, skip=False))
    wanted = _Needs(needs_x, needs_weights, needs.k or needs.skip)
    return _backward(dy, *saved.kept, *saved.inputs[:3], wanted)

"""LayerNorm and MLP over pieces of positions, keeping only the input for the backward pass.

Shape suffixes: N positions, D width, E inner width; n is a piece of N.

The inner values of a piece, four times as wide as its input, live in two buffers that stay in the
cache. GELU in its tanh form is ``a s(a (c + d a^2))`` with the logistic function s, which costs a
tenth of a tanh; the backward pass uses one s for the value and the derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from megabase.ops.long_conv.fft import without_autocast
from megabase.ops.norm_mlp import kernel
from megabase.ops.pieces import Norm, pieces
from megabase.ops.products import add_product, matmul
from megabase.ops.registry import Operator

_C = 2 * math.sqrt(2 / math.pi)
_D = 0.044715 * _C


def _logistic(a: Tensor, square: Tensor, s: Tensor) -> None:
    torch.mul(a, a, out=square)
    torch.mul(square, _D, out=s)
    s.add_(_C).mul_(a)
    torch.sigmoid(s, out=s)


def gelu(a: Tensor, square: Tensor, out: Tensor) -> Tensor:
    """Write the tanh form of GELU of `a` into `out`; `square` is overwritten."""
    _logistic(a, square, out)
    return out.mul_(a)


def gelu_with_derivative(a: Tensor, square: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Write GELU of `a` into `value` and its derivative into `square`."""
    _logistic(a, square, value)
    square.mul_(3 * _D).add_(_C).mul_(a)
    # s' (c + 3 d a^2) a + s, and a s.
    torch.ops.aten.sigmoid_backward.grad_input(square, value, grad_input=square)
    square.add_(value)
    return value.mul_(a), square


def _product_dtype(weight: Tensor, product: torch.dtype | None) -> torch.dtype:
    return weight.dtype if product is None else product


_SIGNATURE = (
    "Tensor x, Tensor? norm_w, Tensor? norm_b, float eps, Tensor w1, Tensor b1, Tensor w2, "
    "Tensor b2, ScalarType? product"
)


_SHAPES = {
    "x": "... D", "norm_w": "D", "norm_b": "D", "w1": "E D", "b1": "E", "w2": "D E", "b2": "D",
}  # fmt: skip
_SAME = {"norm_b": "norm_w"}


def _flat(x: Tensor) -> Tensor:
    return x.reshape(1, -1, x.shape[-1])


@Operator("norm_mlp", f"({_SIGNATURE}) -> Tensor", _SHAPES, same=_SAME).implementation
def _forward(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None,
) -> Tensor:
    dtype = _product_dtype(w1_ED, product)
    wide = torch.promote_types(dtype, torch.float32)
    norm, x_1ND = Norm(norm_w, norm_b, eps), _flat(x)
    if kernel.takes(x, norm, (w1_ED, b1_E, w2_DE, b2_D), product):
        return kernel.forward(x, norm, (w1_ED, b1_E, w2_DE, b2_D), product)
    # What joins a running sum is not rounded further than the products were.
    y_dtype = dtype if product is None else x.dtype
    y_1ND = torch.empty(x_1ND.shape, dtype=y_dtype, device=x.device)
    w1_ED, b1_E, w2_DE, b2_D = (t.to(dtype) for t in (w1_ED, b1_E, w2_DE, b2_D))
    with without_autocast(x):
        for piece in pieces(slice(0, 1), x_1ND.shape[1], x):
            h_nD = norm.apply(x_1ND[0, piece.at], dtype)
            a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide)
            g_nE = gelu(a_nE, torch.empty_like(a_nE), torch.empty_like(a_nE)).to(dtype)
            y_1ND[0, piece.at] = matmul(g_nE, w2_DE.t(), b2_D)
    return y_1ND.view(x.shape)


@Operator(
    "norm_mlp_backward",
    f"(Tensor dy, {_SIGNATURE}, bool needs_x, bool needs_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    {"dy": "... D", **_SHAPES},
    same=_SAME,
).implementation
def _backward(
    dy: Tensor,
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = _product_dtype(w1_ED, product)
    wide = torch.promote_types(dtype, torch.float32)
    norm, x_1ND, dy_1ND = Norm(norm_w, norm_b, eps), _flat(x), _flat(dy)
    grads = _backward_shapes(x, w1_ED, w2_DE, needs_x, needs_weights, wide)
    if kernel.takes(x, norm, (w1_ED, b1_E, w2_DE, b2_D), product):
        kernel.backward(dy, x, norm, (w1_ED, b1_E, w2_DE, b2_D), product, grads)
        return grads
    dx_1ND, *sums = grads
    for total in sums:
        total.zero_()
    dnorm_w, dnorm_b, dw1_ED, db1_E, dw2_DE, db2_D = sums
    dw1_DE = torch.zeros_like(dw2_DE)
    dnorm = (dnorm_w, dnorm_b) if needs_weights else None
    w1_ED, b1_E, w2_DE = (t.to(dtype) for t in (w1_ED, b1_E, w2_DE))
    with without_autocast(x):
        dx_1ND = dx_1ND.view(1, -1, x.shape[-1]) if needs_x else dx_1ND
        for piece in pieces(slice(0, 1), x_1ND.shape[1], x):
            x_nD, dy_nD = x_1ND[0, piece.at], dy_1ND[0, piece.at].to(dtype)
            h_nD = norm.apply(x_nD, dtype)
            a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide)
            square_nE, g_nE = torch.empty_like(a_nE), torch.empty_like(a_nE)
            g_nE, slope_nE = gelu_with_derivative(a_nE, square_nE, g_nE)
            if needs_weights:
                add_product(dw2_DE, dy_nD.t(), g_nE.to(dtype))
                db2_D += dy_nD.sum(0, dtype=wide)
            da_nE = slope_nE.mul_(matmul(dy_nD, w2_DE))
            if needs_weights:
                db1_E += da_nE.sum(0)
            da_nE = da_nE.to(dtype)
            if needs_weights:
                add_product(dw1_DE, h_nD.t(), da_nE)
            if needs_x or needs_weights:
                dx_nD = norm.backward(matmul(da_nE, w1_ED).to(wide), x_nD, dnorm)
                if needs_x:
                    dx_1ND[0, piece.at] = dx_nD
    if needs_weights:
        dw1_ED.copy_(dw1_DE.t())
    return grads


def _backward_shapes(
    x: Tensor,
    w1_ED: Tensor,
    w2_DE: Tensor,
    needs_x: bool,
    needs_weights: bool,
    wide: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make room for the gradients; sums over positions are kept in float32 at least."""
    inner, width = w1_ED.shape
    shapes = [(width,), (width,), (inner, width), (inner,), (width, inner), (width,)]
    sums = [w1_ED.new_empty(s if needs_weights else (0,), dtype=wide) for s in shapes]
    return (x.new_empty(x.shape if needs_x else (0,)), *sums)  # pyright: ignore[reportReturnType]


@_forward.register_fake
def _(x: Tensor, norm_w: Any, norm_b: Any, eps: float, w1_ED: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=w1_ED.dtype if rest[-1] is None else x.dtype)


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(_product_dtype(w1_ED, product), torch.float32)
    return _backward_shapes(x, w1_ED, w2_DE, needs_x, needs_weights, wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, norm_w, norm_b, ctx.eps, w1_ED, b1_E, w2_DE, b2_D, ctx.product = inputs
    ctx.save_for_backward(x, norm_w, norm_b, w1_ED, b1_E, w2_DE, b2_D)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, norm_w, norm_b, *weights = ctx.saved_tensors
    needs = list(ctx.needs_input_grad)
    needs_weights = any(needs[1:8])
    dx, dnorm_w, dnorm_b, *sums = _backward(
        dy, x, norm_w, norm_b, ctx.eps, *weights, ctx.product, needs[0], needs_weights
    )
    grads = [dx, dnorm_w, dnorm_b, None, *sums, None]
    owners = [x, norm_w, norm_b, None, *weights, None]
    return tuple(
        grad.to(owner.dtype) if need and owner is not None and grad is not None else None
        for grad, owner, need in zip(grads, owners, needs, strict=True)
    )


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def norm_mlp_blocked(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None = None,
) -> Tensor:
    """Apply LayerNorm and MLP by pieces; see :func:`megabase.ops.norm_mlp.norm_mlp`."""
    return _forward(x, norm_w, norm_b, eps, w1_ED, b1_E, w2_DE, b2_D, product)

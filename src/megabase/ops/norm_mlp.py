"""LayerNorm and the position-wise network of a block, in one pass.

The inner values of a piece live in two buffers that stay in the cache. GELU in its tanh form is
``a s(a (c + d a^2))`` with the logistic function s, which costs a tenth of a tanh.

Shape suffixes: N positions, D width, E inner width; n is a piece of N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend, kernels
from megabase.ops.products import Norm, add_product, matmul, pieces
from megabase.ops.registry import Saved, operator, wide_dtype

# The two constants of GELU's tanh form, as arguments of a logistic function.
_C = 2 * math.sqrt(2 / math.pi)
_D = 0.044715 * _C  # of the cube

_CHECKS: dict[str, Any] = {"same": {"norm_b": "norm_w"}}
"""What holds for the operator and for its gradient."""


class MlpWeights(NamedTuple):
    """A LayerNorm and the two linear maps behind it; without `norm_w` nothing is normalized."""

    norm_w: Annotated[Tensor | None, "D"]
    norm_b: Annotated[Tensor | None, "D"]
    eps: float
    w1: Annotated[Tensor, "E D"]
    b1: Annotated[Tensor, "E"]
    w2: Annotated[Tensor, "D E"]
    b2: Annotated[Tensor, "D"]


def norm_mlp(x: Tensor, weights: MlpWeights, product: torch.dtype | None = None) -> Tensor:
    """Compute ``w2 gelu(w1 norm(x) + b1) + b2`` with the tanh form of GELU.

    The fast path keeps only its inputs for the backward pass; sums over positions are in float32 at
    least.

    Parameters
    ----------
    x
        Input, shape (..., width).
    weights
        LayerNorm, shapes (width,), and linear maps, shapes (inner, width), (inner,),
        (width, inner) and (width,).
    product
        Dtype of the matrix products; that of the weights when None.

    Returns
    -------
    Tensor
        Shape of `x`, in the dtype of the products.
    """
    if backend.use_reference() or backend.use_plain(x):
        _forward.check(x, *weights, product)
        return _norm_mlp_reference(x, weights, product)
    return _forward(x, weights, product)


def _norm_mlp_reference(
    x: Tensor, weights: MlpWeights, product: torch.dtype | None = None
) -> Tensor:
    """Normalize and apply the MLP by torch's functions: the definition of :func:`norm_mlp`."""
    norm_w, norm_b, eps, *maps = weights
    w1, b1, w2, b2 = (t.to(_product_dtype(weights, product)) for t in maps)
    dtype = w1.dtype if product is None else x.dtype
    if norm_w is not None:
        x = F.layer_norm(x.to(norm_w.dtype), x.shape[-1:], norm_w, norm_b, eps)
    y = F.linear(F.gelu(F.linear(x.to(w1.dtype), w1, b1), approximate="tanh"), w2, b2)
    return y.to(dtype)


def _product_dtype(weights: MlpWeights, product: torch.dtype | None) -> torch.dtype:
    return weights.w1.dtype if product is None else product


def _logistic(a: Tensor, square: Tensor, s: Tensor) -> None:
    torch.mul(a, a, out=square)
    torch.mul(square, _D, out=s)
    s.add_(_C).mul_(a)
    torch.sigmoid(s, out=s)


def _gelu(a: Tensor, square: Tensor, out: Tensor) -> Tensor:
    """Write the tanh form of GELU of `a` into `out`; `square` is overwritten."""
    _logistic(a, square, out)
    return out.mul_(a)


def _gelu_with_derivative(a: Tensor, square: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Write GELU of `a` into `value` and its derivative into `square`."""
    _logistic(a, square, value)
    square.mul_(3 * _D).add_(_C).mul_(a)
    # s' (c + 3 d a^2) a + s, and a s.
    torch.ops.aten.sigmoid_backward.grad_input(square, value, grad_input=square)
    square.add_(value)
    return value.mul_(a), square


def _in_kernels(x: Tensor, weights: MlpWeights, product: torch.dtype | None) -> bool:
    """Whether the kernels compute this: CPU tensors of float32 or float64, all alike."""
    given = (x, *(t for t in weights if isinstance(t, Tensor)))
    return (
        kernels.alike(x.dtype, *given)
        and backend.use_kernels(*given)
        and kernels.multiplies(product, weights.w1)
        and x.numel() > 0
    )


def _run_kernels(
    x: Tensor,
    weights: MlpWeights,
    product: torch.dtype | None,
    further: Sequence[Tensor | None],
    backward: bool,
    sums: bool,
) -> None:
    inner, width = weights.w1.shape
    norm_w, norm_b, eps, *maps = weights
    given = [kernels.dense(t) for t in (norm_w, norm_b, x.reshape(-1, width), *maps)]
    kernels.package().native.mlp(
        x.dtype == torch.float64, [x.numel() // width, width, inner, int(sums)], eps,
        [kernels.array(t) for t in (*given, *further)], product == torch.bfloat16, backward,
        torch.get_num_threads(),
    )  # fmt: skip


@operator("norm_mlp", lambda x, weights, _: _flops(x, weights), **_CHECKS)
def _forward(
    x: Annotated[Tensor, "... D"], weights: MlpWeights, product: torch.dtype | None
) -> Tensor:
    width = x.shape[-1]
    # What joins a running sum is not rounded further than the products were.
    y = torch.empty(
        x.shape, dtype=weights.w1.dtype if product is None else x.dtype, device=x.device
    )
    if _in_kernels(x, weights, product):
        _run_kernels(x, weights, product, [y.view(-1, width)], False, False)
        return y
    dtype = _product_dtype(weights, product)
    norm, x_ND, y_ND = Norm(*weights[:3]), x.reshape(-1, width), y.view(-1, width)
    w1_ED, b1_E, w2_DE, b2_D = (t.to(dtype) for t in weights[3:])
    for piece in pieces(slice(0, 1), len(x_ND)):
        h_nD = norm.apply(x_ND[piece.at], dtype)
        a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide_dtype(dtype))
        g_nE = _gelu(a_nE, torch.empty_like(a_nE), torch.empty_like(a_nE)).to(dtype)
        y_ND[piece.at] = matmul(g_nE, w2_DE.t(), b2_D)
    return y


@_forward.register_fake
def _(x: Tensor, weights: MlpWeights, product: torch.dtype | None) -> Tensor:
    return x.new_empty(x.shape, dtype=weights.w1.dtype if product is None else x.dtype)


def _flops(x: Sequence[int], weights: Any) -> int:
    return 4 * math.prod(x) * weights.w1[0]


def _backward_flops(
    dy: Any, x: Sequence[int], weights: Any, product: Any, needs_x: bool, needs_weights: bool
) -> int:
    both = _flops(x, weights)
    if not needs_weights:
        return both if needs_x else 0
    # Of the two products back the second is for the input and the norm.
    return 2 * both if needs_x or weights.norm_w is not None else 3 * both // 2


@operator("norm_mlp_backward", _backward_flops, **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "... D"],
    x: Annotated[Tensor, "... D"],
    weights: MlpWeights,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    grads = dx, *sums = _room(dy, x, weights, product, needs_x, needs_weights)
    width = x.shape[-1]
    if _in_kernels(x, weights, product):
        dnorm_w, dnorm_b, *dmaps = sums
        dx = dx.view(-1, width) if needs_x else dx
        found = (t if t.numel() else None for t in (dx, *dmaps, dnorm_w, dnorm_b))
        further = [kernels.dense(dy.to(x.dtype)).view(-1, width), *found]
        _run_kernels(x, weights, product, further, True, needs_weights)
        return grads
    for total in sums:
        total.zero_()
    dnorm_w, dnorm_b, dw1_ED, db1_E, dw2_DE, db2_D = sums
    dw1_DE = torch.zeros_like(dw2_DE)
    dnorm = (dnorm_w, dnorm_b) if needs_weights else None
    dtype = _product_dtype(weights, product)
    wide, norm = wide_dtype(dtype), Norm(*weights[:3])
    w1_ED, b1_E, w2_DE, _ = (t.to(dtype) for t in weights[3:])
    x_ND, dy_ND = x.reshape(-1, width), dy.reshape(-1, width)
    dx_ND = dx.view(-1, width) if needs_x else dx
    for piece in pieces(slice(0, 1), len(x_ND)):
        x_nD, dy_nD = x_ND[piece.at], dy_ND[piece.at].to(dtype)
        h_nD = norm.apply(x_nD, dtype)
        a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide)
        square_nE, g_nE = torch.empty_like(a_nE), torch.empty_like(a_nE)
        g_nE, slope_nE = _gelu_with_derivative(a_nE, square_nE, g_nE)
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
                dx_ND[piece.at] = dx_nD
    if needs_weights:
        dw1_ED.copy_(dw1_DE.t())
    return grads


@_backward.register_fake
def _room(
    _dy: Tensor,
    x: Tensor,
    weights: MlpWeights,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
) -> list[Tensor]:
    """Make room for the gradients; sums over positions are kept in float32 at least."""
    inner, width = weights.w1.shape
    wide = wide_dtype(_product_dtype(weights, product))
    shapes = [(width,), (width,), (inner, width), (inner,), (width, inner), (width,)]
    sums = [weights.w1.new_empty(s if needs_weights else (0,), dtype=wide) for s in shapes]
    return [x.new_empty(x.shape if needs_x else (0,)), *sums]


@_forward.register_gradients
def _(saved: Saved, dy: Tensor) -> list[Tensor]:
    needs_x, needs_weights, _ = saved.needs
    return _backward(dy, *saved.inputs, needs_x, any(needs_weights))

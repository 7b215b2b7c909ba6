"""The norm of a running sum; LayerNorm and the position-wise network of a block, in one pass.

The inner values of a piece live in two buffers that stay in the cache; the kernels keep those of
short inputs for the backward pass. GELU in its tanh form is
``a s(a (c + d a^2))`` with the logistic function s, which costs a tenth of a tanh.

Shape suffixes: N positions, D width, E inner width; n is a piece of N.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend, kernels, triton
from megabase.ops.products import Norm, add_product, matmul, pieces, product_into
from megabase.ops.registry import Saved, operator, wants_gradient, wide_dtype

# The constants of GELU in its tanh form, as arguments of a logistic function; _D of the cube.
_C, _D = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
_CHECKS: dict[str, Any] = {"same": {"norm_b": "norm_w"}}
"""What holds for the operator and for its gradient."""


class NormWeights(NamedTuple):
    """Weights of a norm: LayerNorm, or RMSNorm, which has no bias."""

    weight: Annotated[Tensor, "D"]
    bias: Annotated[Tensor | None, "D"]
    eps: float


class NormKind(NamedTuple):
    """How a running sum is kept and normalized."""

    rms: bool = False  # by the root of the mean square, without subtracting the mean
    strands: int = 1
    """1, or 2 where the channels are two halves, each normalized by itself, the second one in
    reverse order, and the weights it is multiplied by too."""
    swap: bool = False
    """Whether the halves change places first; with 1, whether everything is turned around."""
    wide: bool = False  # whether the sum is kept in float32 at least
    dtype: torch.dtype | None = None  # of what is normalized; that of the weights when None


PLAIN = NormKind()
"""A LayerNorm, and a sum in the dtype of what is added."""


def add_norm(
    hidden: Tensor, residual: Tensor | None, weights: NormWeights, kind: NormKind = PLAIN
) -> tuple[Tensor, Tensor]:
    """Add to a running sum (None at the first) and normalize it, in float32 at least.

    Parameters
    ----------
    hidden, residual
        Shape (batch, length, strands x width).
    weights
        Shape (width,).

    Returns
    -------
    normed, total : Tensor
        Shape of `hidden`.
    """
    if backend.use_triton(hidden, residual, weights.weight):
        return _add_norm(hidden, residual, weights, kind)
    total = summed(hidden, residual, kind)
    normed = normalize(total, weights, kind)
    return (normed if kind.dtype is None else normed.to(kind.dtype)), total


def summed(hidden: Tensor, residual: Tensor | None, kind: NormKind) -> Tensor:
    """Add to a running sum (None at the first), and let strands change places.

    These are halves of the channels, or of the sequences turned around.
    """
    total = hidden if residual is None else hidden + residual
    if kind.swap and kind.strands == 2:
        total = total.roll(total.shape[-1] // 2, dims=-1)
    elif kind.swap:
        total = total.flip((0, 1, 2))
    return total.to(wide_dtype(total.dtype)) if kind.wide else total


def normalize(total: Tensor, weights: NormWeights, kind: NormKind = PLAIN) -> Tensor:
    """Normalize a running sum by torch's functions; see :func:`add_norm`."""
    wide, weight = total.to(wide_dtype(total.dtype)), weights.weight
    w_D = weight.to(wide.dtype)
    b_D = None if weights.bias is None else weights.bias.to(wide.dtype)

    def rows(x: Tensor, w_D: Tensor | None, b_D: Tensor | None) -> Tensor:
        if kind.rms:
            return F.rms_norm(x, weight.shape, w_D, weights.eps)
        return F.layer_norm(x, weight.shape, w_D, b_D, weights.eps)

    if kind.strands == 1:
        return rows(wide, w_D, b_D).to(weight.dtype)
    y = rows(wide.unflatten(-1, (2, -1)), None, None) * torch.stack([w_D, w_D.flip(0)])
    if b_D is not None:
        y = y + torch.stack([b_D, b_D.flip(0)])
    return y.flatten(-2).to(weight.dtype)


_ADD_CHECKS: dict[str, Any] = {
    "rules": {"D": lambda sizes, given: sizes["W"] // max(1, given["strands"])},
    "same": {"bias": "weight"},
}  # fmt: skip
"""What holds for the running sum's operator and for its gradient."""


@operator("add_norm", lambda *_: 0, unread=("hidden", "residual"), read=(1,), **_ADD_CHECKS)
def _add_norm(
    hidden: Annotated[Tensor, "B L W"], residual: Annotated[Tensor | None, "B L W"],
    weights: NormWeights, kind: NormKind,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Add and normalize in one kernel of Triton."""
    from megabase.ops.triton import norm

    found = _added(hidden, residual, weights, kind)
    given = [None if t is None else t.contiguous() for t in (hidden, residual)]
    norm.add_norm(given, weights, found, kind)
    return found


@_add_norm.register_fake
def _added(
    hidden: Tensor, residual: Tensor | None, weights: NormWeights, kind: NormKind
) -> tuple[Tensor, Tensor]:
    dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
    kinds = (kind.dtype or weights.weight.dtype, wide_dtype(dtype) if kind.wide else dtype)
    normed, total = (torch.empty(hidden.shape, dtype=d, device=hidden.device) for d in kinds)
    return normed, total


@operator("add_norm_backward", lambda *_: 0, **_ADD_CHECKS)
def _add_norm_backward(
    dnormed: Annotated[Tensor, "B L W"], dtotal: Annotated[Tensor | None, "B L W"],
    total: Annotated[Tensor, "B L W"], weights: NormWeights, kind: NormKind,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Give the gradient of both summands, and of weight and bias one above the other."""
    from megabase.ops.triton import norm

    found = _added_backward(dnormed, dtotal, total, weights, kind)
    given = [t if t is None else t.contiguous() for t in (dnormed, dtotal, total)]
    norm.add_norm(given, weights, found, kind)
    return found


@_add_norm_backward.register_fake
def _added_backward(
    _dnormed: Tensor, _dtotal: Any, total: Tensor, weights: NormWeights, _kind: NormKind
) -> tuple[Tensor, Tensor]:
    sums = total.new_empty((2, weights.weight.shape[0]), dtype=torch.float32)
    return torch.empty(total.shape, dtype=total.dtype, device=total.device), sums


@_add_norm.register_gradients
def _(saved: Saved, dnormed: Tensor | None, dtotal: Tensor | None) -> list[Tensor | None]:
    _, _, weights, kind = saved.inputs
    (total,) = saved.kept
    if dnormed is None:
        return [dtotal, dtotal, None, None]
    dx, (dw, db) = _add_norm_backward(dnormed, dtotal, total, weights, kind)
    return [dx, dx, dw, db]


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

    The fast path keeps only its inputs for the backward pass, and of short ones in the kernels the
    inner values; sums over positions are in float32 at least.

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
    if backend.active() == "reference" or backend.use_plain(x):
        _forward.check(x, *weights, product)
        return _norm_mlp_reference(x, weights, product)
    keep = wants_gradient(x, weights) and x.device.type == "cpu" and kernels.keeps(x)
    return _forward(x, weights, product, keep)[0]


def _norm_mlp_reference(
    x: Tensor, weights: MlpWeights, product: torch.dtype | None = None
) -> Tensor:
    """Normalize and apply the MLP by torch's functions: the definition of :func:`norm_mlp`."""
    norm_w, norm_b, eps, *_ = weights
    w1, b1, w2, b2 = _maps(weights, product)
    dtype = w1.dtype if product is None else x.dtype
    if norm_w is not None:
        x = F.layer_norm(x.to(norm_w.dtype), x.shape[-1:], norm_w, norm_b, eps)
    y = F.linear(F.gelu(F.linear(x.to(w1.dtype), w1, b1), approximate="tanh"), w2, b2)
    return y.to(dtype)


def _product_dtype(weights: MlpWeights, product: torch.dtype | None) -> torch.dtype:
    return weights.w1.dtype if product is None else product


def _maps(weights: MlpWeights, product: torch.dtype | None) -> list[Tensor]:
    """Give w1, b1, w2 and b2 in the dtype of the products."""
    return [t.to(_product_dtype(weights, product)) for t in weights[3:]]


def _logistic(a: Tensor, square: Tensor, s: Tensor) -> None:
    torch.mul(a, a, out=square)
    torch.mul(square, _D, out=s)
    s.add_(_C).mul_(a)
    torch.sigmoid(s, out=s)


def _gelu_with_derivative(a: Tensor) -> tuple[Tensor, Tensor]:
    square, value = torch.empty_like(a), torch.empty_like(a)
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


def _in_triton(x: Tensor, weights: MlpWeights, product: torch.dtype | None) -> bool:
    """Whether Triton computes this, beside the library's products."""
    return _product_dtype(weights, product) in triton.DTYPES and backend.use_triton(x)


def _run_kernels(
    x: Tensor, weights: MlpWeights, product: torch.dtype | None,
    further: Sequence[Tensor | None], backward: bool, sums: bool,
) -> None:  # fmt: skip
    inner, width = weights.w1.shape
    norm_w, norm_b, eps, *maps = weights
    given = [kernels.dense(t) for t in (norm_w, norm_b, x.reshape(-1, width), *maps)]
    kernels.native().mlp(
        x.dtype == torch.float64, [x.numel() // width, width, inner, int(sums)], eps,
        [kernels.array(t) for t in (*given, *further)], product == torch.bfloat16, backward,
        torch.get_num_threads(),
    )  # fmt: skip


@operator("norm_mlp", lambda x, weights, *_: _flops(x, weights), kept=1, **_CHECKS)
def _forward(
    x: Annotated[Tensor, "... D"], weights: MlpWeights, product: torch.dtype | None, keep: bool
) -> tuple[Tensor, Tensor]:
    y, kept = _outputs(x, weights, product, keep)
    width = x.shape[-1]
    if _in_kernels(x, weights, product):
        further = [y.view(-1, width), kept if kept.numel() else None]
        _run_kernels(x, weights, product, further, False, False)
        return y, kept
    norm, x_ND, y_ND = Norm(*weights[:3]), x.reshape(-1, width), y.view(-1, width)
    w1_ED, b1_E, w2_DE, b2_D = _maps(weights, product)
    dtype = w1_ED.dtype
    if _in_triton(x, weights, product):
        h_ND = norm.apply(x_ND, dtype)
        if x.device.type == "cuda":  # where it is the tanh form, written with the product
            g_NE = torch.ops.aten._addmm_activation(b1_E, h_ND, w1_ED.t(), use_gelu=True)
        else:
            g_NE = F.gelu(torch.addmm(b1_E, h_ND, w1_ED.t()), approximate="tanh")
        return torch.addmm(b2_D, g_NE, w2_DE.t()).view(x.shape).to(y.dtype), kept
    for piece in pieces(slice(0, 1), len(x_ND)):
        h_nD = norm.apply(x_ND[piece.at], dtype)
        a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide_dtype(dtype))
        g_nE = torch.empty_like(a_nE)
        _logistic(a_nE, torch.empty_like(a_nE), g_nE)
        y_ND[piece.at] = matmul(g_nE.mul_(a_nE).to(dtype), w2_DE.t(), b2_D)
    return y, kept


@_forward.register_fake
def _outputs(
    x: Tensor, weights: MlpWeights, product: torch.dtype | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Make room for the result and, to keep, the inner values in the order of the kernels."""
    # What joins a running sum is not rounded further than the products were.
    y = x.new_empty(x.shape, dtype=weights.w1.dtype if product is None else x.dtype)
    rows = x.numel() // x.shape[-1] if keep and _in_kernels(x, weights, product) else 0
    return y, x.new_empty((rows, len(weights.w1)) if rows else (0,))


def _flops(x: Sequence[int], weights: Any) -> int:
    return 4 * math.prod(x) * weights.w1[0]


def _backward_flops(
    _dy: Any, _kept: Any, x: Sequence[int], weights: Any, _: Any, needs_x: bool, needs_weights: bool
) -> int:
    both = _flops(x, weights)
    if not needs_weights:
        return both if needs_x else 0
    # Of the two products back the second is for the input and the norm.
    return 2 * both if needs_x or weights.norm_w is not None else 3 * both // 2


@operator("norm_mlp_backward", _backward_flops, **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "... D"], kept: Annotated[Tensor, "N E|0"], x: Annotated[Tensor, "... D"],
    weights: MlpWeights, product: torch.dtype | None, needs_x: bool, needs_weights: bool,
) -> list[Tensor]:  # fmt: skip
    grads = dx, *sums = _room(dy, kept, x, weights, product, needs_x, needs_weights)
    width = x.shape[-1]
    if _in_kernels(x, weights, product):
        dnorm_w, dnorm_b, *dmaps = sums
        dx = dx.view(-1, width) if needs_x else dx
        found = (t if t.numel() else None for t in (dx, *dmaps, dnorm_w, dnorm_b))
        held = kept if kept.numel() else None
        further = [kernels.dense(dy.to(x.dtype)).view(-1, width), *found, held]
        _run_kernels(x, weights, product, further, True, needs_weights)
        return grads
    if _in_triton(x, weights, product):
        _backward_whole(dy, x, weights, product, grads)
        return grads
    for total in sums:
        total.zero_()
    dnorm_w, dnorm_b, dw1_ED, db1_E, dw2_DE, db2_D = sums
    dw1_DE = torch.zeros_like(dw2_DE)
    dnorm = (dnorm_w, dnorm_b) if needs_weights else None
    norm, (w1_ED, b1_E, w2_DE, _) = Norm(*weights[:3]), _maps(weights, product)
    dtype, wide = w1_ED.dtype, wide_dtype(w1_ED.dtype)
    x_ND, dy_ND = x.reshape(-1, width), dy.reshape(-1, width)
    dx_ND = dx.view(-1, width) if needs_x else dx
    for piece in pieces(slice(0, 1), len(x_ND)):
        x_nD, dy_nD = x_ND[piece.at], dy_ND[piece.at].to(dtype)
        h_nD = norm.apply(x_nD, dtype)
        a_nE = matmul(h_nD, w1_ED.t(), b1_E).to(wide)
        g_nE, slope_nE = _gelu_with_derivative(a_nE)
        wide_nE = slope_nE.mul_(matmul(dy_nD, w2_DE))
        da_nE = wide_nE.to(dtype)
        if needs_weights:
            add_product(dw2_DE, dy_nD.t(), g_nE.to(dtype))
            db2_D += dy_nD.sum(0, dtype=wide)
            db1_E += wide_nE.sum(0)
            add_product(dw1_DE, h_nD.t(), da_nE)
        if needs_x or needs_weights:
            dx_nD = norm.backward(matmul(da_nE, w1_ED).to(wide), x_nD, dnorm)
            if needs_x:
                dx_ND[piece.at] = dx_nD
    if needs_weights:
        dw1_ED.copy_(dw1_DE.t())
    return grads


def _backward_whole(
    dy: Tensor, x: Tensor, weights: MlpWeights, product: torch.dtype | None, grads: list[Tensor]
) -> None:
    """Fill the gradients for all positions at once, as an accelerator likes it."""
    from megabase.ops.triton.norm import gelu_backward

    dx, dnorm_w, dnorm_b, dw1_ED, db1_E, dw2_DE, db2_D = grads
    norm, width = Norm(*weights[:3]), x.shape[-1]
    w1_ED, b1_E, w2_DE, _ = _maps(weights, product)
    x_ND, dy_ND = x.reshape(-1, width), dy.reshape(-1, width).to(w1_ED.dtype)
    h_ND = norm.apply(x_ND, w1_ED.dtype)
    g_NE, da_NE = torch.addmm(b1_E, h_ND, w1_ED.t()), dy_ND @ w2_DE
    gelu_backward(g_NE, da_NE, db1_E if db1_E.numel() else None)
    if dw1_ED.numel():
        product_into(dw2_DE, dy_ND.t(), g_NE)
        product_into(dw1_ED, da_NE.t(), h_ND)
        torch.sum(dy_ND, 0, dtype=db2_D.dtype, out=db2_D)
    del g_NE
    dx_ND = dx.view(-1, width) if dx.numel() else None
    norm.backward_into(da_NE, w1_ED, x_ND, dx_ND, (dnorm_w, dnorm_b))


@_backward.register_fake
def _room(
    _dy: Tensor, _kept: Tensor, x: Tensor, weights: MlpWeights, product: torch.dtype | None,
    needs_x: bool, needs_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Make room for the gradients; sums over positions are kept in float32 at least."""
    inner, width = weights.w1.shape
    wide = wide_dtype(_product_dtype(weights, product))
    shapes = [(width,), (width,), (inner, width), (inner,), (width, inner), (width,)]
    sums = [weights.w1.new_empty(s if needs_weights else (0,), dtype=wide) for s in shapes]
    return [x.new_empty(x.shape if needs_x else (0,)), *sums]


@_forward.register_gradients
def _(saved: Saved, dy: Tensor) -> list[Tensor]:
    needs_x, needs_weights, *_ = saved.needs
    return _backward(dy, *saved.kept, *saved.inputs[:3], needs_x, any(needs_weights))

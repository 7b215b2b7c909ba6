"""LayerNorm and MLP by ``megabase-kernels``, block of positions by block of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.pieces import Norm


def takes(x: Tensor, norm: Norm, weights: tuple[Tensor, ...], product: torch.dtype | None) -> bool:
    """Whether the kernels compute this: CPU tensors of float32 or float64, all alike."""
    given = (x, norm.weight, norm.bias, *weights)
    return (
        kernels.alike(x.dtype, *given)
        and backend.use_kernels(*given)
        and kernels.multiplies(product, weights[0])
        and x.numel() > 0
    )


def _run(
    x: Tensor,
    norm: Norm,
    weights: tuple[Tensor, ...],
    product: torch.dtype | None,
    further: tuple[Tensor | None, ...],
    backward: bool,
    sums: bool,
) -> None:
    inner, width = weights[0].shape
    given = [kernels.dense(t) for t in (norm.weight, norm.bias, x.reshape(-1, width), *weights)]
    kernels.package().native.mlp(
        x.dtype == torch.float64, [x.numel() // width, width, inner, int(sums)], norm.eps,
        [kernels.array(t) for t in (*given, *further)], product == torch.bfloat16, backward,
        torch.get_num_threads(),
    )  # fmt: skip


def forward(
    x: Tensor, norm: Norm, weights: tuple[Tensor, ...], product: torch.dtype | None
) -> Tensor:
    """Compute the output, of the shape of `x`, from ``w1, b1, w2, b2``."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, norm, weights, product, (y.view(-1, x.shape[-1]),), False, False)
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    norm: Norm,
    weights: tuple[Tensor, ...],
    product: torch.dtype | None,
    grads: tuple[Tensor, ...],
) -> None:
    """Fill `grads`: of x, LayerNorm's weight and bias, w1, b1, w2, b2; empty ones are unwanted."""
    dx, dnorm_w, dnorm_b, dw1, db1, dw2, db2 = grads
    width = x.shape[-1]
    dx = dx.view(-1, width) if dx.numel() else dx
    dy = kernels.dense(dy.to(x.dtype)).view(-1, width)
    found = (dx, dw1, db1, dw2, db2, dnorm_w, dnorm_b)
    further = (dy, *(t if t.numel() else None for t in found))
    _run(x, norm, weights, product, further, True, dw1.numel() > 0)

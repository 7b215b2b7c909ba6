"""The implicit filter over pieces of lags, keeping only its inputs for the backward pass.

Shape suffixes: M lags, E features, W width, C filter channels; m is a piece of M.

The hidden values of a long filter would take several times the memory of its taps; the backward
pass computes them again, one piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megabase.ops.implicit_filter import kernel
from megabase.ops.long_conv.fft import without_autocast
from megabase.ops.pieces import pieces
from megabase.ops.products import add_product, matmul
from megabase.ops.registry import Operator

_SIGNATURE = (
    "Tensor z, Tensor t, Tensor freq, Tensor[] weights, Tensor[] biases, Tensor last, "
    "Tensor? rate, float shift"
)


_SHAPES = {
    "z": "M E", "t": "M", "freq": "W|1 W", "weights": "W E,W W", "biases": "W", "last": "C W",
    "rate": "C",
}  # fmt: skip


def _cut(z_ME: Tensor) -> Iterator[slice]:
    return (piece.at for piece in pieces(slice(0, 1), z_ME.shape[0], z_ME))


def _window(t_m: Tensor, rate_C: Tensor, shift: float) -> Tensor:
    return torch.outer(rate_C, t_m).neg_().exp_().add_(shift)


@Operator("implicit_filter", f"({_SIGNATURE}) -> Tensor", _SHAPES, alike=True).implementation
def _forward(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    if kernel.takes(z_ME, t_M, freq_W, weights, biases, last_CW, rate_C):
        return kernel.forward(z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, shift)
    k_CM = torch.empty(last_CW.shape[0], z_ME.shape[0], dtype=z_ME.dtype, device=z_ME.device)
    with without_autocast(z_ME):
        for at in _cut(z_ME):
            h_mW = z_ME[at]
            for w, b in zip(weights, biases, strict=True):
                h_mW = matmul(h_mW, w.t(), b).mul_(freq_W).sin_()
            k_Cm = matmul(last_CW, h_mW.t())
            k_CM[:, at] = k_Cm if rate_C is None else k_Cm.mul_(_window(t_M[at], rate_C, shift))
    return k_CM


@Operator(
    "implicit_filter_backward",
    f"(Tensor dk, {_SIGNATURE}, bool needs_z) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[])",
    {"dk": "C M", **_SHAPES},
    alike=True,
).implementation
def _backward(
    dk_CM: Tensor,
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
    needs_z: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    grads = _backward_shapes(z_ME, freq_W, weights, biases, last_CW, needs_z)
    if kernel.takes(z_ME, t_M, freq_W, weights, biases, last_CW, rate_C):
        kernel.backward(
            dk_CM, z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, shift, grads
        )  # fmt: skip
        return grads
    dz_ME, dfreq_W, dlast_CW, dweights, dbiases = grads
    for total in (dfreq_W, dlast_CW, *dweights, *dbiases):
        total.zero_()
    with without_autocast(z_ME):
        for at in _cut(z_ME):
            inputs, angles = [z_ME[at]], []
            for w, b in zip(weights, biases, strict=True):
                angles.append(matmul(inputs[-1], w.t(), b))
                inputs.append((angles[-1] * freq_W).sin_())
            dk_Cm = dk_CM[:, at]
            if rate_C is not None:
                dk_Cm = dk_Cm * _window(t_M[at], rate_C, shift)
            add_product(dlast_CW, dk_Cm, inputs.pop())
            dh_mW = matmul(dk_Cm.t(), last_CW)
            for i in range(len(weights) - 1, -1, -1):
                a_mW = angles[i]
                da_mW = (a_mW * freq_W).cos_().mul_(dh_mW)
                dfreq_W += (da_mW * a_mW).sum(0).view_as(dfreq_W)
                da_mW.mul_(freq_W)
                add_product(dweights[i], da_mW.t(), inputs[i])
                dbiases[i] += da_mW.sum(0)
                if i or needs_z:
                    dh_mW = matmul(da_mW, weights[i])
            if needs_z:
                dz_ME[at] = dh_mW
    return grads


def _backward_shapes(
    z_ME: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    needs_z: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    return (
        z_ME.new_empty(z_ME.shape if needs_z else (0,)),
        freq_W.new_empty(freq_W.shape),
        last_CW.new_empty(last_CW.shape),
        [w.new_empty(w.shape) for w in weights],
        [b.new_empty(b.shape) for b in biases],
    )


@_forward.register_fake
def _(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    return z_ME.new_empty((last_CW.shape[0], z_ME.shape[0]))


@_backward.register_fake
def _(
    dk_CM: Tensor,
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
    needs_z: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    return _backward_shapes(z_ME, freq_W, weights, biases, last_CW, needs_z)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, ctx.shift = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(z_ME, t_M, freq_W, last_CW, rate_C, *weights, *biases)


def _gradients(ctx: Any, dk_CM: Tensor) -> tuple[Any, ...]:
    z_ME, t_M, freq_W, last_CW, rate_C, *rest = ctx.saved_tensors
    weights, biases = rest[: ctx.count], rest[ctx.count :]
    needs_z = bool(ctx.needs_input_grad[0])
    dz_ME, dfreq_W, dlast_CW, dweights, dbiases = _backward(
        dk_CM, z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, ctx.shift, needs_z
    )
    return dz_ME if needs_z else None, None, dfreq_W, dweights, dbiases, dlast_CW, None, None


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def implicit_filter_blocked(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    """Compute the taps by pieces; see :func:`megabase.ops.implicit_filter.implicit_filter`."""
    return _forward(z_ME, t_M, freq_W, weights, biases, last_CW, rate_C, shift)

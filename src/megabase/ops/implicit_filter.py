"""Filter taps as a function of the lag: a network with sines, times a decaying window.

The hidden values would take several times the memory of the taps: the fast path goes piece by piece
over lags, and its backward pass computes them again.

Shape suffixes: M lags, E features, W width, C filter channels; m is a piece of M.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend, kernels
from megabase.ops.products import add_product, matmul, pieces
from megabase.ops.registry import Saved, operator


class FilterWeights(NamedTuple):
    """The network of an implicit filter and its window; without `rate` there is no window."""

    freq: Annotated[Tensor, "W|1 W"]  # frequencies of the sines
    weights: Annotated[list[Tensor], "W E,W W"]  # of the hidden layers
    biases: Annotated[list[Tensor], "W"]
    last: Annotated[Tensor, "C W"]  # output map
    rate: Annotated[Tensor | None, "C"]  # decay rates of the window; no gradient flows to them
    shift: float  # added to the window


def implicit_filter(z_ME: Tensor, t_M: Tensor, weights: FilterWeights) -> Tensor:
    """Compute the taps of every lag.

    Parameters
    ----------
    z_ME
        Positional features, shape (lags, features).
    t_M
        Normalized times, shape (lags,); no gradient flows to them.
    weights
        Frequencies, shape (1, width) or (width,); hidden layers, shapes (width, features), then
        (width, width), and (width,); output map, shape (channels, width); rates, shape (channels,).

    Returns
    -------
    Tensor
        Shape (channels, lags).
    """
    if backend.active() == "reference" or backend.use_plain(z_ME):
        _forward.check(z_ME, t_M, *weights)
        return _implicit_filter_reference(z_ME, t_M, weights)
    return _forward(z_ME, t_M, weights)


def _implicit_filter_reference(z_ME: Tensor, t_M: Tensor, weights: FilterWeights) -> Tensor:
    """Compute the taps by torch's functions: the definition of :func:`implicit_filter`."""
    h_MW, rate_C = z_ME, weights.rate
    for w, b in zip(weights.weights, weights.biases, strict=True):
        h_MW = torch.sin(weights.freq * F.linear(h_MW, w, b))
    k_CM = weights.last @ h_MW.t()
    if rate_C is None:
        return k_CM
    return k_CM * (torch.exp(-rate_C[:, None] * t_M) + weights.shift)


def _window(t_m: Tensor, weights: FilterWeights) -> Tensor | float:
    """Give what taps, or their gradient, are multiplied by."""
    if weights.rate is None:
        return 1.0
    return torch.outer(weights.rate, t_m).neg_().exp_().add_(weights.shift)


def _in_kernels(z: Tensor, t: Tensor, weights: FilterWeights) -> bool:
    """Whether the kernels compute this: CPU tensors of float32 or float64, all alike."""
    freq, hidden, biases, last, rate, _ = weights
    given = (z, t, freq, last, rate, *hidden, *biases)
    return (
        kernels.alike(z.dtype, *given)
        and backend.use_kernels(*given)
        and len(hidden) <= kernels.package().MAX_LAYERS
        and z.numel() > 0
    )


def _in_triton(z: Tensor, t: Tensor, weights: FilterWeights) -> bool:
    """Whether Triton computes this: at least one hidden layer."""
    return len(weights.weights) > 0 and backend.use_triton(z, t, weights.last)


def _run_kernels(
    z: Tensor, t: Tensor, taps: Tensor, weights: FilterWeights, found: Sequence[Tensor | None] = ()
) -> None:
    freq, hidden, biases, last, rate, shift = weights
    given = (z, t, freq.view(-1), rate, last, taps, *hidden, *biases)
    kernels.native().filter(
        z.dtype == torch.float64, [*z.shape, last.shape[1], last.shape[0], len(hidden)], shift,
        [kernels.array(t) for t in (*map(kernels.dense, given), *found)], len(found) > 0,
        torch.get_num_threads(),
    )  # fmt: skip


@operator("implicit_filter", lambda z, t, weights: _flops(z, weights), alike=True)
def _forward(
    z: Annotated[Tensor, "M E"], t: Annotated[Tensor, "M"], weights: FilterWeights
) -> Tensor:
    k_CM = torch.empty(weights.last.shape[0], z.shape[0], dtype=z.dtype, device=z.device)
    if _in_kernels(z, t, weights):
        _run_kernels(z, t, k_CM, weights)
        return k_CM
    if _in_triton(z, t, weights):
        from megabase.ops.triton.filter import taps

        taps(z, t, weights, k_CM)
        return k_CM
    for _, at, *_ in pieces(slice(0, 1), len(z)):
        h_mW = z[at]
        for w, b in zip(weights.weights, weights.biases, strict=True):
            h_mW = matmul(h_mW, w.t(), b).mul_(weights.freq).sin_()
        k_CM[:, at] = matmul(weights.last, h_mW.t()).mul_(_window(t[at], weights))
    return k_CM


@_forward.register_fake
def _(z: Tensor, _: Tensor, weights: FilterWeights) -> Tensor:
    return z.new_empty((weights.last.shape[0], z.shape[0]))


def _flops(z: Sequence[int], weights: Any) -> int:
    return 2 * z[0] * sum(math.prod(shape) for shape in (*weights.weights, weights.last))


def _backward_flops(dk: Any, z: Sequence[int], t: Any, weights: Any, needs_z: bool) -> int:
    first = 0 if needs_z or not weights.weights else 2 * z[0] * math.prod(weights.weights[0])
    return 2 * _flops(z, weights) - first


@operator("implicit_filter_backward", _backward_flops, alike=True)
def _backward(
    dk: Annotated[Tensor, "C M"], z: Annotated[Tensor, "M E"], t: Annotated[Tensor, "M"],
    weights: FilterWeights, needs_z: bool,
) -> list[Tensor]:  # fmt: skip
    grads = dz_ME, dfreq_W, *layers, dlast_CW = _room(dk, z, t, weights, needs_z)
    freq_W, hidden, biases, last_CW, *_ = weights
    if _in_kernels(z, t, weights):
        found = [dz_ME if needs_z else None, dfreq_W.view(-1), dlast_CW, *layers]
        _run_kernels(z, t, dk, weights, found)
        return grads
    if _in_triton(z, t, weights):
        from megabase.ops.triton.filter import taps

        taps(z, t, weights, dk, grads)
        return grads
    dweights, dbiases = layers[: len(hidden)], layers[len(hidden) :]
    for total in (dfreq_W, dlast_CW, *layers):
        total.zero_()
    for _, at, *_ in pieces(slice(0, 1), len(z)):
        inputs, angles = [z[at]], []
        for w, b in zip(hidden, biases, strict=True):
            angles.append(matmul(inputs[-1], w.t(), b))
            inputs.append((angles[-1] * freq_W).sin_())
        dk_Cm = dk[:, at] * _window(t[at], weights)
        add_product(dlast_CW, dk_Cm, inputs.pop())
        dh_mW = matmul(dk_Cm.t(), last_CW)
        for i in range(len(hidden) - 1, -1, -1):
            a_mW = angles[i]
            da_mW = (a_mW * freq_W).cos_().mul_(dh_mW)
            dfreq_W += (da_mW * a_mW).sum(0).view_as(dfreq_W)
            da_mW.mul_(freq_W)
            add_product(dweights[i], da_mW.t(), inputs[i])
            dbiases[i] += da_mW.sum(0)
            if i or needs_z:
                dh_mW = matmul(da_mW, hidden[i])
        if needs_z:
            dz_ME[at] = dh_mW
    return grads


@_backward.register_fake
def _room(
    _dk: Tensor, z: Tensor, _t: Tensor, weights: FilterWeights, needs_z: bool
) -> list[Tensor]:
    """Make room for the gradients of features, frequencies, layers and output map."""
    sums = (weights.freq, *weights.weights, *weights.biases, weights.last)
    return [z.new_empty(z.shape if needs_z else (0,)), *(t.new_empty(t.shape) for t in sums)]


@_forward.register_gradients
def _(saved: Saved, dk: Tensor) -> list[Tensor | None]:
    dz, *sums = _backward(dk, *saved.inputs, saved.needs[0])
    return [dz, None, *sums, None]  # nothing flows to times and rates

"""A short causal convolution of every channel with its own taps, then SiLU.

What stands before the selective scan in a Mamba mixer (arXiv 2312.00752, figure 3).

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1 positions before the first.
"""

from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.errors import OperatorError
from megabase.ops import backend, kernels
from megabase.ops.registry import Saved, operator, wide_dtype
from megabase.ops.short_conv import taps_flops

_SINGLE_THREAD = 1 << 15  # elements below which starting threads costs more than they save
_CHECKS: dict[str, Any] = {
    "rules": {"P": lambda sizes, _: sizes["K"] - 1}, "least": {"K": 1},
}  # fmt: skip
"""What holds for the operator and for its gradient."""


def causal_conv(
    x_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None = None, past_BPE: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:  # fmt: skip
    """Convolve each channel with its taps, and apply SiLU.

    ``y_t = silu(bias + sum over k of taps[k] x_{t - (K - 1) + k})``, of the dtype of `x_BLE`.

    Parameters
    ----------
    x_BLE
        Input, shape (batch, length, channels).
    taps_EK
        Taps, that of the position itself last, shape (channels, taps).
    bias_E
        Shape (channels,); left out when None.
    past_BPE
        The inputs before the first position, shape (batch, taps - 1, channels); zeros when None.
    reverse
        Whether the convolution reads from the last position to the first: every sequence is turned
        around before it, and the output back again.
    """
    given = (x_BLE, taps_EK, bias_E, past_BPE)
    _forward.check(*given, reverse)
    if backend.use_triton(*given) or (
        backend.use_kernels(*given) and taps_EK.shape[1] <= kernels.package().MAX_TAPS
    ):
        return _forward(*given, reverse, checked=True)
    dtype = x_BLE.dtype
    taps_EK = taps_EK.to(dtype)
    bias_E = None if bias_E is None else bias_E.to(dtype)
    past_BPE = None if past_BPE is None else past_BPE.to(dtype)
    if backend.active() == "reference" or backend.use_plain(x_BLE):
        return _causal_conv_reference(x_BLE, taps_EK, bias_E, past_BPE, reverse)
    if reverse:
        return _causal_conv_shifted(x_BLE.flip(1), taps_EK, bias_E, past_BPE).flip(1)
    return _causal_conv_shifted(x_BLE, taps_EK, bias_E, past_BPE)


def _causal_conv_reference(
    x_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None = None, past_BPE: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:  # fmt: skip
    """Convolve by the library's convolution: the definition of :func:`causal_conv`."""
    (channels, taps), length = taps_EK.shape, x_BLE.shape[1]
    if reverse:  # the taps are turned around, and the sequence is not
        taps_EK = taps_EK.flip(1)
    first = taps - 1 if reverse else 0
    if past_BPE is not None:
        x_BLE = torch.cat([x_BLE, past_BPE.flip(1)] if reverse else [past_BPE, x_BLE], dim=1)
        first = taps - 1
    y_BEL = F.conv1d(
        x_BLE.transpose(1, 2), taps_EK[:, None], bias_E, padding=taps - 1, groups=channels
    )
    return F.silu(y_BEL[..., first : first + length]).transpose(1, 2)


def _causal_conv_shifted(
    x_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None = None, past_BPE: Tensor | None = None
) -> Tensor:
    """Add shifted inputs: the fast path of :func:`causal_conv` in torch."""
    # Channels stay last, where the library's convolution would turn the layout around twice.
    length, before = x_BLE.shape[1], taps_EK.shape[1] - 1
    if past_BPE is None:
        past_BPE = x_BLE.new_zeros(x_BLE.shape[0], before, x_BLE.shape[2])
    x_BLE = torch.cat([past_BPE, x_BLE], dim=1)
    y_BLE = x_BLE[:, :length] * taps_EK[:, 0]
    for tap in range(1, before + 1):
        y_BLE = torch.addcmul(y_BLE, x_BLE[:, tap : tap + length], taps_EK[:, tap])
    return F.silu(y_BLE if bias_E is None else y_BLE + bias_E)


def _sizes(x: Tensor, taps: Tensor, reverse: bool) -> tuple[Any, ...]:
    if x.device.type != "cpu":
        raise OperatorError(
            f"causal_conv: expected tensors on the CPU, or the backend 'triton', found {x.device}"
        )
    if kernels.native() and taps.shape[1] > kernels.package().MAX_TAPS:
        raise OperatorError(
            f"causal_conv: expected at most {kernels.package().MAX_TAPS} taps, found "
            f"{taps.shape[1]}; megabase.ops.causal_conv takes any number"
        )
    return (*x.shape, taps.shape[1], reverse)


def _run(which: str, x: Tensor, sizes: tuple[Any, ...], *arrays: Tensor | None) -> None:
    threads = 1 if x.numel() < _SINGLE_THREAD else torch.get_num_threads()
    given = (kernels.array(t) for t in arrays)
    getattr(kernels.native(), which)(x.dtype == torch.float64, sizes, *given, threads)


def _wide(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Give all tensors in float32, or float64 if that is the dtype of `x`; rows side by side."""
    dtype = wide_dtype(x.dtype)
    return tuple(None if t is None else kernels.beside(t.to(dtype)) for t in (x, *others))


@operator("causal_conv", lambda x, taps, *_: taps_flops(x, taps), **_CHECKS)
def _forward(
    x: Annotated[Tensor, "B L E"], taps: Annotated[Tensor, "E K"],
    bias: Annotated[Tensor | None, "E"], past: Annotated[Tensor | None, "B P E"], reverse: bool,
) -> Tensor:  # fmt: skip
    """Convolve in C++ or in Triton, in float32 at least."""
    if backend.use_triton(x, taps, bias, past):
        from megabase.ops.triton.conv import conv

        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        conv((x, taps, bias, past), reverse, y)
        return y
    sizes, dtype = _sizes(x, taps, reverse), x.dtype
    x, taps, bias, past = _wide(x, taps.contiguous(), bias, past)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run("conv_forward", x, sizes, x, past, taps, bias, y)
    return y.to(dtype)


@operator("causal_conv_backward", lambda dy, x, taps, *_: 2 * taps_flops(x, taps), **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "B L E"], x: Annotated[Tensor, "B L E"], taps: Annotated[Tensor, "E K"],
    bias: Annotated[Tensor | None, "E"], past: Annotated[Tensor | None, "B P E"], reverse: bool,
) -> list[Tensor]:  # fmt: skip
    given = (x, taps, bias, past)
    if backend.use_triton(dy, *given):
        from megabase.ops.triton.conv import conv

        grads = _room(dy, *given)
        conv(given, reverse, dy, grads)
        return grads
    sizes = _sizes(x, taps, reverse)
    x, taps, bias, past, dy = _wide(x, taps.contiguous(), bias, past, dy)
    channels, count = taps.shape
    tasks = kernels.native().conv_tasks(x.shape[0], x.shape[1])
    options: Any = {"dtype": x.dtype, "device": x.device}
    dx = torch.empty(x.shape, **options)
    # Zero, because an empty sequence gives nobody the task of writing it.
    dpast = None if past is None else torch.zeros(past.shape, **options)
    # Sums over positions, one for each task.
    dtaps = torch.empty((tasks, count, channels), **options)
    dbias = torch.empty((tasks, channels), **options)
    _run("conv_backward", x, sizes, x, past, taps, bias, dy, dx, dpast, dtaps, dbias)
    found: Any = (dx, dtaps.sum(0).t().contiguous(), dbias.sum(0), dpast)
    return [
        x.new_empty((0,)) if t is None else grad.to(t.dtype)
        for grad, t in zip(found, given, strict=True)
    ]


@_backward.register_fake
def _room(_dy: Tensor, x: Tensor, *others: Any) -> list[Tensor]:
    given, wide = (x, *others[:3]), wide_dtype(x.dtype)
    return [x.new_empty(0, dtype=wide) if t is None else t.new_empty(t.shape) for t in given]


@_forward.register_gradients
def _(saved: Saved, dy: Tensor) -> list[Tensor]:
    return _backward(dy, *saved.inputs)

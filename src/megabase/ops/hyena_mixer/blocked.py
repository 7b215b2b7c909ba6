"""The Hyena mixer by pieces and groups, with a backward pass that keeps only its inputs.

Shape suffixes: B batch, L positions, D width, K taps, N transform length, F frequencies; b, c and t
are a group of sequences, a group of channels and the positions of a piece, q the 3 c projected
channels of a group.

One group of channels (and sequences) is worked on at a time. Within it, pieces of positions go
through LayerNorm, projection, short convolution and gate while they are in a core's cache, then
blocks of channels through the transforms, then pieces again through gate and output projection.
Nothing of width 3 D is ever as long as the sequence. The backward pass does the same once more and
keeps what it needs of one group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megabase.ops.fft_lengths import lags
from megabase.ops.hyena_mixer import kernel
from megabase.ops.hyena_mixer.backward import Backward, backward_shapes
from megabase.ops.hyena_mixer.forward import run_forward
from megabase.ops.hyena_mixer.plan import Mixer
from megabase.ops.long_conv.fft import without_autocast
from megabase.ops.pieces import Norm
from megabase.ops.registry import Operator
from megabase.ops.short_conv.shifted import taps_behind

_SIGNATURE = (
    "Tensor x, Tensor? norm_w, Tensor? norm_b, float eps, Tensor w_in, Tensor b_in, Tensor w, "
    "Tensor b, Tensor k, Tensor? skip, Tensor w_out, Tensor b_out, int after, bool two_sided, "
    "ScalarType? product, "
)


_SHAPES = {
    "x": "B L D", "norm_w": "D", "norm_b": "D", "w_in": "3D D", "b_in": "3D", "w": "3D K",
    "b": "3D", "k": "D M", "skip": "D", "w_out": "D D", "b_out": "D",
}  # fmt: skip
_CHECKS: dict[str, Any] = {
    "rules": {"M": lags}, "least": {"L": 1, "K": 1}, "below": {"after": "K"},
    "same": {"norm_b": "norm_w"},
}  # fmt: skip


def _mixer(
    x: Tensor, norm_w: Tensor | None, norm_b: Tensor | None, eps: float, *rest: Any
) -> Mixer:
    return Mixer(x, Norm(norm_w, norm_b, eps), *rest)


def _room_to_keep(
    x: Tensor, given: tuple[Tensor | None, ...], product: torch.dtype | None, keep: bool
) -> Tensor:
    """Make room for the transforms' result, channels first; without elements if it is not kept."""
    (batch, length, width), w_in = x.shape, given[2]
    assert w_in is not None
    keep = keep and kernel.takes(x, given, product) and kernel.keeps(x)
    return x.new_empty((batch, width, length) if keep else (0,), dtype=_wide(w_in, product))


def _wide(w_in: Tensor, product: torch.dtype | None) -> torch.dtype:
    return torch.promote_types(w_in.dtype if product is None else product, torch.float32)


@Operator(
    "hyena_mixer", f"({_SIGNATURE} bool keep) -> (Tensor, Tensor)", _SHAPES, **_CHECKS
).implementation
def _forward(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    after: int,
    two_sided: bool,
    product: torch.dtype | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    with without_autocast(x):
        m = _mixer(
            x, norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out, after, two_sided,
            product,
        )  # fmt: skip
        given = (norm_w, norm_b, w_in, b_in, w, b, k, w_out, b_out)
        kept = _room_to_keep(x, given, product, keep)
        if kernel.takes(x, given, product):
            return kernel.forward(m, kept), kept
        return run_forward(m), kept


@Operator(
    "hyena_mixer_backward",
    f"(Tensor dy, Tensor kept, {_SIGNATURE} bool needs_x, bool needs_weights, "
    f"bool needs_filter) -> ({', '.join(['Tensor'] * 11)})",
    {"dy": "B L D", "kept": "B D L|0", **_SHAPES},
    **_CHECKS,
).implementation
def _backward(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    after: int,
    two_sided: bool,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
    needs_filter: bool,
) -> tuple[Tensor, ...]:
    with without_autocast(x):
        m = _mixer(
            x, norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out, after, two_sided,
            product,
        )  # fmt: skip
        if kernel.takes(x, (norm_w, norm_b, w_in, b_in, w, b, k, w_out, b_out), product):
            grads = backward_shapes(
                x, w_in, w, k, skip, m.wide, needs_x, needs_weights, needs_filter
            )
            return kernel.backward(m, dy, kept, grads)
        return Backward(m, dy, needs_x, needs_weights, needs_filter).run()


@_forward.register_fake
def _(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    after: int,
    two_sided: bool,
    product: torch.dtype | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape, dtype=w_in.dtype if product is None else x.dtype)
    given = (norm_w, norm_b, w_in, b_in, w, b, k, w_out, b_out)
    return out, _room_to_keep(x, given, product, keep)


@_backward.register_fake
def _(
    dy: Tensor,
    kept: Tensor,
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    after: int,
    two_sided: bool,
    product: torch.dtype | None,
    needs_x: bool,
    needs_weights: bool,
    needs_filter: bool,
) -> tuple[Tensor, ...]:
    wide = _wide(w_in, product)
    return backward_shapes(x, w_in, w, k, skip, wide, needs_x, needs_weights, needs_filter)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    kept = output[1]
    ctx.save_for_backward(*inputs[:3], *inputs[4:12], kept)
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.eps, ctx.options = inputs[3], inputs[12:15]


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, kept = ctx.saved_tensors
    if dy is None:
        return (None,) * 16
    owners = [*saved[:3], None, *saved[3:]]
    needs = list(ctx.needs_input_grad[:12])
    needs_filter = needs[8] or needs[9]
    needs_weights = any(needs[i] for i in (1, 2, 4, 5, 6, 7, 10, 11))
    dx, dnorm_w, dnorm_b, *grads = _backward(
        dy,
        kept,
        *saved[:3],
        ctx.eps,
        *saved[3:],
        *ctx.options,
        needs[0],
        needs_weights,
        needs_filter,
    )
    grads = [dx, dnorm_w, dnorm_b, None, *grads]
    found = [
        grad.to(owner.dtype) if need and owner is not None and grad is not None else None
        for grad, owner, need in zip(grads, owners, needs, strict=True)
    ]
    return (*found, None, None, None, None)


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def hyena_mixer_blocked(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    *,
    centred: bool = False,
    two_sided: bool = False,
    product: torch.dtype | None = None,
) -> Tensor:
    """Mix by pieces and groups; see :func:`megabase.ops.hyena_mixer.hyena_mixer`."""
    after = taps_behind(w, centred)
    given = (x, norm_w, norm_b, w_in, b_in, w, b, k, w_out, b_out)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    out, _ = _forward(
        x, norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out, after, two_sided, product,
        keep,
    )  # fmt: skip
    return out

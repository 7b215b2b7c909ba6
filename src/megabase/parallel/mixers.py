"""What mixes positions, when they lie on several processes.

Long convolutions and attention are computed for some channels or heads of the whole sequence, after
an exchange of positions for channels; short convolutions get the few positions next to theirs, and
recurrences the state that the processes before hand on.

Shape suffixes: B batch, L positions of the whole sequence, S positions of this process, D width, P
projected channels ((order + 1) D), N heads, M lags, O long convolutions; d channels of this
process, p and c those of a piece; h positions next to those of this process; E, K and T inner
channels, states and taps of Mamba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megabase.layers.attention import SelfAttention
from megabase.layers.hyena import ACTIVATIONS, HyenaOperator
from megabase.layers.linear import bare
from megabase.ops.long_conv import long_conv
from megabase.ops.registry import wide_dtype, without_autocast
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.ops.short_conv import short_conv
from megabase.parallel.collectives import Layout, add_up, carry, even, gather, neighbors, swap

Drop = Callable[[Tensor, float], Tensor]
"""Dropout of (batch, positions, ...) by position in the whole sequence."""

_PIECES = 8
"""Pieces of a process's channels that are mixed one after the other, at least: the memory of a
mixer is divided by it, and the norm is computed as often."""

_PIECE_SAMPLES = 1 << 23
"""Samples that a piece has of the whole sequence, at most: several transforms of them are alive."""

_POSITIONS = 1 << 15
"""Positions that are projected at a time where nothing is kept for a backward pass."""


class _Piece(NamedTuple):
    """Channels that are mixed together: some of every process."""

    channels: Tensor
    """Their numbers, those of the first process first."""
    counts: list[int]
    """How many are of each process."""
    own: slice
    """Those of this process, among its own."""


def _pieces(width: int, layout: Layout, number: int) -> Iterator[_Piece]:
    parts = even(width, layout.size)
    number = max(1, min(number, *(part.stop - part.start for part in parts)))
    for i in range(number):
        inner = [even(part.stop - part.start, number)[i] for part in parts]
        found = [
            torch.arange(part.start + own.start, part.start + own.stop)
            for part, own in zip(parts, inner, strict=True)
        ]
        yield _Piece(torch.cat(found), [len(one) for one in found], inner[layout.rank])


def mix_hyena(
    mixer: HyenaOperator,
    normed: Callable[[Tensor], Tensor],
    x_BSD: Tensor,
    mask_BS: Tensor | None,
    layout: Layout,
    drop: Drop,
) -> Tensor:
    """Do what :class:`HyenaOperator` does with ``normed(x)``, for the positions of this process.

    Channels are worked on in pieces, which the backward pass computes again: between the passes
    only the input and the filter are kept.
    """
    own, length = even(mixer.d_model, layout.size)[layout.rank], x_BSD.shape[1]
    k_OdM, skips = mixer.filters(layout.total, own, partial(add_up, layout=layout))
    taps, two_sided = mixer.short_filter.kernel_size[0], mixer.bidirectional == "two_sided"
    after = (taps - 1) // 2 if two_sided else 0
    before = taps - 1 - after
    dropping = mixer.dropout > 0 and mixer.training
    short, out = mixer.short_filter, mixer.out_proj
    # What is more than its weights, or drops, is called once, for all channels.
    plain = bare(mixer.in_proj, short, out, device=x_BSD.device) and not dropping

    def project(x_BSD: Tensor, mask_BS: Tensor | None, rows: Tensor | None) -> Tensor:
        linear = mixer.in_proj
        if rows is None:
            p_BSP = linear(normed(x_BSD))
        else:
            weight, bias = linear.weight[rows], linear.bias[rows]
            many = 1 if torch.is_grad_enabled() else -(-x_BSD.shape[1] // _POSITIONS)
            parts = [F.linear(normed(x), weight, bias) for x in x_BSD.chunk(many, dim=1)]
            p_BSP = parts[0] if many == 1 else torch.cat(parts, dim=1)
        p_BPS = p_BSP.transpose(1, 2)
        return p_BPS if mask_BS is None else p_BPS * mask_BS[:, None].to(p_BPS.dtype)

    def edges(x: Tensor) -> Tensor:
        return torch.cat([x[:, :after], x[:, length - before :]], dim=1)

    edge_BPh = project(edges(x_BSD), None if mask_BS is None else edges(mask_BS), None)
    left_BPh, right_BPh = neighbors(edge_BPh[..., :after], edge_BPh[..., after:], layout)

    def mix(piece: _Piece, x_BSD: Tensor, left: Tensor, right: Tensor, *filters: Any) -> Tensor:
        count = len(piece.channels)
        rows = torch.cat([piece.channels + i * mixer.d_model for i in range(mixer.order + 1)])
        rows = rows.to(x_BSD.device)
        p_BpS = project(x_BSD, mask_BS, rows if plain else None)
        p_BpS = torch.cat([left[:, rows], p_BpS, right[:, rows]], dim=2)
        if plain:
            bias = None if short.bias is None else short.bias[rows]
            p_BpS = short_conv(p_BpS, short.weight[rows, 0], bias, centered=two_sided)
        else:
            p_BpS = mixer.short(p_BpS)
        first, *gates, v_BcS = p_BpS[..., before : before + length].split(count, dim=1)
        convolutions = zip(filters[: mixer.order - 1], filters[mixer.order - 1 :], strict=True)
        for gate, (k_cM, skip_c) in zip(reversed(gates), convolutions, strict=True):
            v_BcS = v_BcS * gate
            if dropping:
                v_BcS = drop(v_BcS.transpose(1, 2), mixer.dropout).transpose(1, 2)
            if mask_BS is not None:
                v_BcS = v_BcS * mask_BS[:, None].to(v_BcS.dtype)
            v_BcL = swap(v_BcS, piece.counts, layout, to_channels=True)
            v_BcL = long_conv(v_BcL, k_cM, skip_c, two_sided=mixer.bidirectional != "none")
            v_BcS = swap(v_BcL, piece.counts, layout, to_channels=False)
        y_BSc = ACTIVATIONS[mixer.output_activation](v_BcS * first).transpose(1, 2)
        if not plain:
            return out(y_BSc.contiguous())
        weight = out.weight[:, rows[:count]]
        if total is None or torch.is_grad_enabled():
            return F.linear(y_BSc, weight)
        for part, y in zip(
            total.split(_POSITIONS, dim=1), y_BSc.split(_POSITIONS, dim=1), strict=True
        ):
            part.add_(F.linear(y, weight))
        return total

    total: Tensor | None = None
    least = -(-(own.stop - own.start) * layout.total // _PIECE_SAMPLES)
    for piece in _pieces(mixer.d_model, layout, max(_PIECES, least) if plain else 1):
        filters = [k_dM[piece.own] for k_dM in k_OdM]
        filters += [None if skip_d is None else skip_d[piece.own] for skip_d in skips]
        given = (piece, x_BSD, left_BPh, right_BPh, *filters)
        y_BSD = _again(mix, *given, random=dropping)
        total = y_BSD if total is None or y_BSD is total else total.add_(y_BSD)
    assert total is not None
    return total + out.bias.to(total.dtype) if plain and out.bias is not None else total


def _again(function: Callable[..., Tensor], *given: Any, random: bool) -> Tensor:
    """Call a function that the backward pass computes again; `random`: it draws numbers."""
    if not torch.is_grad_enabled():
        return function(*given)
    return cast(
        "Tensor", checkpoint(function, *given, use_reentrant=False, preserve_rng_state=random)
    )


def mix_attention(
    mixer: SelfAttention, x_BSD: Tensor, mask_BS: Tensor | None, layout: Layout
) -> Tensor:
    """Do what :class:`SelfAttention` does, for the positions of this process."""
    heads = even(mixer.num_heads, layout.size)
    counts, own = [part.stop - part.start for part in heads], heads[layout.rank]
    qkv = mixer.Wqkv(x_BSD).unflatten(-1, (3, mixer.num_heads, -1))
    qkv_BNSX = qkv.permute(0, 3, 1, 2, 4).flatten(3)
    qkv_BnLX = swap(qkv_BNSX, counts, layout, to_channels=True)
    allowed = None
    if mask_BS is not None:
        lengths, longest = layout.lengths, max(layout.lengths)
        padded = F.pad(mask_BS.to(torch.uint8), (0, longest - mask_BS.shape[1]))
        masks = zip(gather(padded, layout), lengths, strict=True)
        allowed = mixer.allowed(torch.cat([mask[:, :n] for mask, n in masks], dim=1))
    dropout = mixer.dropout if mixer.training else 0.0
    attend: Any = partial(
        F.scaled_dot_product_attention, attn_mask=allowed, dropout_p=dropout,
        is_causal=mixer.causal and allowed is None,
    )  # fmt: skip
    if dropout:
        # Each head has numbers of its own, whichever process computes it.
        seed = draw_seed()
        each = [t.chunk(3, dim=-1) for t in qkv_BnLX.split(1, dim=1)]
        y_BnLH = torch.cat([
            _seeded(attend, seed + head, *qkv_B1LH)
            for head, qkv_B1LH in zip(range(own.start, own.stop), each, strict=True)
        ], dim=1)  # fmt: skip
    else:
        y_BnLH = attend(*qkv_BnLX.chunk(3, dim=-1))
    y_BNSH = swap(y_BnLH, counts, layout, to_channels=False)
    return mixer.out_proj(y_BNSH.transpose(1, 2).flatten(2))


def draw_seed() -> int:
    """Draw a number from torch's generator, the same in processes that were seeded alike."""
    return int(torch.randint(1 << 62, ()))


def _seeded(function: Callable[..., Tensor], seed: int, *given: Tensor) -> Tensor:
    devices = [given[0].device] if given[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return function(*given)


def entering_state(inputs: ScanInputs, layout: Layout, *, reverse: bool) -> Tensor:
    """Give the states (batch, channels, states) before the first position of this process.

    A process multiplies what enters it by the product of its decays and adds what it would end
    with from zero: those of all processes are combined, and the cost does not depend on the length.
    """
    bare_inputs = inputs._replace(D=None, z=None, initial=None)
    end_BEK = selective_scan(bare_inputs, reverse=reverse)[1]
    with without_autocast(inputs.u):
        delta_BSE = inputs.delta.to(wide_dtype(inputs.u.dtype))
        if inputs.bias is not None:
            delta_BSE = delta_BSE + inputs.bias.to(delta_BSE.dtype)
        steps_BE = F.softplus(delta_BSE).sum(dim=1)
        over_BEK = torch.exp(steps_BE[..., None] * inputs.A.to(steps_BE.dtype))
    return carry(end_BEK, over_BEK.to(end_BEK.dtype), layout, reverse=reverse)


def entering_inputs(x_BSE: Tensor, taps: int, layout: Layout, *, reverse: bool) -> Tensor:
    """Give the inputs (batch, taps - 1, channels) before the first position of this process."""
    past = taps - 1
    previous, following = neighbors(x_BSE[:, :past], x_BSE[:, x_BSE.shape[1] - past :], layout)
    return following.flip(1) if reverse else previous

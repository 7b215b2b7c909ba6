"""The selective scan by chunks of positions, all at once: three launches a pass.

First every chunk is scanned from a zero state, of which only what it hands on is kept; a state that
passes a whole chunk decays by exp(A sum of its steps), by which the chunks are chained; then every
chunk runs from the right state. The backward pass chains gradients in the same way from the last
chunk to the first. Its last kernel takes all channels of a chunk in turn: sums over channels (of B
and C) are made by one program, in one order, without atomic operations.

Positions are counted in the order they are read in, so that neither direction is turned around.
Only products of decays are formed, never quotients.

Shape suffixes: B batch, L positions, E channels, N states; T chunks. In kernels T is the positions
of a chunk, E and N are blocks.
"""
# Kernels are compiled: to a type checker a call of one from another gives nothing.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megabase.ops.registry import operator
from megabase.ops.selective_scan import ScanInputs, backward_of, scan_flops
from megabase.ops.triton import DTYPES, blocks, launch, power
from megabase.ops.triton.shared import sum_rows

_POSITIONS = 64  # positions of a chunk: at 16 states what is kept of it is a quarter of one input
_ELEMENTS = 8192
"""Positions x channels x states of a tile: 32 for each of 256 threads, twice in a scan."""
_CHECKS: dict[str, Any] = {
    "least": {"L": 1}, "rules": {"T": lambda sizes, _: blocks(sizes["L"], _POSITIONS)},
    "dtypes": DTYPES,
}  # fmt: skip
"""What holds for the operator and for its gradient."""


@triton.jit
def _place(t, length, REVERSE: tl.constexpr):
    """Give where the position that is read as number t lies."""
    return length - 1 - t if REVERSE else t


@triton.jit
def _softplus(x):
    # log(1 + q) = 2 atanh(q / (2 + q)): the series is exact to float32 for q up to 1, where the
    # logarithm of 1 + q loses a small q, a small step.
    q = tl.exp(-tl.abs(x))
    s = q / (2.0 + q)
    square = s * s
    series = 1.0 / 15 + square / 17
    for i in tl.static_range(7):
        series = 1.0 / (13 - 2 * i) + square * series
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _steps(
    delta, bias, b, t, e, length, channels, row, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr
):
    """Give step sizes (T, E) and what they were before softplus; zeros behind the last position."""
    here = (t >= 0) & (t < length) & (e < channels)
    at = (b * length + _place(t, length, REVERSE)) * row + e
    raw = tl.load(delta + at, here, 0.0).to(tl.float32)
    if bias is not None:
        raw += tl.load(bias + e, e < channels, 0.0).to(tl.float32)
    step = _softplus(raw) if SOFTPLUS else raw
    return tl.where(here, step, 0.0), raw


@triton.jit
def _channels(x, b, t, e, length, channels, row, REVERSE: tl.constexpr):
    """Load (T, E) of (batch, length, channels), whose positions are `row` apart."""
    here = (t < length) & (e < channels)
    at = (b * length + _place(t, length, REVERSE)) * row + e
    return tl.load(x + at, here, 0.0).to(tl.float32)


@triton.jit
def _states(x, b, t, n, length, states, row, REVERSE: tl.constexpr):
    """Load (T, N) of (batch, length, states), whose positions are `row` apart."""
    here = (t < length) & (n < states)
    at = (b * length + _place(t, length, REVERSE)) * row + n
    return tl.load(x + at, here, 0.0).to(tl.float32)


@triton.jit
def _rates(A, e, n, channels, states):
    """Load decay rates, (E, N)."""
    here = tl.trans(e < channels) & (n < states)
    return tl.load(A + tl.trans(e) * states + n, here, 0.0).to(tl.float32)


@triton.jit
def _chain_one(a_decay, a, b_decay, b):
    return a_decay * b_decay, b_decay * a + b


@triton.jit
def _gated(dy, z, b, t, e, length, channels, z_row, REVERSE: tl.constexpr):
    """Give the gradient of the output before the gate, (T, E)."""
    back = _channels(dy, b, t, e, length, channels, channels, REVERSE)
    if z is not None:
        gate = _channels(z, b, t, e, length, channels, z_row, REVERSE)
        back *= gate * tl.sigmoid(gate)
    return back


@triton.jit
def _ends(
    u, delta, A, B, bias, ends, length, channels, states, u_row, delta_row, b_row,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write what every chunk hands on from a zero state, and the sum of its steps."""
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    n, b = tl.arange(0, N)[None, :], tl.program_id(2).to(tl.int64)
    step, _ = _steps(delta, bias, b, t, e, length, channels, delta_row, SOFTPLUS, REVERSE)
    value = step * _channels(u, b, t, e, length, channels, u_row, REVERSE)
    total = tl.sum(step, 0, keep_dims=True)
    rest = total - tl.cumsum(step, 0)
    decay = tl.exp(rest[:, :, None] * _rates(A, e, n, channels, states)[None, :, :])
    entered = _states(B, b, t, n, length, states, b_row, REVERSE)
    handed = tl.sum(decay * value[:, :, None] * entered[:, None, :], 0)
    _store_end(ends, handed, total, b, e, n, channels, states)


@triton.jit
def _store_end(ends, handed, total, b, e, n, channels, states):
    chunk = (b * tl.num_programs(0) + tl.program_id(0)) * channels * (states + 1)
    at = ends + chunk + tl.trans(e) * (states + 1)
    tl.store(at + n, handed, tl.trans(e < channels) & (n < states))
    tl.store(at + states, tl.trans(total), tl.trans(e < channels))


@triton.jit
def _ends_backward(
    dy, delta, A, C, z, bias, ends, length, channels, states, delta_row, c_row, z_row,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the gradient of what enters every chunk, from outputs in it, and the sum of steps."""
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    n, b = tl.arange(0, N)[None, :], tl.program_id(2).to(tl.int64)
    step, _ = _steps(delta, bias, b, t, e, length, channels, delta_row, SOFTPLUS, REVERSE)
    back = _gated(dy, z, b, t, e, length, channels, z_row, REVERSE)
    since = tl.cumsum(step, 0)
    decay = tl.exp(since[:, :, None] * _rates(A, e, n, channels, states)[None, :, :])
    left = _states(C, b, t, n, length, states, c_row, REVERSE)
    handed = tl.sum(decay * back[:, :, None] * left[:, None, :], 0)
    _store_end(ends, handed, tl.sum(step, 0, keep_dims=True), b, e, n, channels, states)


@triton.jit
def _chain(
    ends, A, first, enters, last, chunks, channels, states,
    BACKWARD: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Chain chunks: what enters each, (B, chunks, E, N), and what leaves the last."""
    e = (tl.program_id(0) * E + tl.arange(0, E))[None, :]
    n, b = tl.arange(0, N)[None, :], tl.program_id(1).to(tl.int64)
    has_e = tl.trans(e < channels)
    here = has_e & (n < states)
    at = tl.trans(e) * states + n
    rates = _rates(A, e, n, channels, states)
    if first is None:
        state = tl.zeros([E, N], tl.float32)
    else:
        state = tl.load(first + b * channels * states + at, here, 0.0).to(tl.float32)
    for i in range(chunks):
        chunk = b * chunks + (chunks - 1 - i if BACKWARD else i)
        if enters is not None:
            tl.store(enters + chunk * channels * states + at, state, here)
        own = ends + chunk * channels * (states + 1) + tl.trans(e) * (states + 1)
        total = tl.load(own + states, has_e, 0.0)
        state = tl.exp(total * rates) * state + tl.load(own + n, here, 0.0)
    if last is not None:
        tl.store(last + b * channels * states + at, state.to(last.dtype.element_ty), here)


@triton.jit
def _outputs(
    u, delta, A, B, C, D, z, bias, enters, y, length, channels, states,
    u_row, delta_row, b_row, c_row, z_row,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    e = (tl.program_id(1) * E + tl.arange(0, E))[None, :]
    n, b = tl.arange(0, N)[None, :], tl.program_id(2).to(tl.int64)
    step, _ = _steps(delta, bias, b, t, e, length, channels, delta_row, SOFTPLUS, REVERSE)
    x = _channels(u, b, t, e, length, channels, u_row, REVERSE)
    decay = tl.exp(step[:, :, None] * _rates(A, e, n, channels, states)[None, :, :])
    entered = _states(B, b, t, n, length, states, b_row, REVERSE)
    value = (step * x)[:, :, None] * entered[:, None, :]
    chunk = (b * tl.num_programs(0) + tl.program_id(0)) * channels * states
    here = tl.trans(e < channels) & (n < states)
    start = tl.load(enters + chunk + tl.trans(e) * states + n, here, 0.0)
    over, state = tl.associative_scan((decay, value), 0, _chain_one)
    state += over * start[None, :, :]
    left = _states(C, b, t, n, length, states, c_row, REVERSE)
    out = tl.sum(state * left[:, None, :], 2)
    if D is not None:
        out += x * tl.load(D + e, e < channels, 0.0).to(tl.float32)
    if z is not None:
        gate = _channels(z, b, t, e, length, channels, z_row, REVERSE)
        out *= gate * tl.sigmoid(gate)
    at = (b * length + _place(t, length, REVERSE)) * channels + e
    tl.store(y + at, out.to(y.dtype.element_ty), (t < length) & (e < channels))


@triton.jit
def _gradients(
    dy, u, delta, A, B, C, D, z, bias, enters, leaves, du, ddelta, dB, dC, dz, partial,
    length, channels, states, u_row, delta_row, b_row, c_row, z_row,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write all gradients of a chunk: of sums over positions its share, (E, N) and twice (E)."""
    t = (tl.program_id(0) * T + tl.arange(0, T))[:, None]
    n, b = tl.arange(0, N)[None, :], tl.program_id(1).to(tl.int64)
    entered = _states(B, b, t, n, length, states, b_row, REVERSE)
    left = _states(C, b, t, n, length, states, c_row, REVERSE)
    dentered = tl.zeros([T, N], tl.float32)
    dleft = tl.zeros([T, N], tl.float32)
    chunk = b * tl.num_programs(0) + tl.program_id(0)
    partial += chunk * channels * (states + 2)
    for first in range(0, channels, E):
        e = (first + tl.arange(0, E))[None, :]
        has_e = e < channels
        here = (t < length) & has_e
        at = (b * length + _place(t, length, REVERSE)) * channels + e
        rates = _rates(A, e, n, channels, states)
        step, raw = _steps(delta, bias, b, t, e, length, channels, delta_row, SOFTPLUS, REVERSE)
        x = _channels(u, b, t, e, length, channels, u_row, REVERSE)
        # The states again.
        decay = tl.exp(step[:, :, None] * rates[None, :, :])
        value = (step * x)[:, :, None] * entered[:, None, :]
        inside = tl.trans(has_e) & (n < states)
        own = chunk * channels * states + tl.trans(e) * states + n
        over, state = tl.associative_scan((decay, value), 0, _chain_one)
        state += over * tl.load(enters + own, inside, 0.0)[None, :, :]
        # Through gate and skip.
        back = _gated(dy, z, b, t, e, length, channels, z_row, REVERSE)
        dx = tl.zeros([T, E], tl.float32)
        out = tl.sum(state * left[:, None, :], 2)
        if D is not None:
            skip = tl.load(D + e, has_e, 0.0).to(tl.float32)
            out += x * skip
            dx += back * skip
        if z is not None:
            gate = _channels(z, b, t, e, length, channels, z_row, REVERSE)
            s = tl.sigmoid(gate)
            dgate = _channels(dy, b, t, e, length, channels, channels, REVERSE) * out
            dgate *= s * (1 + gate * (1 - s))
            tl.store(dz + at, dgate.to(dz.dtype.element_ty), here)
        dleft += tl.sum(state * back[:, :, None], 1)
        # The recurrence backwards: what a state gets from the next one decays by the next step.
        # Behind the chunk's last position stands one that decays by nothing.
        is_last = (t % T == T - 1) | (t >= length - 1)
        behind = tl.where(is_last, length, t + 1)
        after, _ = _steps(delta, bias, b, behind, e, length, channels, delta_row, SOFTPLUS, REVERSE)
        decay = tl.exp(after[:, :, None] * rates[None, :, :])
        over, dstate = tl.associative_scan(
            (decay, back[:, :, None] * left[:, None, :]), 0, _chain_one, reverse=True
        )
        dstate += over * tl.load(leaves + own, inside, 0.0)[None, :, :]
        # What decayed into a state is the state less what entered it.
        dlog = dstate * (state - value)
        dstep = tl.sum(dlog * rates[None, :, :], 2)
        dvalue = tl.sum(dstate * entered[:, None, :], 2)
        dentered += tl.sum(dstate * (step * x)[:, :, None], 1)
        dx += dvalue * step
        dstep += dvalue * x
        if SOFTPLUS:
            dstep *= tl.sigmoid(raw)
        dstep = tl.where(here, dstep, 0.0)
        tl.store(du + at, dx.to(du.dtype.element_ty), here)
        tl.store(ddelta + at, dstep.to(ddelta.dtype.element_ty), here)
        drates = tl.sum(dlog * step[:, :, None], 0)
        tl.store(partial + tl.trans(e) * states + n, drates, inside)
        sums = partial + channels * states + e
        tl.store(sums, tl.sum(back * x, 0, keep_dims=True), has_e)
        tl.store(sums + channels, tl.sum(dstep, 0, keep_dims=True), has_e)
    at = (b * length + _place(t, length, REVERSE)) * states + n
    here = (t < length) & (n < states)
    tl.store(dB + at, dentered.to(dB.dtype.element_ty), here)
    tl.store(dC + at, dleft.to(dC.dtype.element_ty), here)


def _rows(x: Tensor | None) -> Tensor | None:
    """Give a tensor whose positions are evenly apart: a part of a projection is one already."""
    if x is None or (x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)):
        return x
    return x.contiguous()


class _Call:
    """Inputs of a scan as its kernels take them, and what the kernels have in common."""

    def __init__(self, x: ScanInputs, softplus: bool, reverse: bool) -> None:
        dense = {key: None if t is None else t.contiguous() for key, t in x._asdict().items()}
        rows = {key: _rows(getattr(x, key)) for key in ("u", "delta", "B", "C", "z")}
        self.x = x = ScanInputs(**(dense | rows))  # pyright: ignore[reportArgumentType]
        self.batch, length, channels = x.u.shape
        states = x.A.shape[1]
        self.sizes = (length, channels, states)
        self.row = {key: 0 if t is None else t.stride(1) for key, t in rows.items()}
        n = power(states)
        e = min(power(channels), max(1, _ELEMENTS // (_POSITIONS * n)))
        self.chain_tile = {"E": e, "N": n}
        self.tile: dict[str, Any] = {
            "SOFTPLUS": softplus, "REVERSE": reverse, "T": _POSITIONS, **self.chain_tile
        }  # fmt: skip
        self.chunks, self.columns = blocks(length, _POSITIONS), blocks(channels, e)

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.u.device)

    def run(self, kernel: Any, reads: Sequence[Any], writes: Sequence[Any], rows: str) -> None:
        """Run a kernel of chunks and channels."""
        numbers = [self.row[key] for key in rows.split()]
        grid = (self.chunks, self.columns, self.batch)
        launch(kernel, grid, reads, writes, *self.sizes, *numbers, warps=8, **self.tile)

    def chained(
        self, ends: Tensor, first: Tensor | None, last: Tensor | None, backward: bool
    ) -> Tensor:
        """Give what enters every chunk."""
        _, channels, states = self.sizes
        enters = self.new(self.batch, self.chunks, channels, states)
        launch(
            _chain, (self.columns, self.batch), [ends, self.x.A, first], [enters, last],
            self.chunks, channels, states, BACKWARD=backward, **self.chain_tile,
        )  # fmt: skip
        return enters

    def ends(self) -> Tensor:
        _, channels, states = self.sizes
        return self.new(self.batch, self.chunks, channels, states + 1)


@operator("selective_scan_chunked", lambda x, *_: scan_flops(x.u, x.A), kept=1, **_CHECKS)
def scan(x: ScanInputs, softplus: bool, reverse: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scan in Triton; with `keep` also give the states that enter chunks."""
    y, final, kept = _room(x, softplus, reverse, keep)
    call = _Call(x, softplus, reverse)
    u, delta, A, B, C, D, z, bias, initial = call.x
    ends = call.ends()
    call.run(_ends, [u, delta, A, B, bias], [ends], "u delta B")
    enters = call.chained(ends, initial, final, False)
    call.run(_outputs, [u, delta, A, B, C, D, z, bias, enters], [y], "u delta B C z")
    return y, final, enters if keep else kept


@scan.register_fake
def _room(
    x: ScanInputs, _softplus: bool, _reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = x.u.shape
    kept = (batch, blocks(length, _POSITIONS), *x.A.shape) if keep else (0,)
    new = partial(x.u.new_empty, dtype=torch.float32)
    return x.u.new_empty(x.u.shape), new((batch, *x.A.shape)), new(kept)


@backward_of(scan, "selective_scan_chunked_backward", **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "B L E"], dfinal: Annotated[Tensor | None, "B E N"],
    kept: Annotated[Tensor, "B T E N"], x: ScanInputs, softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    grads = x.room()
    du, ddelta, _, dB, dC, dD, dz, dbias, dinitial = (
        None if t is None else grad for grad, t in zip(grads, x, strict=True)
    )
    call = _Call(x, softplus, reverse)
    u, delta, A, B, C, D, z, bias, _ = call.x
    dy, ends = dy.contiguous(), call.ends()
    _, channels, states = call.sizes
    call.run(_ends_backward, [dy, delta, A, C, z, bias], [ends], "delta C z")
    first = None if dfinal is None else dfinal.contiguous()
    leaves = call.chained(ends, first, dinitial, True)
    partial = call.new(call.batch * call.chunks, channels * (states + 2))
    launch(
        _gradients, (call.chunks, call.batch),
        [dy, u, delta, A, B, C, D, z, bias, kept, leaves], [du, ddelta, dB, dC, dz, partial],
        *call.sizes, *call.row.values(), warps=8, **call.tile,
    )  # fmt: skip
    skip = call.new(channels) if dD is None else dD
    sum_rows(partial, [grads[2], skip, *([] if dbias is None else [dbias])])
    return grads

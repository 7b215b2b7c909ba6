"""The selective scan, blocked over length, with a backward pass that recomputes the states.

Everything but the recurrence, one multiply-add per position, is computed for a block of T positions
at once. Where one sequence is too little work for a call, K blocks advance together: first from a
zero state, to find what each hands on, then from the right one. No quotient of decays is formed.

Shape suffixes: B batch, L positions, E channels, N states per channel; inside a block T steps,
G sequences, K blocks, M lanes (a lane is one block of one sequence, M = G K), X any.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops import backend, kernels, registry
from megabase.ops.whole_scan import ScanInputs, whole_scan

_STEP_ELEMENTS = 1 << 15
"""States that advance in one call: enough to pay for it, few enough for the cache."""
_STEPS_PER_STATE = 4
"""Block length over states per channel; sets the memory kept for the backward pass."""
_LEAST_STEPS = 16  # shortest block, where there are few states
_CHECKS: dict[str, Any] = {
    "least": {"L": 1},
    "rules": {"T": lambda _, x: _Plan(x["u"], x["A"].shape[1], torch.float32, 0).all_blocks},
}  # fmt: skip
"""What holds for the operator and for its gradient."""
_KERNEL_STEPS = 64
"""Positions between states kept for the backward pass: at 16 states a quarter of one input."""
_SINGLE_THREAD = 1 << 16
"""Products of batch, length, channels and states below which threads do not pay."""
_KERNEL_CHECKS: dict[str, Any] = {
    "rules": {"T": lambda sizes, _: -(-sizes["L"] // _KERNEL_STEPS)}, "least": {"L": 1},
    "alike": True, "dtypes": (torch.float32, torch.float64), "device_types": "cpu",
}  # fmt: skip
"""What holds for the operator and for its gradient."""


class _Segment(NamedTuple):
    """Blocks that advance together: some sequences, a run of positions, cut into `blocks`."""

    rows: slice
    positions: slice
    blocks: int
    steps: int

    def of(self, x_BLX: Tensor, dtype: torch.dtype) -> Tensor:
        """Give this part of a tensor, (G, positions, X)."""
        return x_BLX[self.rows, self.positions].to(dtype)

    def entering(self, kept_KBNE: Tensor) -> Tensor:
        """Give the part of the kept states that belongs to these blocks, (K, G, N, E)."""
        first = self.positions.start // self.steps
        return kept_KBNE[first : first + self.blocks, self.rows]

    def cut(self, x_GPX: Tensor) -> Tensor:
        """Bring (G, positions, X) into (T, M, X), zeros after the last position."""
        missing = self.blocks * self.steps - x_GPX.shape[1]
        x_GPX = F.pad(x_GPX, (0, 0, 0, missing)) if missing else x_GPX
        return x_GPX.unflatten(1, (self.blocks, self.steps)).permute(2, 0, 1, 3).flatten(1, 2)

    def join(self, x_TMX: Tensor) -> Tensor:
        """Bring (T, M, X) back into (G, positions, X)."""
        x_GKTX = x_TMX.unflatten(1, (-1, self.blocks)).permute(1, 2, 0, 3)
        return x_GKTX.flatten(1, 2)[:, : self.positions.stop - self.positions.start]


class _Plan:
    """Cuts a (batch, length) input into segments, and holds the memory they are worked in."""

    def __init__(self, u_BLE: Tensor, states: int, dtype: torch.dtype, buffers: int) -> None:
        self.batch, self.length, self.channels = u_BLE.shape
        self.states = states
        lanes = max(1, _STEP_ELEMENTS // max(1, states * self.channels))
        count = -(-self.length // max(_LEAST_STEPS, _STEPS_PER_STATE * states))
        self.steps = -(-self.length // count)
        self.all_blocks = -(-self.length // self.steps)
        self.group = max(1, min(self.batch, lanes))
        self.blocks = max(1, min(lanes // self.group, self.all_blocks))
        size = self.steps * self.group * self.blocks * states * self.channels
        self.buffers = [u_BLE.new_empty(size, dtype=dtype) for _ in range(buffers)]

    def groups(self) -> Iterator[tuple[slice, list[_Segment]]]:
        """Give sequences that are worked together, with their segments in order."""
        span = self.steps * self.blocks
        for first in range(0, self.batch, self.group):
            rows = slice(first, min(first + self.group, self.batch))
            segments = []
            for start in range(0, self.length, span):
                positions = slice(start, min(start + span, self.length))
                blocks = math.ceil((positions.stop - start) / self.steps)
                segments.append(_Segment(rows, positions, blocks, self.steps))
            yield rows, segments

    def work(self, segment: _Segment) -> list[Tensor]:
        """Give the buffers, each shaped (T, M, N, E) for the segment; what they hold is old."""
        lanes = (segment.rows.stop - segment.rows.start) * segment.blocks
        shape = (self.steps, lanes, self.states, self.channels)
        return [buffer[: math.prod(shape)].view(shape) for buffer in self.buffers]


def _rates(x: ScanInputs) -> tuple[Tensor, Tensor]:
    """Give A as (N, E), and the same for powers of two."""
    A_NE = x.A.t().to(registry.wide_dtype(x.u.dtype)).contiguous()
    return A_NE, A_NE * math.log2(math.e)


def _carry(x: ScanInputs, rows: slice, state_BEN: Tensor | None) -> Tensor:
    """Give a state, or zeros, as (G, N, E)."""
    dtype = registry.wide_dtype(x.u.dtype)
    if state_BEN is None:
        shape = (rows.stop - rows.start, *x.A.t().shape)
        return x.u.new_zeros(shape, dtype=dtype)
    return state_BEN[rows].transpose(1, 2).to(dtype).contiguous()


class _Part:
    """The inputs of one segment."""

    def __init__(self, x: ScanInputs, softplus: bool, segment: _Segment) -> None:
        dtype = registry.wide_dtype(x.u.dtype)
        self.segment = segment
        self.raw = segment.of(x.delta, dtype)
        if x.bias is not None:
            self.raw = self.raw + x.bias.to(dtype)
        self.step = F.softplus(self.raw) if softplus else self.raw
        self.u = segment.of(x.u, dtype)
        self.D_E = None if x.D is None else x.D.to(dtype)
        self.step_TME = segment.cut(self.step)
        self.v_TME = segment.cut(self.step * self.u)
        self.B_TMN = segment.cut(segment.of(x.B, dtype))
        self.C_TMN = segment.cut(segment.of(x.C, dtype))

    def fill(self, log2_NE: Tensor, decay_TMNE: Tensor, value_TMNE: Tensor) -> None:
        """Write the decays, and what enters the states at each position."""
        _decays(self.step_TME, log2_NE, decay_TMNE)
        torch.mul(self.v_TME.unsqueeze(-2), self.B_TMN.unsqueeze(-1), out=value_TMNE)

    def chain(
        self, end_MNE: Tensor, log2_NE: Tensor, carry_GNE: Tensor, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Chain blocks that were scanned from zero: what enters each, what leaves the last."""
        blocks = self.segment.blocks
        over_MNE = _decays(self.step_TME.sum(dim=0), log2_NE)
        end, over = (x.unflatten(0, (-1, blocks)) for x in (end_MNE, over_MNE))
        enters = torch.empty_like(end)
        for k in reversed(range(blocks)) if reverse else range(blocks):
            enters[:, k] = carry_GNE
            carry_GNE = torch.addcmul(end[:, k], over[:, k], carry_GNE)
        return enters.flatten(0, 1), carry_GNE

    def output(self, state_TMNE: Tensor) -> Tensor:
        """Give the output before the gate, (G, positions, E)."""
        y = self.segment.join(_contract_states(self.C_TMN, state_TMNE))
        return y if self.D_E is None else torch.addcmul(y, self.u, self.D_E)


def _decays(step_XE: Tensor, log2_NE: Tensor, out: Tensor | None = None) -> Tensor:
    # Base 2, because torch has a faster kernel for it on CPUs; the factor is inside log2_NE.
    return torch.mul(step_XE.unsqueeze(-2), log2_NE, out=out).exp2_()


def _scan(decay: Sequence[Tensor], value: Sequence[Tensor], state_MNE: Tensor) -> Tensor:
    """``value[t] += decay[t] * value[t - 1]`` in place, from `state_MNE`; gives the last one."""
    for decay_MNE, value_MNE in zip(decay, value, strict=True):
        state_MNE = torch.addcmul(value_MNE, decay_MNE, state_MNE, out=value_MNE)
    return state_MNE


def _last(decay: Sequence[Tensor], value: Sequence[Tensor]) -> Tensor:
    """Give the last of :func:`_scan` from a zero state, and leave `value` as it is."""
    state_MNE = value[0].clone()
    for decay_MNE, value_MNE in zip(decay[1:], value[1:], strict=True):
        torch.addcmul(value_MNE, decay_MNE, state_MNE, out=state_MNE)
    return state_MNE


def _contract_states(weight_TMN: Tensor, state_TMNE: Tensor) -> Tensor:
    """Sum states with weights: (T, M, E)."""
    flat = torch.bmm(weight_TMN.flatten(0, 1).unsqueeze(1), state_TMNE.flatten(0, 1))
    return flat.view(*weight_TMN.shape[:2], -1)


def _contract_channels(weight_TME: Tensor, state_TMNE: Tensor) -> Tensor:
    """Sum channels with weights: (T, M, N)."""
    # A row times a transposed matrix: torch's path for a matrix times a column is far slower.
    state = state_TMNE.flatten(0, 1).transpose(1, 2)
    return torch.bmm(weight_TME.flatten(0, 1).unsqueeze(1), state).view(*weight_TME.shape[:2], -1)


@registry.operator("selective_scan_blocked", lambda x, *_: scan_flops(x.u, x.A), kept=1, **_CHECKS)
def _scan_blocked(x: ScanInputs, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give output, final state, and with `keep` what enters each block."""
    plan = _Plan(x.u, x.A.shape[1], registry.wide_dtype(x.u.dtype), buffers=2)
    _, log2_NE = _rates(x)
    y_BLE, final_BEN, kept = _outputs(x, softplus, keep)
    for rows, segments in plan.groups():
        carry_GNE = _carry(x, rows, x.initial)
        for segment in segments:
            part = _Part(x, softplus, segment)
            decay_TMNE, state_TMNE = plan.work(segment)
            part.fill(log2_NE, decay_TMNE, state_TMNE)
            decay, state = decay_TMNE.unbind(), state_TMNE.unbind()
            enters_MNE = carry_GNE
            if segment.blocks > 1:
                enters_MNE, carry_GNE = part.chain(_last(decay, state), log2_NE, carry_GNE)
            if keep:
                enters = enters_MNE.unflatten(0, (-1, segment.blocks))
                segment.entering(kept).copy_(enters.transpose(0, 1))
            last_MNE = _scan(decay, state, enters_MNE)
            if segment.blocks == 1:
                carry_GNE = last_MNE.clone()
            y = part.output(state_TMNE)
            if x.z is not None:
                y = y * F.silu(segment.of(x.z, y.dtype))
            y_BLE[segment.rows, segment.positions] = y
        final_BEN[rows] = carry_GNE.transpose(1, 2)
    return y_BLE, final_BEN, kept


class _Backward:
    """Gradients of every input, filled segment by segment from the last to the first."""

    def __init__(self, x: ScanInputs, softplus: bool, kept: Tensor, dy_BLE: Tensor) -> None:
        self.x, self.softplus, self.kept, self.dy_BLE = x, softplus, kept, dy_BLE
        self.dtype = registry.wide_dtype(x.u.dtype)
        self.A_NE, self.log2_NE = _rates(x)
        self.plan = _Plan(x.u, x.A.shape[1], self.dtype, buffers=3)
        # Those of fewer dimensions are sums over positions.
        own: Any = (
            t if t is None
            else t.new_empty(t.shape) if t.dim() == 3
            else torch.zeros_like(t, dtype=self.dtype) for t in x
        )  # fmt: skip
        self.grads = ScanInputs(*own)
        self.dA_NE = torch.zeros_like(self.A_NE)

    def run(self, dfinal_BEN: Tensor | None) -> list[Tensor]:
        """Give the gradients in the order of the inputs, each in its input's dtype."""
        for rows, segments in self.plan.groups():
            carry_GNE = _carry(self.x, rows, dfinal_BEN)
            for segment in reversed(segments):
                carry_GNE = self.segment(_Part(self.x, self.softplus, segment), carry_GNE)
            if self.grads.initial is not None:
                self.grads.initial[rows] = carry_GNE.transpose(1, 2)
        self.grads.A.copy_(self.dA_NE.t())
        return [
            self.x.u.new_empty((0,)) if grad is None or given is None else grad.to(given.dtype)
            for grad, given in zip(self.grads, self.x, strict=True)
        ]

    def segment(self, part: _Part, carry_GNE: Tensor) -> Tensor:
        """Fill the gradients of one segment; give what reaches the states before it."""
        segment, grads = part.segment, self.grads
        at = (segment.rows, segment.positions)

        # The states again, from the one that enters each block.
        decay_TMNE, state_TMNE, dstate_TMNE = self.plan.work(segment)
        part.fill(self.log2_NE, decay_TMNE, state_TMNE)
        enters_MNE = segment.entering(self.kept).transpose(0, 1).flatten(0, 1)
        decay = decay_TMNE.unbind()
        _scan(decay, state_TMNE.unbind(), enters_MNE)

        dy = self._through_gate(part, state_TMNE)
        if grads.D is not None:
            grads.D.add_((dy * part.u).sum(dim=(0, 1)))
        dy_TME = segment.cut(dy)
        grads.C[at] = segment.join(_contract_channels(dy_TME, state_TMNE))

        # The recurrence backwards: dstate[t] = C[t] dy[t] + decay[t + 1] dstate[t + 1].
        torch.mul(dy_TME.unsqueeze(-2), part.C_TMN.unsqueeze(-1), out=dstate_TMNE)
        dstate, shifted = dstate_TMNE.unbind()[::-1], (decay[0], *decay[:0:-1])
        enters_back_MNE = carry_GNE
        if segment.blocks > 1:
            end_MNE = _last(shifted, dstate).mul_(decay[0])
            enters_back_MNE, carry_GNE = part.chain(end_MNE, self.log2_NE, carry_GNE, reverse=True)
        dstate[0].add_(enters_back_MNE)
        first_MNE = _scan(shifted[1:], dstate[1:], dstate[0])
        if segment.blocks == 1:
            carry_GNE = decay[0] * first_MNE

        dv = segment.join(_contract_states(part.B_TMN, dstate_TMNE))
        grads.B[at] = segment.join(_contract_channels(part.v_TME, dstate_TMNE))

        # Through the decays: d(step A) = dstate[t] decay[t] state[t - 1].
        dlog_TMNE = decay_TMNE.mul_(dstate_TMNE)
        dlog_TMNE[0].mul_(enters_MNE)
        dlog_TMNE[1:].mul_(state_TMNE[:-1])
        spent_TMNE = torch.mul(dlog_TMNE, part.step_TME.unsqueeze(-2), out=dstate_TMNE)
        self.dA_NE.add_(spent_TMNE.sum(dim=(0, 1)))
        dstep = segment.join(dlog_TMNE.mul_(self.A_NE).sum(dim=-2))

        du = dv * part.step
        if part.D_E is not None:
            du.addcmul_(dy, part.D_E)
        grads.u[at] = du
        draw = torch.addcmul(dstep, dv, part.u)
        if self.softplus:
            draw.mul_(torch.sigmoid(part.raw))
        grads.delta[at] = draw
        if grads.bias is not None:
            grads.bias.add_(draw.sum(dim=(0, 1)))
        return carry_GNE

    def _through_gate(self, part: _Part, state_TMNE: Tensor) -> Tensor:
        """Fill the gradient of the gate; give that of the output before it."""
        dy = part.segment.of(self.dy_BLE, self.dtype)
        if self.x.z is None or self.grads.z is None:
            return dy
        z = part.segment.of(self.x.z, self.dtype)
        sigmoid = torch.sigmoid(z)
        gate = z * sigmoid
        slope = torch.addcmul(sigmoid, gate, 1 - sigmoid)
        at = (part.segment.rows, part.segment.positions)
        self.grads.z[at] = slope.mul_(dy).mul_(part.output(state_TMNE))
        return gate.mul_(dy)


def scan_flops(u: Sequence[int], A: Sequence[int]) -> int:
    """Count 6 operations for a position, channel and state: exponent, recurrence, sum."""
    return 6 * math.prod(u) * A[1]


@_scan_blocked.register_fake
def _outputs(x: ScanInputs, _softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Make room for the output, the final state and, with `keep`, what enters each block."""
    dtype = registry.wide_dtype(x.u.dtype)
    plan = _Plan(x.u, x.A.shape[1], dtype, buffers=0)
    kept = (plan.all_blocks, plan.batch, plan.states, plan.channels) if keep else (0,)
    final = x.u.new_empty((plan.batch, plan.channels, plan.states), dtype=dtype)
    return x.u.new_empty(x.u.shape), final, x.u.new_empty(kept, dtype=dtype)


def backward_of(scan: Any, name: str, **checks: Any) -> Callable[[Callable[..., Any]], None]:
    """Declare the operator that gives the gradients of a scan: a decorator."""

    def declare(function: Callable[..., Any]) -> None:
        back = registry.operator(name, lambda *args: 2 * scan_flops(args[3].u, args[3].A), **checks)
        operator = back(function)
        operator.register_fake(lambda _dy, _dfinal, _kept, x, *_: x.room())

        @scan.register_gradients
        def _(saved: registry.Saved, dy: Tensor | None, dfinal: Tensor | None) -> list[Tensor]:
            x, *options = saved.inputs[:-1]
            dy = torch.zeros_like(x.u) if dy is None else dy
            return operator(dy, dfinal, *saved.kept, x, *options)

    return declare


@backward_of(_scan_blocked, "selective_scan_blocked_backward", **_CHECKS)
def _backward(
    dy: Annotated[Tensor, "B L E"], dfinal: Annotated[Tensor | None, "B E N"],
    kept: Annotated[Tensor, "T B N E"], x: ScanInputs, softplus: bool,
) -> list[Tensor]:  # fmt: skip
    return _Backward(x, softplus, kept, dy).run(dfinal)


def _call_kernel(
    which: str, x: ScanInputs, softplus: bool, reverse: bool, further: list[Tensor | None]
) -> None:
    """Call a function of the kernels, which read rows side by side, or arrays without gaps."""
    native = getattr(kernels.native(), which)
    states = x.A.shape[1]
    threads = 1 if x.u.numel() * states < _SINGLE_THREAD else torch.get_num_threads()
    kinds = (kernels.beside if t is not None and t.dim() == 3 else kernels.dense for t in x[:-1])
    inputs = [kind(t) for kind, t in zip(kinds, x[:-1], strict=True)]
    native(
        x.u.dtype == torch.float64, (*x.u.shape, states, _KERNEL_STEPS, softplus, reverse),
        *(kernels.array(t) for t in (*inputs, kernels.dense(x.initial), *further)), threads,
    )  # fmt: skip


@registry.operator("selective_scan", lambda x, *_: scan_flops(x.u, x.A), kept=1, **_KERNEL_CHECKS)
def _scan_kernel(
    x: ScanInputs, softplus: bool, reverse: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan in C++; with `keep` also give the states between steps."""
    y, final, kept = found = _kernel_outputs(x, softplus, reverse, keep)
    _call_kernel("scan_forward", x, softplus, reverse, [y, final, kept if keep else None])
    return found


@_scan_kernel.register_fake
def _kernel_outputs(x: ScanInputs, *options: bool) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep = options
    batch, length, channels = x.u.shape
    kept = (batch, -(-length // _KERNEL_STEPS), x.A.shape[1], channels) if keep else (0,)
    y, final, kept = (x.u.new_empty(s) for s in (x.u.shape, (batch, *x.A.shape), kept))
    return y, final, kept


@backward_of(_scan_kernel, "selective_scan_backward", **_KERNEL_CHECKS)
def _kernel_backward(
    dy: Annotated[Tensor, "B L E"], dfinal: Annotated[Tensor | None, "B E N"],
    kept: Annotated[Tensor, "B T N E"], x: ScanInputs, softplus: bool, reverse: bool,
) -> list[Tensor]:  # fmt: skip
    grads = x.room()
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = (
        None if t is None else grad for grad, t in zip(grads, x, strict=True)
    )
    # These two are sums that the kernels always make.
    dD = torch.empty(x.A.shape[:1], dtype=dy.dtype, device=dy.device) if dD is None else dD
    dbias = torch.empty_like(dD) if dbias is None else dbias
    given = [kernels.beside(dy), kernels.dense(dfinal), kernels.dense(kept)]
    found = [du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial]
    _call_kernel("scan_backward", x, softplus, reverse, [*given, *found])
    return grads


def selective_scan(
    x: ScanInputs, *, softplus: bool = True, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence along a sequence.

    With ``d_t = softplus(delta_t + bias)``, for every channel and state::

        s_t = exp(d_t A) s_{t-1} + d_t B_t u_t
        y_t = (sum over states of C_t s_t + D u_t) * silu(z_t)

    Mamba (arXiv 2312.00752), algorithm 2, with the discretization of its public code: the input
    matrix enters as ``d_t B_t`` (Euler), not as the zero-order hold of the paper's equation 4.

    Parameters
    ----------
    softplus
        Whether the step sizes go through softplus.
    reverse
        Whether to read from the last position to the first: every sequence is turned around, and
        the output back again. The initial state is then the one after the last position.

    Returns
    -------
    y_BLE : Tensor
        Shape and dtype of ``x.u``. Everything inside is float32 at least, under autocast too.
    state_BEN : Tensor
        States after the last position read, shape (batch, channels, states), float32 at least.
    """
    _scan_blocked.check(*x, softplus, False)
    keep = registry.wants_gradient(x)
    if backend.use_kernels(*x):
        dtype = registry.wide_dtype(x.u.dtype)
        wide: Any = (t if t is None or t.dtype == dtype else t.to(dtype) for t in x)
        y_BLE, state_BEN, _ = _scan_kernel(ScanInputs(*wide), softplus, reverse, keep, checked=True)
        return (y_BLE if y_BLE.dtype == x.u.dtype else y_BLE.to(x.u.dtype)), state_BEN
    if backend.use_triton(*x):
        from megabase.ops.triton.scan import scan

        return scan(x, softplus, reverse, keep, checked=True)[:2]
    with registry.without_autocast(x.u):
        if backend.use_plain(x.u):
            return whole_scan(x, softplus, reverse)
        if reverse:
            u, delta, B, C = (t.flip(1) for t in (x.u, x.delta, x.B, x.C))
            z = None if x.z is None else x.z.flip(1)
            x = x._replace(u=u, delta=delta, B=B, C=C, z=z)
        if backend.active() == "reference":
            y_BLE, state_BEN = whole_scan(x, softplus, stepwise=True)
        else:
            y_BLE, state_BEN, _ = _scan_blocked(x, softplus, keep, checked=True)
        return (y_BLE.flip(1) if reverse else y_BLE), state_BEN


_STEP = registry.Arguments(
    "selective_step",
    {
        "u": "B E", "delta": "B E", "A": "E N", "B": "B N", "C": "B N", "D": "E", "z": "B E",
        "bias": "E", "initial": "B E N",
    },
)  # fmt: skip
"""Shapes of the inputs of one step."""


def selective_step(x: ScanInputs, *, softplus: bool = True) -> tuple[Tensor, Tensor]:
    """Advance the recurrence of :func:`selective_scan` by one position.

    Of the inputs u, delta and z are of shape (batch, channels), B and C of (batch, states), and
    ``initial``, which is not changed, are the states before the position. Gives its output in the
    dtype of ``x.u``, and the states after it.
    """
    _STEP.check(*x)
    with registry.without_autocast(x.u):
        dtype = registry.wide_dtype(x.u.dtype)
        u, delta, B, C = (t.to(dtype) for t in (x.u, x.delta, x.B, x.C))
        if x.bias is not None:
            delta = delta + x.bias
        if softplus:
            delta = F.softplus(delta)
        state_BEN = (delta * u)[..., None] * B[:, None]
        if x.initial is not None:
            state_BEN = torch.exp(delta[..., None] * x.A) * x.initial + state_BEN
        y_BE = (state_BEN * C[:, None]).sum(dim=-1)
        if x.D is not None:
            y_BE = y_BE + x.D * u
        if x.z is not None:
            y_BE = y_BE * F.silu(x.z.to(dtype))
        return y_BE.to(x.u.dtype), state_BEN

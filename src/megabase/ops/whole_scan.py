"""The selective scan's definition, and its recurrence over whole tensors, for accelerators.

A sweep up adds positions in pairs, pairs in fours and so on, a sweep down hands the sums on to the
positions between: about 3 log2 L calls in place of L, and twice the work of a step after another.
All states exist at once, so very long inputs are cut, by memory alone. No quotient of decays is
formed. Kept for the backward pass: the inputs, and the states between the parts.

Shape suffixes: B batch, L positions, T positions of a part, E channels, N states per channel.
"""

from operator import index
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops.registry import exact_products, wide_dtype

_STATES = 1 << 28
"""States that exist at a time, about: 1 GiB in float32, of which the backward pass needs five."""


class ScanInputs(NamedTuple):
    """Inputs of a scan, for one step without L; what is None is left out of the formula."""

    u: Annotated[Tensor, "B L E"]  # input
    delta: Annotated[Tensor, "B L E"]  # step sizes before bias and softplus
    A: Annotated[Tensor, "E N"]  # decay rates; negative in every published model
    B: Annotated[Tensor, "B L N"]  # what enters the states
    C: Annotated[Tensor, "B L N"]  # what leaves the states
    D: Annotated[Tensor | None, "E"] = None  # weight of the input that skips the states
    z: Annotated[Tensor | None, "B L E"] = None  # gate
    bias: Annotated[Tensor | None, "E"] = None  # of the step sizes
    initial: Annotated[Tensor | None, "B E N"] = None  # before the first position; None: zeros

    def room(self) -> list[Tensor]:
        """Make room for a gradient of each, empty for what is left out."""
        return [self.u.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in self]


class _Inputs(NamedTuple):
    """What the recurrence reads: ``s_t = exp(step_t A) s_{t-1} + v_t B_t``, ``y_t = C_t s_t``."""

    step: Tensor  # (B, L, E)
    v: Tensor  # (B, L, E)
    A: Tensor  # (N, E)
    B: Tensor  # (B, L, N)
    C: Tensor  # (B, L, N)
    initial: Tensor | None  # (B, N, E)

    def part(self, at: slice) -> "_Inputs":
        """Give the inputs of some positions."""
        step, v, B, C = (t[:, at] for t in (self.step, self.v, self.B, self.C))
        return _Inputs(step, v, self.A, B, C, self.initial)

    def decays(self) -> Tensor:
        """Give the decay at every position, (B, T, N, E)."""
        return torch.exp(self.step[:, :, None] * self.A)

    def states(self, decay_BTNE: Tensor, enters_BNE: Tensor | None, reverse: bool) -> Tensor:
        """Give the states at every position, (B, T, N, E); the decays are used up."""
        state_BTNE = self.v[:, :, None] * self.B[..., None]
        if enters_BNE is not None:
            first = -1 if reverse else 0
            state_BTNE[:, first].addcmul_(decay_BTNE[:, first], enters_BNE)
        _sweep(decay_BTNE, state_BTNE, reverse)
        return state_BTNE


def _sweep(factor_BTX: Tensor, value_BTX: Tensor, reverse: bool) -> None:
    """Add ``factor[t] * value[t - 1]`` to every value in reading order; factors are used up."""
    length = value_BTX.shape[1]

    def add(first: int, reach: int) -> tuple[slice, slice]:
        """Add values, two reaches apart from the first, to those read a reach after them."""
        between = 2 * reach
        last = first + (length - 1 - reach - first) // between * between
        start, by = (length - 1 - last, -reach) if reverse else (first, reach)
        there = slice(start, start + last - first + 1, between)
        here = slice(there.start + by, there.stop + by, between)
        value_BTX[:, here].addcmul_(factor_BTX[:, here], value_BTX[:, there])
        return here, there

    reach = 1
    while 2 * reach <= length:
        here, there = add(reach - 1, reach)
        factor_BTX[:, here].mul_(factor_BTX[:, there])
        reach *= 2
    while reach >= 1:
        if 3 * reach <= length:
            add(2 * reach - 1, reach)
        reach //= 2


def _parts(length: int, each: int, reverse: bool) -> list[slice]:
    """Cut positions, in the order in which they are read."""
    found = [slice(i, min(i + each, length)) for i in range(0, length, each)]
    return found[::-1] if reverse else found


def _part_length(given: _Inputs) -> int:
    batch, _, channels = given.step.shape
    return max(1, _STATES // max(1, batch * channels * given.A.shape[0]))


def _joined(parts: list[Tensor], reverse: bool) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts[::-1] if reverse else parts, 1)


class _Scan(torch.autograd.Function):
    """Outputs, final state, and what enters every part but the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        reverse: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = _Inputs(*tensors)
        carry_BNE, last = given.initial, 0 if reverse else -1
        y, kept = [], []
        for at in _parts(index(given.step.shape[1]), _part_length(given), reverse):
            part = given.part(at)
            if y and carry_BNE is not None:
                kept.append(carry_BNE)
            state_BTNE = part.states(part.decays(), carry_BNE, reverse)
            with exact_products():
                y.append((part.C[:, :, None] @ state_BTNE)[:, :, 0])
            carry_BNE = state_BTNE[:, last].clone()
        assert carry_BNE is not None
        stacked = torch.stack(kept) if kept else carry_BNE.new_empty(0)
        return _joined(y, reverse), carry_BNE, stacked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.reverse = inputs[0]
        ctx.save_for_backward(*inputs[1:], output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy_BLE: Tensor, dfinal_BNE: Tensor, _: Any
    ) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        given, reverse = _Inputs(*tensors), ctx.reverse
        parts = _parts(index(given.step.shape[1]), _part_length(given), reverse)
        enters = [given.initial, *(kept.unbind() if len(parts) > 1 else ())]
        carry_BNE, dA_NE = dfinal_BNE, None
        found = []
        for at, enters_BNE in zip(reversed(parts), reversed(enters), strict=True):
            with exact_products():
                *own, carry_BNE, dA = _part_backward(
                    given.part(at), dy_BLE[:, at], carry_BNE, enters_BNE, reverse
                )
            dA_NE = dA if dA_NE is None else dA_NE + dA
            found.append(own)
        dstep, dv, dB, dC = (_joined(list(each), not reverse) for each in zip(*found, strict=True))
        return None, dstep, dv, dA_NE, dB, dC, None if given.initial is None else carry_BNE


def _part_backward(
    part: _Inputs, dy_BTE: Tensor, carry_BNE: Tensor, enters_BNE: Tensor | None, reverse: bool
) -> tuple[Tensor, ...]:
    """Give the gradients of step, v, B, C, of what enters, and of A."""
    first, last, past = (-1, 0, 1) if reverse else (0, -1, -1)
    decay_BTNE = part.decays()
    state_BTNE = part.states(decay_BTNE.clone(), enters_BNE, reverse)
    dC_BTN = (state_BTNE @ dy_BTE[..., None])[..., 0]
    # The recurrence backwards: dstate[t] = C[t] dy[t] + decay[t + 1] dstate[t + 1].
    dstate_BTNE = part.C[..., None] * dy_BTE[:, :, None]
    dstate_BTNE[:, last].add_(carry_BNE)
    _sweep(decay_BTNE.roll(past, 1), dstate_BTNE, not reverse)
    carry_BNE = decay_BTNE[:, first] * dstate_BTNE[:, first]
    dv_BTE = (part.B[:, :, None] @ dstate_BTNE)[:, :, 0]
    dB_BTN = (dstate_BTNE @ part.v[..., None])[..., 0]
    # Through the decays: d(step A) = dstate[t] decay[t] state[t - 1].
    before_BTNE = state_BTNE.roll(-past, 1)
    before_BTNE[:, first] = 0.0 if enters_BNE is None else enters_BNE
    dlog_BTNE = decay_BTNE.mul_(dstate_BTNE).mul_(before_BTNE)
    dA_NE = (dlog_BTNE * part.step[:, :, None]).sum((0, 1))
    return (dlog_BTNE * part.A).sum(2), dv_BTE, dB_BTN, dC_BTN, carry_BNE, dA_NE


def _stepwise_scan(
    step_BLE: Tensor, v_BLE: Tensor, A_NE: Tensor, B_BLN: Tensor, C_BLN: Tensor,
    initial_BNE: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run ``s_t = exp(step_t A) s_{t-1} + v_t B_t``; give ``C_t s_t``, and the last states."""
    state_BNE = v_BLE.new_zeros(len(v_BLE), *A_NE.shape) if initial_BNE is None else initial_BNE
    y = []
    for t in range(v_BLE.shape[1]):
        enters_BNE = v_BLE[:, t, None] * B_BLN[:, t, :, None]
        state_BNE = torch.exp(step_BLE[:, t, None] * A_NE) * state_BNE + enters_BNE
        y.append((state_BNE * C_BLN[:, t, :, None]).sum(1))
    return torch.stack(y, dim=1), state_BNE


def whole_scan(
    x: ScanInputs, softplus: bool, reverse: bool = False, stepwise: bool = False
) -> tuple[Tensor, Tensor]:
    """Scan by sweeps over whole tensors, or one position after another: the definition.

    That reads forward only; see :func:`megabase.ops.selective_scan.selective_scan`.
    """
    dtype = wide_dtype(x.u.dtype)
    u, step, B, C = (t.to(dtype) for t in (x.u, x.delta, x.B, x.C))
    if x.bias is not None:
        step = step + x.bias.to(dtype)
    if softplus:
        step = F.softplus(step)
    initial = None if x.initial is None else x.initial.to(dtype).transpose(1, 2)
    given = (step, step * u, x.A.to(dtype).t(), B, C, initial)
    y_BLE, state_BNE = _stepwise_scan(*given) if stepwise else _Scan.apply(reverse, *given)[:2]
    if x.D is not None:
        y_BLE = torch.addcmul(y_BLE, u, x.D.to(dtype))
    if x.z is not None:
        y_BLE = y_BLE * F.silu(x.z.to(dtype))
    return y_BLE.to(x.u.dtype), state_BNE.transpose(1, 2)

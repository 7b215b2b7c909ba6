"""The Mamba mixer, a short convolution and a selective scan between projections, and its norm.

Mamba (arXiv 2312.00752), section 3.4, with the parameter names of state-spaces/mamba; in both
directions as in Caduceus (arXiv 2403.03234, section 3.1).

Shape suffixes: B batch, L positions, D channels of the model, E inner channels, F two times E,
N states per channel, K taps of the convolution, P = K - 1.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers.linear import bare, present, untouched
from megabase.ops import norm_mlp
from megabase.ops.causal_conv import causal_conv
from megabase.ops.norm_mlp import NormKind, NormWeights, normalize
from megabase.ops.selective_scan import ScanInputs, selective_scan, selective_step

Strategy = Literal["add", "ew_multiply"]  # how the two directions are joined
STRATEGIES: tuple[str, ...] = get_args(Strategy)  # names of all strategies


class Norm(nn.Module):
    """RMSNorm (``x / sqrt(mean(x^2) + eps) * weight``), or LayerNorm, of one strand or of two."""

    def __init__(self, d_model: int, eps: float = 1e-5, rms: bool = True) -> None:
        super().__init__()
        self.eps, self.rms = eps, rms
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = None if rms else nn.Parameter(torch.zeros(d_model))

    def forward(self, residual_BLD: Tensor, strands: int = 1) -> Tensor:
        """Normalize a running sum in float32 at least; give the dtype of the weights.

        With two strands the channels are two halves, each normalized by itself; the second one is
        in reverse order, and so are the weights it is multiplied by.
        """
        weights = NormWeights(self.weight, self.bias, self.eps)
        return normalize(residual_BLD, weights, NormKind(self.rms, strands))


def add_norm(
    norm: nn.Module, hidden_BLD: Tensor, residual_BLD: Tensor | None,
    residual_in_fp32: bool = False, strands: int = 1, swap: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Add what the last block gave to the running sum (None at the first) and normalize it.

    Gives both; the sum in float32 at least when `residual_in_fp32`. `strands` is 2 when the
    channels are those of two strands, the second in reverse order; with `swap` the two change
    places first, also where they are apart, as sequences of their own.
    """
    kind = NormKind(getattr(norm, "rms", False), strands, swap, residual_in_fp32)
    if type(norm) is Norm and untouched(norm) and present(norm, device=hidden_BLD.device):
        weights = NormWeights(norm.weight, norm.bias, norm.eps)
        return norm_mlp.add_norm(hidden_BLD, residual_BLD, weights, kind)
    total = norm_mlp.summed(hidden_BLD, residual_BLD, kind)
    return norm(total) if strands == 1 else norm(total, strands), total


@dataclass(frozen=True)
class MambaState:
    """What one mixer remembers of the positions before."""

    conv: Tensor  # the last K - 1 inputs of the convolution, (batch, K - 1, inner channels)
    ssm: Tensor  # states of the recurrence, (batch, inner channels, states), float32 at least


class MambaMixer(nn.Module):
    """Mix positions causally by a selective state-space model.

    `expand` is inner channels over `d_model`; `dt_rank` the rank of the step sizes, ``"auto"``
    being ``ceil(d_model / 16)``; `bias` that of the input and output projections.
    """

    sharded: Any = None
    """What :mod:`megabase.parallel` puts here when a sequence lies on several processes."""

    without_kernels = "the selective scan runs in torch; its C++ operators are several times faster"

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2,
        dt_rank: int | str = "auto", conv_bias: bool = True, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_inner = int(expand * d_model)
        self.d_state = d_state
        self.d_conv = d_conv
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self, hidden_BLD: Tensor, mask_BL: Tensor | None = None, state: MambaState | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, MambaState]:  # fmt: skip
        """Mix positions of (batch, length, width); give them, and what the next position needs.

        Positions where `mask_BL` is False enter neither the convolution nor the states. `reverse`
        reads from the last position to the first.
        """
        if state is not None and hidden_BLD.shape[1] == 1 and not torch.is_grad_enabled():
            return self._step(hidden_BLD, state, mask_BL)
        y_BLE, after = self.scan(self.in_proj(hidden_BLD), mask_BL, state, reverse)
        return self.out_proj(y_BLE), after

    def scan(
        self, xz_BLF: Tensor, mask_BL: Tensor | None = None, state: MambaState | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, MambaState]:  # fmt: skip
        """Do what lies between the projections: convolution, recurrence, gate.

        From the output of ``in_proj``, (batch, length, 2 * inner), to the input of ``out_proj``,
        and what the next position needs.
        """
        y_BLE, ssm_BEN = self.between(xz_BLF, mask_BL, state, reverse)
        first = max(0, xz_BLF.shape[1] - self.d_conv + 1)
        at = slice(0, self.d_conv - 1) if reverse else slice(first, None)
        mask_BP = None if mask_BL is None else mask_BL[:, at]
        last_BPE = _only_real(xz_BLF[:, at, : self.d_inner], mask_BP)
        past_BPE = None if state is None else state.conv
        x_BLE, before = last_BPE.flip(1) if reverse else last_BPE, self.d_conv - 1
        missing = max(0, before - x_BLE.shape[1])
        # A copy: not a view that keeps the whole input.
        tail_BPE = x_BLE[:, x_BLE.shape[1] - before + missing :].clone()
        if missing:
            if past_BPE is None:
                past_BPE = x_BLE.new_zeros(len(x_BLE), before, self.d_inner)
            past_BPE = past_BPE[:, before - missing :].to(x_BLE.dtype)
            tail_BPE = torch.cat([past_BPE, tail_BPE], dim=1)
        return y_BLE, MambaState(tail_BPE, ssm_BEN)

    def between(
        self, xz_BLF: Tensor, mask_BL: Tensor | None = None, state: MambaState | None = None,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Do what :meth:`scan` does, and give the states of the recurrence beside it."""
        x_BLE, z_BLE = xz_BLF.chunk(2, dim=-1)
        x_BLE = _only_real(x_BLE, mask_BL)
        past_BPE = None if state is None else state.conv
        if self.sharded is not None:
            past_BPE = self.sharded.past(x_BLE, self.d_conv, reverse)
        x_BLE = _only_real(self._convolve(x_BLE, past_BPE, reverse), mask_BL)
        delta_BLE, bias_E, B_BLN, C_BLN = self._steps(x_BLE)
        initial_BEN = None if state is None else state.ssm
        inputs = ScanInputs(
            x_BLE, delta_BLE, self._rates(), B_BLN, C_BLN, self.D, z_BLE, bias_E, initial_BEN
        )
        if self.sharded is not None:
            inputs = inputs._replace(initial=self.sharded.entering(inputs, reverse))
        return selective_scan(inputs, reverse=reverse)

    def _step(
        self, hidden_B1D: Tensor, state: MambaState, mask_B1: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """Mix one position with what came before it; see :meth:`forward`."""
        x_BE, z_BE = self.in_proj(hidden_B1D[:, 0]).chunk(2, dim=-1)
        mask_B = None if mask_B1 is None else mask_B1[:, 0]
        x_BE = _only_real(x_BE, mask_B)
        past_BPE = state.conv.to(x_BE.dtype)
        window_BKE = torch.cat([past_BPE, x_BE[:, None]], dim=1)
        if bare(self.conv1d, device=x_BE.device):
            taps_EK, bias_E = self.conv1d.weight[:, 0].to(x_BE.dtype), self.conv1d.bias
            y_BE = (window_BKE * taps_EK.t()).sum(dim=1)
            x_BE = F.silu(y_BE if bias_E is None else y_BE + bias_E.to(x_BE.dtype))
        else:
            x_BE = F.silu(self.conv1d(window_BKE.transpose(1, 2))[..., 0])
        x_BE = _only_real(x_BE, mask_B)
        delta_BE, bias_E, B_BN, C_BN = self._steps(x_BE)
        y_BE, ssm_BEN = selective_step(
            ScanInputs(x_BE, delta_BE, self._rates(), B_BN, C_BN, self.D, z_BE, bias_E, state.ssm)
        )
        return self.out_proj(y_BE)[:, None], MambaState(window_BKE[:, 1:], ssm_BEN)

    def _convolve(self, x_BLE: Tensor, past_BPE: Tensor | None, reverse: bool) -> Tensor:
        conv = self.conv1d
        if bare(conv, device=x_BLE.device):
            return causal_conv(x_BLE, conv.weight.squeeze(1), conv.bias, past_BPE, reverse)
        x_BLE = x_BLE.flip(1) if reverse else x_BLE
        if past_BPE is None:
            past_BPE = x_BLE.new_zeros(len(x_BLE), self.d_conv - 1, self.d_inner)
        given_BEL = torch.cat([past_BPE.to(x_BLE.dtype), x_BLE], dim=1).transpose(1, 2)
        y_BLE = F.silu(conv(given_BEL)).transpose(1, 2)
        return y_BLE.flip(1) if reverse else y_BLE

    def _steps(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Give step sizes, a bias to add to them, and what enters and leaves the states."""
        dt, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if bare(self.dt_proj, device=x.device):
            return F.linear(dt, self.dt_proj.weight), self.dt_proj.bias, b, c
        return self.dt_proj(dt), None, b, c

    def _rates(self) -> Tensor:
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return -torch.exp(self.A_log.to(wide))


def _only_real(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[..., None].to(x.dtype)


class BidirectionalMamba(nn.Module):
    """One Mamba mixer along the sequence and, when `bidirectional`, one against it.

    Published models tie the projections of the two directions. Tying is the model's business (its
    ``_tied_weights_keys``); this layer sees that they are one tensor, and applies each once.
    """

    def __init__(
        self, d_model: int, bidirectional: bool = True, strategy: Strategy = "add", **options: Any
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise MegabaseError(
                f"expected a bidirectional strategy of {', '.join(STRATEGIES)}, found {strategy!r}"
            )
        self.strategy = strategy
        self.mamba_fwd = MambaMixer(d_model, **options)
        self.mamba_rev = MambaMixer(d_model, **options) if bidirectional else None

    def forward(
        self, hidden_BLD: Tensor, mask_BL: Tensor | None = None, reverse: bool = False
    ) -> Tensor:
        """Mix positions; arguments as for :meth:`MambaMixer.forward`."""
        fwd, rev = self.mamba_fwd, self.mamba_rev
        if rev is None:
            return fwd(hidden_BLD, mask_BL, reverse=reverse)[0]
        if untouched(fwd, rev) and _same(fwd.in_proj, rev.in_proj):
            # Projections act on each position alone: nothing needs to be turned around for them.
            xz_BLF = fwd.in_proj(hidden_BLD)
            y_BLE, _ = fwd.between(xz_BLF, mask_BL, reverse=reverse)
            y_rev_BLE, _ = rev.between(xz_BLF, mask_BL, reverse=not reverse)
            if self.strategy == "add" and _same(fwd.out_proj, rev.out_proj):
                out_BLD = fwd.out_proj(y_BLE + y_rev_BLE)
                return out_BLD if fwd.out_proj.bias is None else out_BLD + fwd.out_proj.bias
            out_BLD, out_rev_BLD = fwd.out_proj(y_BLE), rev.out_proj(y_rev_BLE)
        else:
            out_BLD = fwd(hidden_BLD, mask_BL, reverse=reverse)[0]
            out_rev_BLD = rev(hidden_BLD, mask_BL, reverse=not reverse)[0]
        return out_BLD + out_rev_BLD if self.strategy == "add" else out_BLD * out_rev_BLD


def _same(one: nn.Module, other: nn.Module) -> bool:
    both = bare(one, other) and isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    return both and one.weight is other.weight and one.bias is other.bias

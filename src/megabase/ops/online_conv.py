"""The long convolution, one position at a time: in tiles, O(L log^2 L) for L positions, exact.

Shape suffixes: B batch, D channels, L positions, M lags, T positions of a block, U positions of a
tile, N transform length, F frequencies; d is a block of D.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops.long_conv import BLOCK_SAMPLES, fft_length, long_conv
from megabase.ops.registry import Arguments

_BLOCK = 64
"""Positions within which inputs are added to outputs one by one: one small product in the cache."""
_FEW = 16  # a tile that reaches no more outputs than this is summed without a transform
_CACHED_USES = 4  # spectra of a tile size are kept when this many tiles of it lie ahead
_CHECKED = Arguments("online_conv", {"k": "D M", "skip": "D"}, least={"M": 1})
"""What a convolution begins with."""


def online_conv(k_DM: Tensor, skip_D: Tensor | None, batch: int) -> "_OnlineConv":
    """Begin a causal long convolution whose inputs come one by one.

    Of float32 or float64, with as many lags as there will be positions at most: (channels, length).
    Outputs equal those of :func:`megabase.ops.long_conv.long_conv` on all inputs.
    """
    _CHECKED.check(k_DM, skip_D)
    if batch < 1:
        raise OperatorError(f"online_conv: expected a batch of 1 or more, found {batch}")
    run = _OnlineConvReference if backend.active() == "reference" else _Tiled
    return run(k_DM, None if skip_D is None else skip_D.to(k_DM.dtype), batch)


class _OnlineConv(ABC):
    """A causal long convolution whose inputs come one by one; made by :func:`online_conv`."""

    slot: Tensor  # where the next input, (batch, channels), is written before :meth:`advance`

    @abstractmethod
    def prefill(self, u_BDL: Tensor) -> Tensor:
        """Read a prompt (batch, channels, length), at the beginning only; give its outputs."""

    @abstractmethod
    def advance(self) -> Tensor:
        """Take the input from :attr:`slot`; give its output, a view until :meth:`go_on`."""

    def go_on(self) -> None:
        """Go on to the next position."""
        return

    def step(self, u_BD: Tensor) -> Tensor:
        """Read one input, shape (batch, channels), and give the output at its position."""
        if u_BD.shape != self.slot.shape or not u_BD.is_floating_point():
            raise OperatorError(
                f"online_conv: expected real inputs {tuple(self.slot.shape)}, found "
                f"{tuple(u_BD.shape)} of {u_BD.dtype}"
            )
        self.slot.copy_(u_BD)
        output_BD = self.advance().to(u_BD.dtype, copy=True)
        self.go_on()
        return output_BD


class _OnlineConvReference(_OnlineConv):
    """The definition: keep all inputs, and sum over them at each step."""

    def __init__(self, k_DM: Tensor, skip_D: Tensor | None, batch: int) -> None:
        self.k_DM, self.skip_D = k_DM, skip_D
        self.u_BDL = k_DM.new_empty(batch, k_DM.shape[0], 0)
        self.slot = k_DM.new_empty(batch, k_DM.shape[0])

    def prefill(self, u_BDL: Tensor) -> Tensor:
        """Step through the prompt."""
        steps = [self.step(u_BD) for u_BD in u_BDL.unbind(-1)]
        return torch.stack(steps, dim=-1) if steps else u_BDL.clone()

    def advance(self) -> Tensor:
        """Sum over the whole past."""
        self.u_BDL = torch.cat([self.u_BDL, self.slot[..., None]], dim=-1)
        y_BD = (self.u_BDL * self.k_DM[:, : self.u_BDL.shape[-1]].flip(-1)).sum(-1)
        return y_BD if self.skip_D is None else y_BD + self.skip_D * self.slot


class _Tiled(_OnlineConv):
    """Inputs and pending outputs in tiles of one buffer."""

    def __init__(self, k_DM: Tensor, skip_D: Tensor | None, batch: int) -> None:
        self.k_DM, self.skip_D = k_DM, skip_D
        channels, self.length = k_DM.shape
        self.block = min(_BLOCK, self.length)
        shape_T = (self.block, batch, channels)
        near_TD = k_DM[:, : self.block].t().clone()
        if skip_D is not None:
            near_TD[0] += skip_D  # a tap at lag 0
        near_T1D = near_TD[:, None].contiguous()
        # Views for every place in a block are made once: each would cost as much as the product.
        self._inputs_TBD = k_DM.new_zeros(shape_T)
        self._pending_TBD = k_DM.new_zeros(shape_T)
        self._slots = list(self._inputs_TBD.unbind(0))
        self._outputs = list(self._pending_TBD.unbind(0))
        self._reached = [self._pending_TBD[j:] for j in range(self.block)]
        self._taps = [near_T1D[: self.block - j] for j in range(self.block)]
        self._taps_U1D = torch.cat([torch.zeros_like(near_T1D), near_T1D])
        self._order_T = torch.arange(self.block, 2 * self.block, device=k_DM.device)
        self._buffer_LBD = k_DM.new_empty(0, batch, channels)
        self._spectra: dict[int, Tensor] = {}
        self._begun = False
        self._start = 0  # position at which the tiles begin: the length of the prompt
        self._place = 0  # within the block
        self._done = 0  # inputs since the start in whole blocks

    @property
    def slot(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._slots[self._place]

    def advance(self) -> Tensor:
        place = self._place
        if not self._begun:
            self._begin(None)
        self._reached[place].addcmul_(self._taps[place], self._slots[place])
        return self._outputs[place]

    def advance_at(self, u_BD: Tensor, place_1: Tensor) -> Tensor:
        """Advance by operations that are the same at every place, of which they read where it is.

        A block's end, where tiles of many sizes are added, is for :meth:`go_on`.
        """
        if not self._begun:
            self._begin(None)
        self._inputs_TBD.index_copy_(0, place_1, u_BD[None].to(self._inputs_TBD.dtype))
        # Places before this one get taps that are zero.
        taps_T1D = self._taps_U1D.index_select(0, self._order_T - place_1)
        self._pending_TBD.addcmul_(taps_T1D, u_BD)
        return self._pending_TBD.index_select(0, place_1)[0]

    def go_on(self) -> None:
        self._place += 1
        if self._place == self.block:
            self._finish_block()
            self._place = 0

    def prefill(self, u_BDL: Tensor) -> Tensor:
        length = u_BDL.shape[-1]
        if length == 0:
            return u_BDL.clone()
        self._begin(u_BDL)
        return long_conv(u_BDL, self.k_DM[:, :length].contiguous(), self.skip_D)

    def _begin(self, prompt_BDL: Tensor | None) -> None:
        """Make room for all later positions, holding what the prompt adds to them."""
        self._begun = True
        self._start = 0 if prompt_BDL is None else prompt_BDL.shape[-1]
        _, batch, channels = self._buffer_LBD.shape
        later = max(1, self.length - self._start)
        self._buffer_LBD = self.k_DM.new_zeros(later, batch, channels)
        if prompt_BDL is not None and self._start < self.length:
            # What wraps around the circle falls on positions of the prompt.
            n_fft = fft_length(self.length)
            width = max(1, BLOCK_SAMPLES // n_fft // batch)
            for d in range(0, channels, width):
                part = slice(d, d + width)
                U_BdF = torch.fft.rfft(prompt_BDL[:, part].to(self.k_DM.dtype), n=n_fft)
                U_BdF.mul_(torch.fft.rfft(self.k_DM[part], n=n_fft))
                y_Bdl = torch.fft.irfft(U_BdF, n=n_fft)[..., self._start : self.length]
                self._buffer_LBD[:, :, part] = y_Bdl.permute(2, 0, 1)
        self._load_block()

    def _load_block(self) -> None:
        """Bring the pending outputs of the next block near."""
        part_TBD = self._buffer_LBD[self._done : self._done + self.block]
        self._pending_TBD[: len(part_TBD)] = part_TBD

    def _finish_block(self) -> None:
        begin, self._done = self._done, self._done + self.block
        ahead = len(self._buffer_LBD) - self._done
        if ahead <= 0:
            return
        self._buffer_LBD[begin : self._done] = self._inputs_TBD
        blocks = self._done // self.block
        size = self.block * (blocks & -blocks)
        u_UBD = self._buffer_LBD[self._done - size : self._done]
        y_UBD = self._buffer_LBD[self._done : self._done + size]
        if len(y_UBD) > _FEW:
            self._add_by_fft(u_UBD, y_UBD, size)
        else:
            for place, y_BD in enumerate(y_UBD):
                taps_DU = self.k_DM[:, place + 1 : place + 1 + size].flip(-1)
                y_BD += torch.einsum("dbu,du->bd", u_UBD.permute(2, 1, 0), taps_DU)
        self._load_block()

    def _add_by_fft(self, u_UBD: Tensor, y_UBD: Tensor, size: int) -> None:
        # Lags 1 to 2U - 1 on a circle of 2U: what wraps around falls on places 0 to U - 2, and the
        # outputs wanted are places U to 2U - 1.
        n_fft, (_, batch, channels) = 2 * size, u_UBD.shape
        u_BDU = u_UBD.permute(1, 2, 0)
        if size not in self._spectra and len(self._buffer_LBD) >= 2 * _CACHED_USES * size:
            self._spectra[size] = self._transform(slice(None), n_fft)
        kept = self._spectra.get(size)
        width = max(16, BLOCK_SAMPLES // n_fft // batch)
        for d in range(0, channels, width):
            part = slice(d, d + width)
            U_BdF = torch.fft.rfft(u_BDU[:, part], n=n_fft)
            U_BdF.mul_(self._transform(part, n_fft) if kept is None else kept[part])
            y_BdN = torch.fft.irfft(U_BdF, n=n_fft)
            y_UBD[..., part] += y_BdN[..., size : size + len(y_UBD)].permute(2, 0, 1)

    def _transform(self, part: slice, n_fft: int) -> Tensor:
        return torch.fft.rfft(self.k_DM[part, :n_fft], n=n_fft)

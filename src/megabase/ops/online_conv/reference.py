"""The definition of the online convolution: at each position, a sum over the whole past.

Shape suffixes: B batch, D channels, L positions, M lags.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megabase.errors import OperatorError


class OnlineConvReference:
    """Keep all inputs; sum over them at each step; see :func:`megabase.ops.online_conv`."""

    def __init__(self, k_DM: Tensor, skip_D: Tensor | None, batch: int) -> None:
        self.k_DM, self.skip_D = k_DM, skip_D
        self.u_BDL = k_DM.new_empty(batch, k_DM.shape[0], 0)
        self.slot = k_DM.new_empty(batch, k_DM.shape[0])
        """Where the next input, (batch, channels), may be written before :meth:`advance`."""

    def prefill(self, u_BDL: Tensor) -> Tensor:
        """Read the inputs (batch, channels, length) of a prompt; give the outputs there."""
        steps = [self.step(u_BD) for u_BD in u_BDL.unbind(-1)]
        return torch.stack(steps, dim=-1) if steps else u_BDL.clone()

    def step(self, u_BD: Tensor) -> Tensor:
        """Read one input, shape (batch, channels), and give the output at its position."""
        if u_BD.shape != self.slot.shape or not u_BD.is_floating_point():
            raise OperatorError(
                f"online_conv: expected real inputs {tuple(self.slot.shape)}, found "
                f"{tuple(u_BD.shape)} of {u_BD.dtype}"
            )
        self.slot.copy_(u_BD)
        return self.advance().to(u_BD.dtype)

    def advance(self) -> Tensor:
        """Take the input from :attr:`slot`; give the output at its position."""
        self.u_BDL = torch.cat([self.u_BDL, self.slot[..., None]], dim=-1)
        y_BD = (self.u_BDL * self.k_DM[:, : self.u_BDL.shape[-1]].flip(-1)).sum(-1)
        return y_BD if self.skip_D is None else y_BD + self.skip_D * self.slot

"""What would make a long run faster than it is."""

from __future__ import annotations

import torch
from torch import nn

from megabase.layers.hyena import HyenaOperator
from megabase.layers.mamba import MambaMixer
from megabase.ops import kernels

__all__ = ["slower_than_possible"]


def slower_than_possible(model: nn.Module, device: torch.device) -> str | None:
    """Say in one line what would make a long run faster; None where nothing would.

    Parameters
    ----------
    model
        Any model; those with Mamba or Hyena mixers gain by ``megabase-kernels``.
    device
        Where it runs; the kernels are for CPUs.
    """
    why = kernels.why_missing()
    if why is None or device.type != "cpu":
        return None
    modules = list(model.modules())
    if any(isinstance(module, MambaMixer) for module in modules):
        return (
            f"the selective scan runs in torch; its C++ operators are several times faster: {why}"
        )
    if any(isinstance(module, HyenaOperator) for module in modules):
        return f"Hyena blocks run in torch; their C++ operators are about 1.5 times as fast: {why}"
    return None

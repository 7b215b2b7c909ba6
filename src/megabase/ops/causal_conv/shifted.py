"""The causal convolution as a sum of shifted inputs.

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1 positions before the first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv_shifted(
    x_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None = None, past_BPE: Tensor | None = None
) -> Tensor:
    """Add shifted inputs; see :func:`megabase.ops.causal_conv.causal_conv`."""
    # Channels stay last, where the library's convolution would turn the layout around twice.
    length, before = x_BLE.shape[1], taps_EK.shape[1] - 1
    if past_BPE is None:
        past_BPE = x_BLE.new_zeros(x_BLE.shape[0], before, x_BLE.shape[2])
    x_BLE = torch.cat([past_BPE, x_BLE], dim=1)
    y_BLE = x_BLE[:, :length] * taps_EK[:, 0]
    for tap in range(1, before + 1):
        y_BLE = torch.addcmul(y_BLE, x_BLE[:, tap : tap + length], taps_EK[:, tap])
    return F.silu(y_BLE if bias_E is None else y_BLE + bias_E)

"""The definition of the causal convolution with SiLU.

Shape suffixes: B batch, L positions, E channels, K taps, P = K - 1 positions before the first.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def causal_conv_reference(
    x_BLE: Tensor, taps_EK: Tensor, bias_E: Tensor | None = None, past_BPE: Tensor | None = None
) -> Tensor:
    """Convolve by the library; see :func:`megabase.ops.causal_conv.causal_conv`."""
    before = taps_EK.shape[1] - 1
    x_BEL = x_BLE.transpose(1, 2)
    padded = F.pad(x_BEL, (before, 0))
    if past_BPE is not None:
        padded = F.pad(x_BEL, (before, 0)) + F.pad(past_BPE.transpose(1, 2), (0, x_BEL.shape[-1]))
    y_BEL = F.conv1d(padded, taps_EK[:, None], bias_E, groups=taps_EK.shape[0])
    return F.silu(y_BEL).transpose(1, 2)

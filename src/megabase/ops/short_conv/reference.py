"""The definition of the short depthwise convolution.

Shape suffixes: B batch, C channels, L positions, K taps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def short_conv_reference(
    x_BCL: Tensor, w_CK: Tensor, b_C: Tensor | None = None, *, centred: bool = False
) -> Tensor:
    """Convolve with torch's grouped convolution; see :func:`megabase.ops.short_conv.short_conv`."""
    taps = w_CK.shape[-1]
    after = (taps - 1) // 2 if centred else 0
    padded_BCL = F.pad(x_BCL, (taps - 1 - after, after))
    return F.conv1d(padded_BCL, w_CK[:, None, :], b_C, groups=w_CK.shape[0])

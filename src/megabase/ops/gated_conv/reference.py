"""The definition of the gated convolution, by the definitions of its parts.

Shape suffixes: B batch, P projected channels (3 D), D channels, L positions, K taps, M lags.
"""

from __future__ import annotations

from torch import Tensor

from megabase.ops.long_conv.reference import long_conv_reference
from megabase.ops.short_conv.reference import short_conv_reference

__all__ = ["gated_conv_reference"]


def gated_conv_reference(
    p_BPL: Tensor,
    w_PK: Tensor,
    b_P: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None = None,
    *,
    centred: bool = False,
    two_sided: bool = False,
) -> Tensor:
    """Convolve, gate, convolve, gate; see :func:`megabase.ops.gated_conv.gated_conv`."""
    short_BPL = short_conv_reference(p_BPL, w_PK, b_P, centred=centred)
    out_BDL, gate_BDL, v_BDL = short_BPL.chunk(3, dim=1)
    y_BDL = long_conv_reference(v_BDL * gate_BDL, k_DM, skip_D, two_sided=two_sided)
    return y_BDL * out_BDL

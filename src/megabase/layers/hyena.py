"""The Hyena operator: gates around long convolutions.

Shape suffixes: B batch, L positions, D model width, P projected channels ((order + 1) D), M lags,
O long convolutions (order - 1).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megabase.errors import MegabaseError
from megabase.layers.hyena_filter import FilterOptions, HyenaFilter
from megabase.layers.linear import (
    ResidualLinear,
    bare,
    from_channel_major,
    product_dtype,
    to_channel_major,
    untouched,
)
from megabase.ops import backend
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.long_conv import long_conv
from megabase.ops.short_conv import short_conv

Bidirectional = Literal["none", "published", "two_sided"]
"""``"none"`` causal; ``"published"`` the published arithmetic, which reaches only positions about
half a sequence away; ``"two_sided"`` a convolution with positive and negative lags."""

ACTIVATIONS = {
    "id": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
    "sigmoid": F.sigmoid,
}
"""Functions that may stand between the last gate and the output projection."""


def _published_two_sided(k_DL: Tensor) -> Tensor:
    """Arrange one-sided taps as the published bidirectional mode applies them: (channels, 2L - 1).

    The published code pads the input by half its length on both sides, convolves on a circle of
    2L, and keeps the first L samples instead of the central ones. Tap j is thus applied at lag
    j + L // 2 (about), or at j + L // 2 - 2L around the circle; nearby positions are not reached.
    """
    length = k_DL.shape[1]
    padded = length + 2 * (length // 2)
    before = padded // 2 - length // 2
    # Lag g >= before: tap g - before. Lag g < before - L: tap g - before + 2L, around the circle.
    later = k_DL[:, : length - before]
    earlier = k_DL[:, length + 1 - before :]
    gap = 2 * length - 1 - earlier.shape[1] - later.shape[1]
    middle = k_DL.new_zeros(k_DL.shape[0], gap)
    return torch.cat([earlier, middle, later], dim=1)


class HyenaOperator(nn.Module):
    """Hyena mixer of any order (HyenaDNA paper, arXiv 2306.15794, equation 3).

    For order 2, with ``x0, x1, v`` the three blocks of the projected, short-convolved input: ``y =
    x0 * (h conv (x1 * v) + bias * (x1 * v))``. Higher orders have as many gates. `dropout` is of
    gated values before a long convolution, `output_activation` a name in :data:`ACTIVATIONS`;
    ``"two_sided"`` also centers the short convolution, of `short_filter_order` taps.
    """

    without_kernels = "Hyena blocks run in torch; their C++ operators are about 1.5 times as fast"

    def __init__(
        self,
        d_model: int,
        l_max: int,
        order: int = 2,
        short_filter_order: int = 3,
        bidirectional: Bidirectional = "none",
        output_activation: str = "id",
        dropout: float = 0.0,
        filter_options: FilterOptions | None = None,
    ) -> None:
        super().__init__()
        if order < 2:
            raise MegabaseError(f"expected a Hyena order of at least 2, got {order}")
        filter_options = filter_options or FilterOptions()
        self.d_model = d_model
        self.l_max = l_max
        self.order = order
        self.filter_layout = filter_options.layout
        self.bidirectional = bidirectional
        self.output_activation = output_activation
        self.dropout = dropout
        projected = d_model * (order + 1)
        self.in_proj = nn.Linear(d_model, projected)
        self.out_proj = ResidualLinear(d_model, d_model)
        # Holds the weights under their published names; the operator does the work.
        self.short_filter = nn.Conv1d(
            projected,
            projected,
            short_filter_order,
            groups=projected,
            padding=short_filter_order - 1,
        )
        self.filter_fn = HyenaFilter(d_model * (order - 1), l_max, filter_options)

    def per_convolution(self, x_C: Tensor) -> list[Tensor]:
        """Split filter channels (axis 0) into one tensor per long convolution."""
        if self.order == 2:
            return [x_C]
        convolutions = self.order - 1
        if self.filter_layout == "training":
            grouped = x_C.unflatten(0, (self.d_model, convolutions)).transpose(0, 1)
        else:
            grouped = x_C.unflatten(0, (convolutions, self.d_model))
        return list(grouped.unbind(0))

    def filters(self, length: int) -> tuple[list[Tensor], list[Tensor | None]]:
        """Compute taps and skip terms of the long convolutions for `length` positions."""
        sides = "both" if self.bidirectional == "two_sided" else "one"
        k_CM, skip_C = self.filter_fn(length, sides)
        if self.bidirectional == "published":
            k_CM = _published_two_sided(k_CM)
        k_ODM = self.per_convolution(k_CM)
        return k_ODM, [None] * len(k_ODM) if skip_C is None else [*self.per_convolution(skip_C)]

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Mix positions of (batch, length, width); InputError for inputs longer than ``l_max``.

        Positions where `mask_BL` is False are emptied before every convolution, so that real ones
        do not see them. A causal operator on right-padded input needs no mask.
        """
        k_ODM, skips = self.filters(x_BLD.shape[1])
        p_BPL = to_channel_major(self.in_proj, x_BLD)
        mask_B1L = None if mask_BL is None else mask_BL[:, None].to(p_BPL.dtype)
        y_BDL = self.mix(p_BPL, k_ODM, skips, mask_B1L)
        if self.output_activation != "id":
            y_BDL = ACTIVATIONS[self.output_activation](y_BDL)
        return from_channel_major(self.out_proj, y_BDL)

    def fuses(self, x_BLD: Tensor, norm: nn.Module, mask_BL: Tensor | None) -> bool:
        """Whether :meth:`fused` gives what the separate modules would."""
        return (
            self.order == 2
            and mask_BL is None
            and not (self.dropout > 0 and self.training)
            and self.output_activation == "id"
            and untouched(self)
            and bare(norm, self.in_proj, self.short_filter, self.out_proj, device=x_BLD.device)
            and backend.active() != "reference"
        )

    def fused(self, x_BLD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Mix the LayerNorm of `x_BLD`, keeping only it and the filter for the backward pass."""
        (k_DM,), (skip_D,) = self.filters(x_BLD.shape[1])
        weights = MixerWeights(
            norm.weight, norm.bias, norm.eps, self.in_proj.weight, self.in_proj.bias,
            self.short_filter.weight[:, 0], cast("Tensor", self.short_filter.bias),
            k_DM, skip_D, self.out_proj.weight, self.out_proj.bias,
        )  # fmt: skip
        return hyena_mixer(
            x_BLD,
            weights,
            centered=self.bidirectional == "two_sided",
            two_sided=self.bidirectional != "none",
            product=product_dtype(x_BLD),
        )

    def short(self, p_BPL: Tensor) -> Tensor:
        """Apply the short convolution to projected channels."""
        short, centered = self.short_filter, self.bidirectional == "two_sided"
        if bare(short, device=p_BPL.device):
            return short_conv(p_BPL, short.weight[:, 0], short.bias, centered=centered)
        # The module pads both ends by taps - 1 and so gives more positions than there are: causal
        # ones come first.
        first = (short.kernel_size[0] - 1) // 2 if centered else 0
        return short(p_BPL)[..., first : first + p_BPL.shape[-1]]

    def mix(
        self,
        p_BPL: Tensor,
        k_ODM: list[Tensor],
        skips: list[Tensor | None],
        mask_B1L: Tensor | None = None,
    ) -> Tensor:
        """Apply short convolution, gates and long convolutions to projected channels."""
        dropping = self.dropout > 0 and self.training
        if mask_B1L is not None:
            p_BPL = p_BPL * mask_B1L
        p_BPL = self.short(p_BPL)
        first, *gates, v_BDL = p_BPL.split(self.d_model, dim=1)
        for gate, k_DM, skip_D in zip(reversed(gates), k_ODM, skips, strict=True):
            v_BDL = v_BDL * gate
            if dropping:
                v_BDL = F.dropout(v_BDL, self.dropout)
            if mask_B1L is not None:
                v_BDL = v_BDL * mask_B1L
            v_BDL = long_conv(v_BDL, k_DM, skip_D, two_sided=self.bidirectional != "none")
        return v_BDL * first

"""The bidirectional Mamba mixer of Caduceus (arXiv 2403.03234, section 3.1).

Shape suffixes: B batch, L positions, D channels.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from megabase.errors import MegabaseError
from megabase.layers.linear import bare, untouched
from megabase.layers.mamba import MambaMixer
from megabase.layers.norms import Norm, add_norm

__all__ = ["STRATEGIES", "BidirectionalBlock", "BidirectionalMamba", "Strategy"]

Strategy = Literal["add", "ew_multiply"]
"""How the two directions are joined."""

STRATEGIES: tuple[str, ...] = get_args(Strategy)
"""Names of all strategies."""


class BidirectionalMamba(nn.Module):
    """One Mamba mixer along the sequence and one against it.

    Parameters
    ----------
    d_model
        Width.
    bidirectional
        Whether there is a second direction.
    strategy
        Whether the two outputs are added or multiplied.
    **options
        Settings of each :class:`~megabase.layers.mamba.MambaMixer`.

    Notes
    -----
    Published models tie the input and output projections of the two directions. Tying is the
    model's business (its ``_tied_weights_keys``); this layer sees that they are one tensor, and
    then applies each once.
    """

    def __init__(
        self,
        d_model: int,
        bidirectional: bool = True,
        strategy: Strategy = "add",
        **options: Any,
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise MegabaseError(
                f"expected a bidirectional strategy of {', '.join(STRATEGIES)}, found {strategy!r}"
            )
        self.strategy = strategy
        self.mamba_fwd = MambaMixer(d_model, **options)
        self.mamba_rev = MambaMixer(d_model, **options) if bidirectional else None

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Mix positions; shapes as for :meth:`MambaMixer.forward`."""
        fwd, rev = self.mamba_fwd, self.mamba_rev
        if rev is None:
            return fwd(hidden_BLD, mask_BL)[0]
        if untouched(fwd, rev) and _same(fwd.in_proj, rev.in_proj):
            # Projections act on each position alone: nothing needs to be turned around for them.
            xz_BLF = fwd.in_proj(hidden_BLD)
            y_BLE, _ = fwd.scan(xz_BLF, mask_BL)
            y_rev_BLE, _ = rev.scan(xz_BLF, mask_BL, reverse=True)
            if self.strategy == "add" and _same(fwd.out_proj, rev.out_proj):
                out_BLD = fwd.out_proj(y_BLE + y_rev_BLE)
                return out_BLD if fwd.out_proj.bias is None else out_BLD + fwd.out_proj.bias
            out_BLD, out_rev_BLD = fwd.out_proj(y_BLE), rev.out_proj(y_rev_BLE)
        else:
            out_BLD = fwd(hidden_BLD, mask_BL)[0]
            out_rev_BLD = rev(hidden_BLD, mask_BL, reverse=True)[0]
        return out_BLD + out_rev_BLD if self.strategy == "add" else out_BLD * out_rev_BLD


def _same(one: nn.Module, other: nn.Module) -> bool:
    both = bare(one, other) and isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    return both and one.weight is other.weight and one.bias is other.bias


class BidirectionalBlock(nn.Module):
    """Add to the running sum, normalise, mix.

    Parameters
    ----------
    norm
        The norm.
    mixer
        Called as ``mixer(hidden, mask)``.
    residual_in_fp32
        Whether the running sum is kept in float32 at least.
    """

    def __init__(self, norm: Norm, mixer: nn.Module, residual_in_fp32: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.residual_in_fp32 = residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give (output of the mixer, running sum before it), each (batch, length, width)."""
        hidden, residual = add_norm(self.norm, hidden, residual, self.residual_in_fp32)
        return self.mixer(hidden, mask), residual

"""The long convolution, one position at a time: what comes next is not known yet."""

from __future__ import annotations

from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops.online_conv.reference import OnlineConvReference
from megabase.ops.online_conv.tiled import OnlineConvTiled

__all__ = ["OnlineConvReference", "OnlineConvTiled", "online_conv"]


def online_conv(
    k_DM: Tensor, skip_D: Tensor | None, batch: int
) -> OnlineConvReference | OnlineConvTiled:
    """Begin a causal long convolution whose inputs come one by one.

    Parameters
    ----------
    k_DM
        Filter, shape (channels, length), float32 or float64: as many lags as there will be
        positions at most.
    skip_D
        Weight of the unconvolved input, shape (channels,), or None.
    batch
        Sequences.

    Returns
    -------
    OnlineConvTiled or OnlineConvReference
        ``prefill(u_BDL)``, at the beginning only, reads several inputs at once; ``step(u_BD)``
        reads one; both give the outputs at these positions, equal to those of
        :func:`megabase.ops.long_conv.long_conv` on all inputs. ``step`` in two parts: write to
        ``slot``, then ``advance()``.

    Raises
    ------
    OperatorError
        When the shapes do not fit.
    """
    fits = k_DM.dim() == 2 and k_DM.shape[1] > 0 and batch > 0
    if not fits or (skip_D is not None and skip_D.shape != k_DM.shape[:1]):
        raise OperatorError(
            "online_conv: expected k (channels, length >= 1), skip (channels,) and a batch of 1 or "
            "more; found "
            f"k {tuple(k_DM.shape)}, skip {None if skip_D is None else tuple(skip_D.shape)}, "
            f"batch {batch}"
        )
    for name, tensor in (("k", k_DM), ("skip", skip_D)):
        if tensor is not None and not tensor.is_floating_point():
            raise OperatorError(
                f"online_conv: {name} is {tensor.dtype}; expected floating-point numbers"
            )
    run = OnlineConvReference if backend.active() == "reference" else OnlineConvTiled
    return run(k_DM, None if skip_D is None else skip_D.to(k_DM.dtype), batch)

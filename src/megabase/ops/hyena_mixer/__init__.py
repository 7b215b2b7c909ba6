"""LayerNorm and the whole Hyena mixer of order 2, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from megabase.ops import backend
from megabase.ops.hyena_mixer.blocked import OPERATOR, hyena_mixer_blocked
from megabase.ops.hyena_mixer.reference import hyena_mixer_reference

__all__ = [
    "hyena_mixer",
    "hyena_mixer_blocked",
    "hyena_mixer_reference",
]


def hyena_mixer(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    *,
    centred: bool = False,
    two_sided: bool = False,
    product: torch.dtype | None = None,
) -> Tensor:
    """Normalise, project, convolve shortly, gate, convolve over the whole length, gate, project.

    Parameters
    ----------
    x
        Input, shape (batch, length, width).
    norm_w, norm_b, eps
        LayerNorm of the input, shapes (width,); without a weight nothing is normalised.
    w_in, b_in
        Projection to output gate, input gate and value, shapes (3 width, width) and (3 width,).
    w, b
        Taps and bias of the short convolution, shapes (3 width, taps) and (3 width,).
    k
        Filter, shape (width, length), or (width, 2 length - 1) when `two_sided`.
    skip
        Skip term, shape (width,), or None.
    w_out, b_out
        Output projection, shapes (width, width) and (width,).
    centred, two_sided
        Whether the short taps lie around the position instead of before it, and whether the filter
        also has negative lags.
    product
        Dtype of the matrix products; that of the weights when None. Short convolution, gates and
        transforms are in float32 at least.

    Returns
    -------
    Tensor
        Shape of `x`, in the dtype of the products.

    Raises
    ------
    OperatorError
        When shapes, dtypes or devices do not fit; the message lists everything.

    Notes
    -----
    Equals a LayerNorm, a linear map, a short and a long convolution with gates around it, and a
    linear map.
    The fast path keeps only its inputs for the backward pass, and has no second derivative.
    """
    if backend.active() == "reference":
        OPERATOR.check(
            x, norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out, 0, two_sided, product
        )
        run = hyena_mixer_reference
    else:
        run = hyena_mixer_blocked
    return run(
        x, norm_w, norm_b, eps, w_in, b_in, w, b, k, skip, w_out, b_out,
        centred=centred, two_sided=two_sided, product=product,
    )  # fmt: skip

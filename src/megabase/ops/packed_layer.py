"""A Hyena layer of order 2 without its transforms, its weights packed once; letters at the end.

For callers that run the same layer over many short pieces, where packing for every call would take
a good part of the time. There is no gradient, and no path but that of ``megabase-kernels``: where
they do not compute it, :meth:`PackedLayer.of` and :func:`letter_log_probs` give None.

Shape suffixes: B batch, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megabase.ops import backend, kernels

__all__ = ["PackedLayer", "letter_log_probs"]


class PackedLayer:
    """One layer; make it with :meth:`of`."""

    def __init__(self, layer: object, kept: Sequence[Tensor]) -> None:
        self._layer = layer
        self._kept = kept  # the norms are read where they are

    @classmethod
    def of(
        cls, norms: Sequence[tuple[Tensor, Tensor | None, float]], weights: Sequence[Tensor | None]
    ) -> PackedLayer | None:
        """Pack a layer.

        Parameters
        ----------
        norms
            Weight, bias and epsilon of the LayerNorms before the mixer and before the MLP.
        weights
            Projection (3 width, width) and its bias, taps of the short convolution (3 width, taps)
            and its bias, output projection (width, width) and its bias, and of the MLP the two maps
            (inner, width) and (width, inner), each with its bias.

        Returns
        -------
        PackedLayer or None
            None where the kernels do not compute this layer.
        """
        (w1, b1, eps1), (w2, b2, eps2) = norms
        if any(t is None for t in weights):
            return None
        w_in, b_in, w, b, w_out, b_out, *mlp = (t.contiguous() for t in weights if t is not None)
        double = w_in.dtype == torch.float64
        name = "Layer64" if double else "Layer32"
        given = (w1, b1, w_in, b_in, w, b, w_out, b_out, w2, b2, *mlp)
        if not (
            kernels.alike(w_in.dtype, *given)
            and backend.use_kernels(*given)
            and w.shape[-1] <= kernels.package().MAX_TAPS
        ):
            return None
        given = [None if t is None else t.contiguous() for t in given]
        make = getattr(kernels.package().native, name)
        layer = make(
            [w_in.shape[1], w.shape[-1], mlp[0].shape[0]], eps1, eps2,
            [kernels.address(t) for t in given],
        )  # fmt: skip
        return cls(layer, [t for t in given if t is not None])

    def open(self, x_BLD: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Normalise, project, convolve shortly and gate.

        Parameters
        ----------
        x_BLD
            The running sum.
        first
            Position from which the results count.

        Returns
        -------
        gate, u : Tensor
            The output gate (B, L - first, D) and the input of the long convolution
            (B, D, L - first), without the positions before `first`.
        """
        x_BLD = x_BLD.contiguous()
        batch, length, width = x_BLD.shape
        gate, u = torch.empty_like(x_BLD), x_BLD.new_empty(batch, width, length)
        layer: object = self._layer
        layer.open(  # pyright: ignore[reportAttributeAccessIssue]
            batch, length, first, x_BLD.data_ptr(), u.data_ptr(), gate.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return gate[:, first:], u[..., first:]

    def close(self, y_BDL: Tensor, gate_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        """Gate and project what the long convolution gave, add it to `x_BLD`, and add the MLP.

        The gate may be overwritten.

        Returns
        -------
        Tensor
            The running sum after the layer, (B, L, D).
        """
        y_BDL, x_BLD, out = y_BDL.contiguous(), x_BLD.contiguous(), torch.empty_like(x_BLD)
        gate_BLD = gate_BLD.contiguous()
        layer: object = self._layer
        layer.close(  # pyright: ignore[reportAttributeAccessIssue]
            x_BLD.shape[0], x_BLD.shape[1], y_BDL.data_ptr(), gate_BLD.data_ptr(),
            x_BLD.data_ptr(), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out


def letter_log_probs(
    x_BLD: Tensor,
    norm: tuple[Tensor, Tensor | None, float],
    w_4D: Tensor,
    before_B4: Tensor | None,
    codes: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Give the natural log-probabilities of letters, among A, C, G and T.

    Parameters
    ----------
    x_BLD
        The running sum behind the last layer.
    norm
        Weight, bias and epsilon of the last LayerNorm.
    w_4D
        Rows of the head.
    before_B4
        Logits in front of those of `x_BLD`, or None.
    codes
        Codes (0 to 3, others have no letter) that follow each row of logits, uint8.

    Returns
    -------
    scores, logits : Tensor
        In float32, of the shape of `codes`, NaN where there is no letter; and (B, L, 4). None
        instead of both where the kernels do not compute them.
    """
    weight, bias, eps = norm
    given = (x_BLD, weight, bias, w_4D, before_B4)
    if not (kernels.alike(x_BLD.dtype, *given) and backend.use_kernels(*given)):
        return None
    kept = [
        None if t is None else t.contiguous() for t in (weight, bias, x_BLD, w_4D, before_B4, codes)
    ]
    logits_BL4 = x_BLD.new_empty(*x_BLD.shape[:2], 4)
    scores = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    kernels.package().native.letters(
        x_BLD.dtype == torch.float64, [*x_BLD.shape], eps,
        [kernels.address(t) for t in (*kept, logits_BL4, scores)],
    )  # fmt: skip
    return scores, logits_BL4

"""A Hyena layer of order 2 without its transforms, its weights packed once; letters at the end.

For callers that run one layer over many short pieces. There is no gradient; where the kernels do
not compute it, :meth:`PackedLayer.of` and :func:`letter_log_probs` give None.

Shape suffixes: B batch, L positions, D width.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.registry import Arguments

_LAYER = Arguments(
    "PackedLayer.of",
    {
        "norm1_w": "D", "norm1_b": "D", "w_in": "3D D", "b_in": "3D", "w": "3D K", "b": "3D",
        "w_out": "D D", "b_out": "D", "norm2_w": "D", "norm2_b": "D", "w1": "E D", "b1": "E",
        "w2": "D E", "b2": "D",
    },
    least={"K": 1},
)  # fmt: skip
"""Tensors of a layer, in the order of the kernels."""
# What must be like the packed projection.
_OPEN = Arguments(
    "PackedLayer.open", {"w_in": "3D D", "x": "B L D", "first": None}, below={"first": "L"},
    alike=True,
)  # fmt: skip
# The same of what closes it.
_CLOSE = Arguments(
    "PackedLayer.close", {"w_in": "3D D", "y": "B D L", "gate": "B L D", "x": "B L D"}, alike=True
)
_LETTERS = Arguments(
    "letter_log_probs",
    {
        "x": "B L D", "norm_w": "D", "norm_b": "D", "w": "4 D", "before": "B 4",
        "codes": "uint8 B T",
    },
    rules={"T": lambda sizes, given: sizes["L"] + (given["before"] is not None)},
)  # fmt: skip
"""A head of four rows, behind a LayerNorm."""


class PackedLayer:
    """One layer; make it with :meth:`of`."""

    def __init__(self, layer: Any, w_in: Tensor) -> None:
        self._layer = layer
        self._w_in = w_in  # what its inputs must be like

    @classmethod
    def of(
        cls, norms: Sequence[tuple[Tensor, Tensor | None, float]], weights: Sequence[Tensor | None]
    ) -> Self | None:
        """Pack a layer; None where the kernels do not compute it.

        `norms` are weight, bias and epsilon of the two LayerNorms. `weights` are projection (3D,
        D), taps (3D, K), output projection and the MLP's two maps, each followed by its bias.
        """
        (w1, b1, eps1), (w2, b2, eps2) = norms
        if any(t is None for t in weights):
            return None
        w_in, b_in, w, b, w_out, b_out, *mlp = (t for t in weights if t is not None)
        given = (w1, b1, w_in, b_in, w, b, w_out, b_out, w2, b2, *mlp)
        _LAYER.check(*given)
        computed = kernels.alike(w_in.dtype, *given) and backend.use_kernels(*given)
        if not computed or w.shape[-1] > kernels.package().MAX_TAPS:
            return None
        double = w_in.dtype == torch.float64
        make = getattr(kernels.native(), "Layer64" if double else "Layer32")
        sizes = [w_in.shape[1], w.shape[-1], mlp[0].shape[0]]
        packed = make(sizes, eps1, eps2, [kernels.array(kernels.dense(t)) for t in given])
        return cls(packed, w_in)

    def open(self, x_BLD: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Normalize, project, convolve shortly and gate the running sum.

        Gives the output gate (B, L - first, D) and the input of the long convolution
        (B, D, L - first), without the positions before `first`.
        """
        _OPEN.check(self._w_in, x_BLD, first)
        x_BLD = kernels.dense(x_BLD)
        batch, length, width = x_BLD.shape
        gate, u = torch.empty_like(x_BLD), x_BLD.new_empty(batch, width, length)
        arrays = (kernels.array(t) for t in (x_BLD, u, gate))
        self._layer.open(batch, length, first, *arrays, torch.get_num_threads())
        return gate[:, first:], u[..., first:]

    def close(self, y_BDL: Tensor, gate_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        """Gate and project what the long convolution gave, add it to `x_BLD`, and add the MLP.

        The gate may be overwritten.
        """
        _CLOSE.check(self._w_in, y_BDL, gate_BLD, x_BLD)
        y_BDL, gate_BLD, x_BLD = (kernels.dense(t) for t in (y_BDL, gate_BLD, x_BLD))
        out = torch.empty_like(x_BLD)
        arrays = (kernels.array(t) for t in (y_BDL, gate_BLD, x_BLD, out))
        self._layer.close(*x_BLD.shape[:2], *arrays, torch.get_num_threads())
        return out


def letter_log_probs(
    x_BLD: Tensor, norm: tuple[Tensor, Tensor | None, float], w_4D: Tensor,
    before_B4: Tensor | None, codes: Tensor,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """Give natural log-probabilities of letters, among A, C, G and T, and logits (B, L, 4).

    `norm` is weight, bias and epsilon of the last LayerNorm, `before_B4` logits in front of those
    of `x_BLD`, `codes` (uint8) the letter behind each row of logits: 0 to 3, others are none.
    Scores are float32 of the shape of `codes`, NaN without a letter.
    """
    weight, bias, eps = norm
    given = (x_BLD, weight, bias, w_4D, before_B4)
    _LETTERS.check(x_BLD, weight, bias, w_4D, before_B4, codes)
    if not (kernels.alike(x_BLD.dtype, *given) and backend.use_kernels(*given)):
        return None
    kept = [kernels.dense(t) for t in (weight, bias, x_BLD, w_4D, before_B4, codes)]
    logits_BL4 = x_BLD.new_empty(*x_BLD.shape[:2], 4)
    scores = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    kernels.native().letters(
        x_BLD.dtype == torch.float64, [*x_BLD.shape], eps,
        [kernels.array(t) for t in (*kept, logits_BL4, scores)],
    )  # fmt: skip
    return scores, logits_BL4

"""What the two passes of the Hyena mixer share: how the work is cut, and its elementwise parts.

Shape suffixes: D width, K taps, F frequencies; b, c and t are a group of sequences, a group of
channels and the positions of a piece, q the 3 c projected channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from megabase.ops.long_conv import FilterSpectra
from megabase.ops.pieces import Norm, Piece, pieces
from megabase.ops.products import matmul
from megabase.ops.registry import wide_dtype
from megabase.ops.short_conv import apply_taps

GROUP_SAMPLES = 1 << 22
"""Padded samples of a group of channels and sequences; several arrays of that size are alive."""

CHANNEL_SAMPLES = 1 << 23
"""Padded samples of one sequence in a group: more channels make quicker products."""

MIN_GROUP = 32
"""Channels of a group at least: products with fewer rows are slower."""

TRANSFORM_SAMPLES = 1 << 20
"""Samples per transform call: large enough to fill all cores, small enough for the cache."""

MIN_ROWS = 16
"""Rows per transform call if there is room: the library plans every call anew, and its threads
share rows."""

MIN_ROWS_SAMPLES = 1 << 22
"""Samples per transform call that `MIN_ROWS` may lead to."""


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply (b, m, k) with (b, k, n), either of which may lack the first axis."""
    batch = max(a.shape[0] if a.dim() == 3 else 1, b.shape[0] if b.dim() == 3 else 1)
    if batch > 1 and min(a.shape[-2], b.shape[-1]) < 128:
        a, b = (x if x.dim() == 3 else x.expand(batch, -1, -1) for x in (a, b))
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
    found = [
        matmul(a[i] if a.dim() == 3 else a, b[i] if b.dim() == 3 else b, bias) for i in range(batch)
    ]
    return found[0][None] if batch == 1 else torch.stack(found)


def transform_blocks(rows: int, channels: int, n_fft: int) -> tuple[list[slice], list[slice]]:
    """Cut the sequences and channels of a group into blocks for one transform call."""
    some = min(MIN_ROWS, max(MIN_ROWS // 4, MIN_ROWS_SAMPLES // n_fft))
    count = max(some, TRANSFORM_SAMPLES // n_fft)
    per_channel = min(channels, count)
    per_batch = max(1, count // per_channel)
    return (
        [slice(b, min(b + per_batch, rows)) for b in range(0, rows, per_batch)],
        [slice(c, min(c + per_channel, channels)) for c in range(0, channels, per_channel)],
    )


class MixerWeights(NamedTuple):
    """Weights of a mixer behind a LayerNorm; without `norm_w` nothing is normalized."""

    norm_w: Annotated[Tensor | None, "D"]
    norm_b: Annotated[Tensor | None, "D"]
    eps: float
    w_in: Annotated[Tensor, "3D D"]
    """Projection to output gate, input gate and value."""
    b_in: Annotated[Tensor, "3D"]
    w: Annotated[Tensor, "3D K"]
    """Taps of the short convolution."""
    b: Annotated[Tensor, "3D"]
    k: Annotated[Tensor, "D M"]
    """Filter of the long convolution."""
    skip: Annotated[Tensor | None, "D"]
    """Weight of the unconvolved input."""
    w_out: Annotated[Tensor, "D D"]
    """Output projection."""
    b_out: Annotated[Tensor, "D"]


class MixerOptions(NamedTuple):
    """How a mixer works."""

    after: int
    """Taps of the short convolution behind the position."""
    two_sided: bool
    """Whether the filter has negative lags."""
    product: torch.dtype | None
    """Dtype of the matrix products; that of the weights when None."""


class MixerNeeds(NamedTuple):
    """Which gradients of a mixer are wanted."""

    needs_x: bool
    needs_weights: bool
    needs_filter: bool


def product_dtype(weights: MixerWeights, options: MixerOptions) -> torch.dtype:
    """Give the dtype of the matrix products."""
    return weights.w_in.dtype if options.product is None else options.product


class Mixer:
    """Input (batch, length, width) and weights, converted once, and what follows from them."""

    def __init__(self, x: Tensor, given: MixerWeights, options: MixerOptions) -> None:
        after, two_sided, product = options
        self.x, self.given, self.two_sided, self.product = x, given, two_sided, product
        self.batch, self.length, self.width = x.shape
        self.norm = Norm(given.norm_w, given.norm_b, given.eps)
        self.dtype = product_dtype(given, options)
        self.wide = wide_dtype(self.dtype)
        # What joins a running sum is not rounded further than the products were.
        self.out_dtype = self.dtype if product is None else x.dtype
        self.w_in, self.b_in = given.w_in.to(self.dtype), given.b_in.to(self.dtype)
        self.w_out, self.b_out = given.w_out.to(self.dtype), given.b_out.to(self.dtype)
        self.w, self.b = given.w.to(self.wide), given.b.to(self.wide)
        self.k, self.skip = given.k, given.skip
        self.after, self.before = after, self.w.shape[-1] - 1 - after
        self.spectra = FilterSpectra(self.k, self.skip, self.length, two_sided, self.wide)
        self.n_fft = self.spectra.n_fft

    def groups(self) -> tuple[list[slice], list[slice]]:
        """Cut channels and sequences into groups of about `GROUP_SAMPLES` padded samples."""
        channels = min(self.width, max(MIN_GROUP, CHANNEL_SAMPLES // self.n_fft))
        channels = -(-self.width // -(-self.width // channels))
        together = max(1, min(self.batch, GROUP_SAMPLES // self.n_fft // channels))
        return (
            [slice(i, min(i + channels, self.width)) for i in range(0, self.width, channels)],
            [slice(i, min(i + together, self.batch)) for i in range(0, self.batch, together)],
        )

    def pieces(self, b: slice, before: int = 0, after: int = 0) -> Iterator[Piece]:
        """Cut the sequences `b` into pieces of positions."""
        return pieces(b, self.length, self.x, before, after)

    def spectrum(self, c: slice, j: slice, kept: dict[int, Tensor]) -> Tensor:
        """Give the filter's spectrum for the block `j` of the channels `c`.

        Kept only while several groups of sequences need it: all together take much memory.
        """
        at = c.start + j.start
        if at in kept:
            return kept[at]
        found = self.spectra.transform(slice(at, c.start + j.stop))
        if len(self.groups()[1]) > 1:
            kept[at] = found
        return found

    def part(self, c: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give projection and short convolution of the channels `c` of gates and value."""
        at = [slice(c.start + i * self.width, c.stop + i * self.width) for i in range(3)]
        return tuple(
            torch.cat([tensor[s] for s in at])
            for tensor in (self.w_in, self.b_in[:, None], self.w, self.b)
        )  # pyright: ignore[reportReturnType]

    def project(self, piece: Piece, w_qD: Tensor, b_q1: Tensor) -> Tensor:
        """Normalise and project a piece and its neighbours: (b, 3 c, t) in the products' dtype."""
        h_btD = self.norm.apply(self.x[piece.b, piece.wide], self.dtype)
        return product(w_qD, h_btD.transpose(1, 2), b_q1)

    def short(self, p_bqt: Tensor, w_qK: Tensor, b_q: Tensor) -> Tensor:
        """Convolve projected channels shortly, in the wide dtype."""
        out = torch.empty(p_bqt.shape, dtype=self.wide, device=p_bqt.device)
        return apply_taps(p_bqt.to(self.wide), w_qK, b_q, self.after, out)

"""What the two passes of the Hyena mixer share: how the work is cut, and its elementwise parts.

Shape suffixes: D width, K taps, F frequencies; b, c and t are a group of sequences, a group of
channels and the positions of a piece, q the 3 c projected channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megabase.ops.long_conv.fft import FilterSpectra
from megabase.ops.pieces import Norm, Piece, pieces
from megabase.ops.products import matmul
from megabase.ops.short_conv.shifted import apply_taps

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


@dataclass
class Mixer:
    """Arguments of the mixer, converted once, and what follows from them.

    Attributes
    ----------
    x
        Input, shape (batch, length, width).
    norm
        LayerNorm before the projection.
    w_in, b_in, w, b, w_out, b_out
        Projection, short convolution, output projection.
    k, skip
        Filter.
    after
        Taps of the short convolution behind the position.
    two_sided
        Whether the filter has negative lags.
    product
        Dtype of the matrix products; that of the weights when None.
    """

    x: Tensor
    norm: Norm
    w_in: Tensor
    b_in: Tensor
    w: Tensor
    b: Tensor
    k: Tensor
    skip: Tensor | None
    w_out: Tensor
    b_out: Tensor
    after: int
    two_sided: bool
    product: torch.dtype | None

    def __post_init__(self) -> None:
        self.batch, self.length, self.width = self.x.shape
        self.weights = (self.w_in, self.b_in, self.w_out, self.b_out)
        self.dtype = self.w_in.dtype if self.product is None else self.product
        self.wide = torch.promote_types(self.dtype, torch.float32)
        # What joins a running sum is not rounded further than the products were.
        self.out_dtype = self.dtype if self.product is None else self.x.dtype
        for name in ("w_in", "b_in", "w_out", "b_out"):
            setattr(self, name, getattr(self, name).to(self.dtype))
        self.w, self.b = self.w.to(self.wide), self.b.to(self.wide)
        self.before = self.w.shape[-1] - 1 - self.after
        self.spectra = FilterSpectra(self.k, self.skip, self.length, self.two_sided, self.wide)
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

        It is kept while several groups of sequences need it, and not otherwise: for one long
        sequence all of them together would take as much memory as several activations.
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
